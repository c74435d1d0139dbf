"""Moving weights between tasks: claimed at the start, released by pruning."""

from collections.abc import Sequence

import numpy as np

from packnet_tf import criteria
from packnet_tf import inventory
from packnet_tf import ownership
from packnet_tf import selection
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import StageError


def claim(entries: Sequence[inventory.Entry], task: int) -> int:
    """Gives all free weights of a backbone to a task.

    Args:
        entries: The packed variables.
        task: Int in `[1, 255]`.

    Returns:
        How many weights that are.
    """
    pool = 0
    for entry in entries:
        owner = entry.owner.numpy()
        pool += int(np.count_nonzero(owner == ownership.FREE))
        entry.owner.assign(ownership.claim(owner, task))
    return pool


def release(
    entries: Sequence[inventory.Entry],
    task: int,
    fraction: float,
    criterion: criteria.Criterion,
) -> int:
    """Releases the lowest-scoring weights of the current task, layerwise.

    In each packed weight exactly `round(fraction * pool)` entries are free
    afterwards, and zero.

    Args:
        entries: The packed variables.
        task: Number of the current task.
        fraction: Float in `[0, 1)`, of the pool.
        criterion: How weights are ranked.

    Returns:
        How many weights were released.

    Raises:
        StageError: If the pool is empty.
        ArgumentError: If the criterion returns scores of another shape, or
            more is released already.
    """
    pools = (
        ownership.pool_size(entry.owner.numpy(), task) for entry in entries
    )
    if not any(pools):
        raise StageError(
            "There is nothing to prune: no weight was free when the task "
            "began. Prune earlier tasks more to leave room. "
            f"Received: fraction={fraction:g}, an empty pool"
        )
    # All is chosen before anything is released; one bit per weight.
    chosen = [
        np.packbits(_choose(entry, task, fraction, criterion))
        for entry in entries
    ]
    count = 0
    for entry, bits in zip(entries, chosen):
        shape = entry.variable.shape
        released = np.unpackbits(bits, count=int(np.prod(shape)))
        released = released.reshape(shape).astype(bool)
        kernel = entry.variable.numpy()
        entry.owner.assign(ownership.release(entry.owner.numpy(), released))
        entry.variable.assign(
            np.where(released, np.zeros((), kernel.dtype), kernel)
        )
        count += int(np.count_nonzero(released))
    return count


def _choose(
    entry: inventory.Entry,
    task: int,
    fraction: float,
    criterion: criteria.Criterion,
) -> np.ndarray:
    kernel = entry.variable.numpy()
    scores = np.asarray(criterion.score(kernel))
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
    return selection.release_lowest(scores, entry.owner.numpy(), task, fraction)
