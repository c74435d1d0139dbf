"""Moving weights between tasks: claimed at the start, released by pruning."""

import warnings
from collections.abc import Sequence

import numpy as np

from packnet_tf import criteria
from packnet_tf import inventory
from packnet_tf import ownership
from packnet_tf import selection
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import StageError


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
        owner = entry.owner.numpy()
        pools[entry.key] = int(np.count_nonzero(owner == ownership.FREE))
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
    owners = [entry.owner.numpy() for entry in entries]
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
    owners = [entry.owner.numpy() for entry in entries]
    if gradients is None:
        gradients = [None] * len(entries)
    scores = (
        _score(entry, criterion, gradient)
        for entry, gradient in zip(entries, gradients)
    )
    # All is chosen before anything is released; one bit per weight.
    if scope == "global":
        released = selection.release_lowest_of_all(
            scores, owners, task, fraction
        )
        _warn_of_emptied(entries, owners, released, task)
        chosen = [np.packbits(part) for part in released]
        del released
    else:
        chosen = [
            np.packbits(selection.release_lowest(values, owner, task, fraction))
            for values, owner in zip(scores, owners)
        ]
    count = 0
    for entry, bits in zip(entries, chosen):
        shape = entry.variable.shape
        released = np.unpackbits(bits, count=int(np.prod(shape)))
        released = released.reshape(shape).astype(bool)
        kernel = entry.variable.numpy()
        owner = ownership.release(entry.owner.numpy(), released)
        entry.owner.assign(owner)
        # All that is free, in case something has written to it since.
        entry.variable.assign(
            np.where(
                owner == ownership.FREE, np.zeros((), kernel.dtype), kernel
            )
        )
        count += int(np.count_nonzero(released))
    return count


def check_released(entries: Sequence[inventory.Entry]) -> None:
    """Checks that all free entries are zero, as a frozen task has them.

    Args:
        entries: The packed variables.

    Raises:
        StageError: If one is not.
    """
    for entry in entries:
        free = entry.owner.numpy() == ownership.FREE
        count = np.count_nonzero(entry.variable.numpy()[free])
        if count:
            raise StageError(
                "Released weights have to be zero, but something has written "
                "to them since. Call `prune()` with the fraction of before, "
                "which makes them zero again, and let no callback put back "
                f"what was pruned. Received: {count} entries of {entry.key!r} "
                "that are not zero"
            )


def _score(
    entry: inventory.Entry,
    criterion: criteria.Criterion,
    gradient: np.ndarray | None,
) -> np.ndarray:
    kernel = entry.variable.numpy()
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


def _warn_of_emptied(
    entries: Sequence[inventory.Entry],
    owners: Sequence[np.ndarray],
    released: Sequence[np.ndarray],
    task: int,
) -> None:
    emptied = [
        entry.key
        for entry, owner, part in zip(entries, owners, released)
        if part.any()
        and not np.any(ownership.trainable_mask(owner, task) & ~part)
    ]
    if emptied:
        warnings.warn(
            "Ranked over all weights together, the task keeps no entry in "
            f'{emptied}. Prune less, or with `scope="layer"`.',
            stacklevel=4,
        )
