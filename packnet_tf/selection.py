"""Which entries a task releases: an exact count, the lowest scores first."""

import math
import numbers
from collections.abc import Iterable
from collections.abc import Sequence

import numpy as np

from packnet_tf import ownership
from packnet_tf import ranking
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
    ranked = ranking.Ranked([scores], [np.empty(scores.shape, np.uint8)], None)
    return _unpack(ranked.lowest(count)[0], scores.shape)


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
    free = 0
    owned = 0
    for owner in owners:
        free += ownership.count(owner, ownership.FREE)
        owned += ownership.count(owner, task)
    return round(fraction * (free + owned)) - free


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
        scores: Float arrays of the owner maps' shapes. Higher means keep.
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
    chosen = release_bits(scores, owners, task, fraction)
    return [_unpack(bits, owner.shape) for bits, owner in zip(chosen, owners)]


def release_bits(
    scores: Iterable[np.ndarray],
    owners: Sequence[np.ndarray],
    task: int,
    fraction: float,
) -> list[np.ndarray]:
    """Chooses as `release_lowest_of_all` does, and takes a bit per entry.

    Args:
        scores: Float arrays of the owner maps' shapes. Higher means keep.
        owners: `uint8` owner maps of any shapes, at least one.
        task: Int in `[1, 255]`, the current task.
        fraction: Float in `[0, 1)`, of all pools together.

    Returns:
        For each owner map what `np.packbits` makes of the bool array of
        released entries.

    Raises:
        ArgumentError: If `fraction` is outside `[0, 1)`, or below what is
            released already.
    """
    fraction = check_fraction(fraction)
    ranked = ranking.Ranked(scores, owners, task)
    free = 0
    if ranked.size < ranked.total:
        free = sum(ownership.count(owner, ownership.FREE) for owner in owners)
    count = round(fraction * (free + ranked.size)) - free
    if count < 0:
        raise ArgumentError(
            "Released weights do not come back: a task's sparsity only "
            "grows. Pass a higher fraction. "
            f"Received: fraction={fraction}, which is {-count} weights below "
            "what is released already"
        )
    return ranked.lowest(count)


def _unpack(bits: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    size = math.prod(shape)
    return np.unpackbits(bits, count=size).reshape(shape).view(bool)
