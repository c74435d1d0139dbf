"""Pure functions on owner maps.

An owner map is a `uint8` array of its kernel's shape. Entry 0 is free, entry
`t` belongs to task `t`; tasks are numbered from 1. Every function here works
alike on NumPy arrays and on TensorFlow tensors, and changes nothing in place.
"""

from collections.abc import Iterator

import numpy as np

from packnet_tf.errors import TaskError

FREE = 0
MAX_TASKS = 255
# So many entries that what is made of them stays in the cache; whole bytes of
# bits.
_BLOCK = 2**16


def check_task_number(task: int) -> int:
    """Checks that `task` can stand in an owner map.

    Args:
        task: Int in `[1, 255]`.

    Returns:
        `task`.

    Raises:
        TaskError: If `task` is outside `[1, 255]`.
    """
    if not 1 <= task <= MAX_TASKS:
        raise TaskError(
            f"An owner map holds tasks 1 to {MAX_TASKS}, one byte per weight. "
            "Start a second packed model for more tasks. "
            f"Received: task={task}"
        )
    return task


def visible_mask(owner, task: int):
    """Tells which entries task `task` computes with.

    Args:
        owner: `uint8` owner map of any shape.
        task: Int in `[1, 255]`.

    Returns:
        Bool array of the same shape, `True` where the owner is in `1..task`.
    """
    return (owner != FREE) & (owner <= task)


def trainable_mask(owner, task: int):
    """Tells which entries task `task` may change.

    Args:
        owner: `uint8` owner map of any shape.
        task: Int in `[1, 255]`.

    Returns:
        Bool array of the same shape, `True` where the owner is `task`.
    """
    return owner == task


def frozen_mask(owner, task: int):
    """Tells which entries belong to tasks before `task`.

    Args:
        owner: `uint8` owner map of any shape.
        task: Int in `[1, 255]`.

    Returns:
        Bool array of the same shape, `True` where the owner is in
        `1..task - 1`.
    """
    return (owner != FREE) & (owner < task)


def claim(owner: np.ndarray, task: int) -> np.ndarray:
    """Gives every free entry to task `task`.

    Args:
        owner: `uint8` owner map of any shape.
        task: Int in `[1, 255]`.

    Returns:
        The new owner map.
    """
    # `where` is slow on masks without a pattern.
    return owner + np.multiply(
        np.asarray(owner) == FREE, np.uint8(check_task_number(task))
    )


def release(owner: np.ndarray, released: np.ndarray) -> np.ndarray:
    """Makes entries free.

    Args:
        owner: `uint8` owner map of any shape.
        released: Bool array of the same shape, `True` where an entry is
            given back.

    Returns:
        The new owner map.
    """
    return np.multiply(owner, np.logical_not(released))


def blocks(
    *arrays: np.ndarray, backwards: bool = False
) -> Iterator[tuple[np.ndarray, ...]]:
    """Cuts arrays of one size into short flat pieces.

    Args:
        *arrays: Arrays of as many entries each, of any shapes and dtypes.
        backwards: Whether to begin with the last.

    Yields:
        A piece of each array, of the same positions in the order of flat
        indices.
    """
    flat = [np.asarray(array).reshape(-1) for array in arrays]
    starts = range(0, flat[0].size, _BLOCK)
    for start in reversed(starts) if backwards else starts:
        yield tuple(array[start : start + _BLOCK] for array in flat)


def count(owner: np.ndarray, number: int) -> int:
    """Counts the entries of one owner.

    Args:
        owner: `uint8` owner map of any shape.
        number: A task, or `FREE`.

    Returns:
        The number of entries that are `number`.
    """
    return sum(
        int(np.count_nonzero(block == number)) for (block,) in blocks(owner)
    )


def pool_size(owner: np.ndarray, task: int) -> int:
    """Counts the entries that were free when the current task began.

    Args:
        owner: `uint8` owner map of any shape.
        task: The current task. It owned its whole pool when it began, so the
            pool is what it owns now and what it has released since.

    Returns:
        The number of entries in the pool.
    """
    return count(owner, task) + count(owner, FREE)


def counts(owner: np.ndarray, tasks: int) -> np.ndarray:
    """Counts the entries of each owner.

    Args:
        owner: `uint8` owner map of any shape.
        tasks: How many tasks there are.

    Returns:
        `int64` array of shape `(tasks + 1,)`: free entries first, then those
        of task 1, 2, and so on.
    """
    found = np.zeros(MAX_TASKS + 1, np.int64)
    # In blocks, as NumPy counts `int64` only: eight times the owner map.
    for (block,) in blocks(owner):
        found += np.bincount(block, minlength=MAX_TASKS + 1)
    return found[: tasks + 1]
