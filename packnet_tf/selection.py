"""Which entries a task releases: an exact count, the lowest scores first."""

import numbers

import numpy as np

from packnet_tf import ownership
from packnet_tf.errors import ArgumentError


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
    if scores.dtype.name == "bfloat16":
        scores = scores.astype(np.float32)  # NumPy misorders its NaNs.
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


def release_count(owner: np.ndarray, task: int, fraction: float) -> int:
    """Counts the entries still to release until `fraction` is reached.

    Args:
        owner: `uint8` owner map of any shape.
        task: The current task.
        fraction: Float in `[0, 1)`, of the pool, counted from when the task
            began.

    Returns:
        `round(fraction * pool)` less what is released already; negative if
        more is released than asked for.
    """
    pool = ownership.pool_size(owner, task)
    return round(fraction * pool) - int(np.count_nonzero(owner == 0))


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
    fraction = check_fraction(fraction)
    count = release_count(owner, task, fraction)
    if count < 0:
        raise ArgumentError(
            "Released weights do not come back: a task's sparsity only "
            "grows. Pass a higher fraction. "
            f"Received: fraction={fraction}, which is {-count} weights below "
            "what is released already"
        )
    owned = ownership.trainable_mask(owner, task)
    released = np.zeros(owner.shape, bool)
    released[owned] = lowest(scores[owned], count)
    return released
