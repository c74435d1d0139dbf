"""Moving weights between tasks: claimed at the start, released by pruning."""

import math
import warnings
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from packnet_tf import criteria
from packnet_tf import flat_values
from packnet_tf import inventory
from packnet_tf import ownership
from packnet_tf import selection
from packnet_tf import variables
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import StageError

_PIECE = 1 << 20  # Entries that are in memory at a time.


def claim(entries: Sequence[inventory.Entry], task: int) -> dict[str, int]:
    """Gives all free weights of a backbone to a task.

    Args:
        entries: The packed variables.
        task: Int in `[1, 255]`.

    Returns:
        How many weights that are, by the key of the variable.
    """
    pools = {}
    for entry in entries:
        owner = variables.view(entry.owner)
        pools[entry.key] = ownership.count(owner, ownership.FREE)
        entry.owner.assign(ownership.claim(owner, task))
    return pools


def check(
    entries: Sequence[inventory.Entry], task: int, fraction: float, scope: str
) -> None:
    """Checks that a task can release as much as is asked for.

    Args:
        entries: The packed variables.
        task: Number of the current task.
        fraction: Float in `[0, 1)`, of the pool.
        scope: `"layer"` or `"global"`.

    Raises:
        StageError: If the pool is empty.
        ArgumentError: If there is no such scope, or a packed weight would
            have to take entries back.
    """
    selection.check_scope(scope)
    owners = [variables.view(entry.owner) for entry in entries]
    if not any(ownership.pool_size(owner, task) for owner in owners):
        raise StageError(
            "There is nothing to prune: no weight was free when the task "
            "began. Prune earlier tasks more to leave room. "
            f"Received: fraction={fraction:g}, an empty pool"
        )
    if scope == "global":
        excess = -selection.release_count(owners, task, fraction)
        if excess > 0:
            raise ArgumentError(
                "Released weights do not come back. Pass a higher fraction, "
                f"or the scope of before. Received: fraction={fraction:g} "
                f'with scope="global", {excess} weights below what is '
                "released already"
            )
        return
    for entry, owner in zip(entries, owners):
        excess = -selection.release_count([owner], task, fraction)
        if excess > 0:
            raise ArgumentError(
                "Released weights do not come back. Pass a higher fraction, "
                'or go on with `scope="global"`, which may take more from one '
                f"layer than from another. Received: fraction={fraction:g} "
                f'with scope="layer", in {entry.key!r} {excess} weights below '
                "what is released already"
            )


def release(
    entries: Sequence[inventory.Entry],
    task: int,
    fraction: float,
    criterion: criteria.Criterion,
    scope: str = "layer",
    gradients: Sequence[np.ndarray] | None = None,
) -> int:
    """Releases the lowest-scoring weights of the current task.

    Exactly `round(fraction * pool)` entries are free afterwards, and zero:
    in each packed weight, or in all of them together.

    Args:
        entries: The packed variables.
        task: Number of the current task.
        fraction: Float in `[0, 1)`, of the pool.
        criterion: How weights are ranked.
        scope: `"layer"` to rank within each packed weight, `"global"` to rank
            over all of them together.
        gradients: What the criterion asks for, one array per entry.

    Returns:
        How many weights were released.

    Raises:
        StageError: If the pool is empty.
        ArgumentError: If there is no such scope, if the criterion returns
            scores of another shape, or if more is released already.
    """
    check(entries, task, fraction, scope)
    owners = [variables.view(entry.owner) for entry in entries]
    if gradients is None:
        gradients = [None] * len(entries)
    # All is chosen before anything is released; one bit per weight.
    if scope == "global":
        chosen = selection.release_bits(
            _score_all(entries, criterion, gradients), owners, task, fraction
        )
        _warn_of_emptied(entries, owners, chosen, task)
    else:
        chosen = [
            selection.release_bits(
                [_score(entry, criterion, gradient)], [owner], task, fraction
            )[0]
            for entry, owner, gradient in zip(entries, owners, gradients)
        ]
    del owners
    count = 0
    for entry, bits in zip(entries, chosen):
        shape = entry.variable.shape
        released = np.unpackbits(bits, count=math.prod(shape)).reshape(shape)
        count += int(np.count_nonzero(released))
        _release(entry, released)
    return count


def release_tasks(entries: Sequence[inventory.Entry], first: int) -> int:
    """Releases all that a task owns, and all tasks after it.

    Args:
        entries: The packed variables.
        first: Number of the task.

    Returns:
        How many weights were released.
    """
    count = 0
    for entry in entries:
        released = variables.view(entry.owner) >= first
        count += int(np.count_nonzero(released))
        _release(entry, released)
    return count


def disown(entries: Sequence[inventory.Entry], task: int) -> None:
    """Makes all weights of a task free again, and zero.

    Args:
        entries: The packed variables.
        task: Number of the newest task.
    """
    for entry in entries:
        size = math.prod(entry.variable.shape)
        for start in range(0, size, _PIECE):
            stop = min(start + _PIECE, size)
            owner = flat_values.get(entry.owner, start, stop)
            mine = owner == task
            if not mine.any():
                continue
            values = flat_values.get(entry.variable, start, stop)
            owner[mine] = ownership.FREE
            values[mine] = np.zeros((), values.dtype)
            flat_values.put(entry.owner, start, owner)
            flat_values.put(entry.variable, start, values)


def check_released(entries: Sequence[inventory.Entry]) -> None:
    """Checks that all free entries are zero, as a frozen task has them.

    Args:
        entries: The packed variables.

    Raises:
        StageError: If one is not.
    """
    for entry in entries:
        count = sum(
            int(np.count_nonzero((owner == ownership.FREE) & (values != 0)))
            for values, owner in ownership.blocks(
                variables.view(entry.variable), variables.view(entry.owner)
            )
        )
        if count:
            raise StageError(
                "Released weights have to be zero, but something has written "
                "to them since. Call `prune()` with the fraction of before, "
                "which makes them zero again, and let no callback put back "
                f"what was pruned. Received: {count} entries of {entry.key!r} "
                "that are not zero"
            )


def _release(entry: inventory.Entry, released: np.ndarray) -> None:
    """Makes entries of a packed weight free, and all that is free zero."""
    entry.owner.assign(ownership.release(variables.view(entry.owner), released))
    # All that is free, in case something has written to it since.
    values = tf.convert_to_tensor(entry.variable.value)
    entry.variable.assign(
        tf.where(
            tf.convert_to_tensor(entry.owner.value) == ownership.FREE,
            tf.zeros((), values.dtype),
            values,
        )
    )


def _score(
    entry: inventory.Entry,
    criterion: criteria.Criterion,
    gradient: np.ndarray | None,
) -> np.ndarray:
    kernel = variables.view(entry.variable)
    scores = np.asarray(
        criterion.score(criteria.Weight(entry.key, kernel, gradient))
    )
    if scores.shape != kernel.shape:
        raise ArgumentError(
            "A criterion returns one score per weight. "
            f"Received: scores of shape {scores.shape} for {entry.key!r} of "
            f"shape {kernel.shape}"
        )
    if scores.dtype.kind not in "fiub" and scores.dtype.name != "bfloat16":
        raise ArgumentError(
            "A criterion returns numbers. "
            f"Received: scores of dtype {scores.dtype} for {entry.key!r}"
        )
    return scores


def _score_all(
    entries: Sequence[inventory.Entry],
    criterion: criteria.Criterion,
    gradients: Sequence[np.ndarray | None],
) -> list[np.ndarray]:
    """Scores all weights, to be kept together, without a copy if it can be."""
    scores = []
    for entry, gradient in zip(entries, gradients):
        values = _score(entry, criterion, gradient)
        # The memory of a view may be used again for the next weight.
        scores.append(values if values.base is None else values.copy())
    if len({id(values) for values in scores}) < len(scores):
        # And so was this array.
        scores = [
            _score(entry, criterion, gradient).copy()
            for entry, gradient in zip(entries, gradients)
        ]
    return scores


def _warn_of_emptied(
    entries: Sequence[inventory.Entry],
    owners: Sequence[np.ndarray],
    chosen: Sequence[np.ndarray],
    task: int,
) -> None:
    emptied = []
    for entry, owner, bits in zip(entries, owners, chosen):
        released = np.count_nonzero(np.unpackbits(bits))
        if released and released == ownership.count(owner, task):
            emptied.append(entry.key)
    if emptied:
        warnings.warn(
            "Ranked over all weights together, the task keeps no entry in "
            f'{emptied}. Prune less, or with `scope="layer"`.',
            stacklevel=5,
        )
