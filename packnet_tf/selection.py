"""Which entries a task releases: an exact count, the lowest scores first."""

import numbers
from collections.abc import Iterable
from collections.abc import Sequence

import numpy as np

from packnet_tf import ownership
from packnet_tf.errors import ArgumentError

SCOPES = ("layer", "global")


def check_fraction(fraction: float) -> float:
    """Checks that a fraction is one: a number in `[0, 1)`, no percentage.

    Args:
        fraction: What to check.

    Returns:
        `fraction` as a Python float.

    Raises:
        ArgumentError: If it is not a real number in `[0, 1)`.
    """
    if isinstance(fraction, np.ndarray) and fraction.ndim == 0:
        fraction = fraction[()]
    if isinstance(fraction, bool) or not isinstance(fraction, numbers.Real):
        raise ArgumentError(
            "A sparsity is a number in [0, 1), the fraction of the task's "
            f"pool to release. Received: {fraction!r}"
        )
    if not 0 <= fraction < 1:
        hint = ""
        if 1 < fraction < 100:
            percent = float(fraction)
            hint = f" For {percent:g} percent pass {percent / 100:g}."
        raise ArgumentError(
            "A sparsity lies in [0, 1): it is a fraction of the task's pool, "
            f"not a percentage.{hint} Received: {fraction}"
        )
    if isinstance(fraction, np.floating):
        # A float32 of 0.7 is a neighbour of 0.7. Its shortest decimal is 0.7
        # again, and so gives the exact count.
        return float(str(fraction))
    return float(fraction)


def lowest(scores: np.ndarray, count: int) -> np.ndarray:
    """Finds the `count` lowest scores in O(n), ties by lowest index.

    Not-a-number ranks above everything, as in NumPy's sorting.

    Args:
        scores: Float array of shape `(n,)`.
        count: Int in `[0, n]`.

    Returns:
        Bool array of shape `(n,)` with exactly `count` entries `True`.
    """
    scores = _widen(scores)
    if count == 0:
        return np.zeros(scores.shape, bool)
    if count == scores.size:
        return np.ones(scores.shape, bool)
    threshold = np.partition(scores, count - 1)[count - 1]
    if np.isnan(threshold):
        chosen = ~np.isnan(scores)
        ties = ~chosen
    else:
        chosen = scores < threshold
        ties = scores == threshold
    missing = count - int(np.count_nonzero(chosen))
    chosen[np.flatnonzero(ties)[:missing]] = True
    return chosen


def release_count(
    owners: Iterable[np.ndarray], task: int, fraction: float
) -> int:
    """Counts the entries still to release until `fraction` is reached.

    Args:
        owners: `uint8` owner maps of any shapes, ranked together.
        task: The current task.
        fraction: Float in `[0, 1)`, of the pool, counted from when the task
            began.

    Returns:
        `round(fraction * pool)` less what is released already; negative if
        more is released than asked for.
    """
    pool = 0
    free = 0
    for owner in owners:
        pool += ownership.pool_size(owner, task)
        free += int(np.count_nonzero(owner == ownership.FREE))
    return round(fraction * pool) - free


def check_scope(scope: str) -> str:
    """Checks over what the entries to release are ranked.

    Args:
        scope: What to check.

    Returns:
        `scope`.

    Raises:
        ArgumentError: If it is neither `"layer"` nor `"global"`.
    """
    if scope not in SCOPES:
        raise ArgumentError(
            "Entries are ranked within each packed weight, "
            '`scope="layer"`, or over all of them together, '
            f'`scope="global"`. Received: scope={scope!r}'
        )
    return scope


def release_lowest(
    scores: np.ndarray, owner: np.ndarray, task: int, fraction: float
) -> np.ndarray:
    """Chooses the entries a task releases for later tasks.

    Ranks only entries owned by `task`; frozen and free entries are left
    alone. Exactly `round(fraction * pool)` entries are free afterwards, those
    released before included; ties go to the lowest flat index.

    Args:
        scores: Float array, the owner map's shape. Higher means keep.
        owner: `uint8` array of any shape; 0 is free, `t` belongs to task `t`.
        task: Int in `[1, 255]`, the current task.
        fraction: Float in `[0, 1)`, of the pool.

    Returns:
        Bool array of the owner map's shape, `True` where an entry is
        released.

    Raises:
        ArgumentError: If `fraction` is outside `[0, 1)`, or below what is
            released already.

    Reference:
        - [Mallya and Lazebnik, 2018](https://arxiv.org/abs/1711.05769),
          section 3
    """
    return release_lowest_of_all([scores], [owner], task, fraction)[0]


def release_lowest_of_all(
    scores: Iterable[np.ndarray],
    owners: Sequence[np.ndarray],
    task: int,
    fraction: float,
) -> list[np.ndarray]:
    """Chooses as `release_lowest` does, over several weights together.

    Exactly `round(fraction * pool)` entries of all pools together are free
    afterwards; ties go to the first weight, then to the lowest flat index.

    Args:
        scores: Float arrays of the owner maps' shapes; asked for one by one,
            and only what the task owns is kept. Higher means keep.
        owners: `uint8` owner maps of any shapes, at least one.
        task: Int in `[1, 255]`, the current task.
        fraction: Float in `[0, 1)`, of all pools together.

    Returns:
        Bool arrays of the owner maps' shapes, `True` where an entry is
        released.

    Raises:
        ArgumentError: If `fraction` is outside `[0, 1)`, or below what is
            released already.
    """
    fraction = check_fraction(fraction)
    count = release_count(owners, task, fraction)
    if count < 0:
        raise ArgumentError(
            "Released weights do not come back: a task's sparsity only "
            "grows. Pass a higher fraction. "
            f"Received: fraction={fraction}, which is {-count} weights below "
            "what is released already"
        )
    owned = [
        _widen(values[ownership.trainable_mask(owner, task)])
        for values, owner in zip(scores, owners)
    ]
    ends = np.cumsum([values.size for values in owned])
    # One array is ranked as it is: at this size a copy counts.
    ranked = owned[0] if len(owned) == 1 else np.concatenate(owned)
    del owned
    chosen = lowest(ranked, count)
    result = []
    for owner, part in zip(owners, np.split(chosen, ends[:-1])):
        released = np.zeros(owner.shape, bool)
        released[ownership.trainable_mask(owner, task)] = part
        result.append(released)
    return result


def _widen(scores: np.ndarray) -> np.ndarray:
    """Makes bfloat16 what NumPy can mix with others and order, with NaNs."""
    if scores.dtype.name == "bfloat16":
        return scores.astype(np.float32)
    return scores
