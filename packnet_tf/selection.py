"""Which entries a task releases: an exact count, the lowest scores first."""

import math
import numbers
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import numpy as np

from packnet_tf import ownership
from packnet_tf.errors import ArgumentError

SCOPES = ("layer", "global")
_SAMPLE = 2**12


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
    ranked = _Ranked([scores], [np.empty(scores.shape, np.uint8)], None)
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
    count = release_count(owners, task, fraction)
    if count < 0:
        raise ArgumentError(
            "Released weights do not come back: a task's sparsity only "
            "grows. Pass a higher fraction. "
            f"Received: fraction={fraction}, which is {-count} weights below "
            "what is released already"
        )
    return _Ranked(scores, owners, task).lowest(count)


def _unpack(bits: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    size = math.prod(shape)
    return np.unpackbits(bits, count=size).reshape(shape).view(bool)


class _Ranked:
    """What is ranked: the scores of the entries that a task owns.

    They are read in blocks, so that what is made of them stays in the cache
    and nothing as large as the scores is made.

    Args:
        scores: Arrays of the owner maps' shapes.
        owners: `uint8` owner maps, at least one.
        task: The task; `None` to rank all entries.
    """

    def __init__(
        self,
        scores: Iterable[np.ndarray],
        owners: Iterable[np.ndarray],
        task: int | None,
    ) -> None:
        self._weights = [
            (values.reshape(-1), owner.reshape(-1))
            for values, owner in zip(scores, owners)
        ]
        self._dtype = np.result_type(
            *(_compared_as(values.dtype) for values, _ in self._weights)
        )
        size = sum(values.size for values, _ in self._weights)
        self._owned = size
        if task is not None:
            self._owned = sum(
                ownership.count(owner, task) for _, owner in self._weights
            )
        self._task = None if self._owned == size else task

    def lowest(self, count: int) -> list[np.ndarray]:
        """Chooses the `count` lowest, as bits for each weight."""
        if count == 0:
            return [
                np.zeros(-(-owner.size // 8), np.uint8)
                for _, owner in self._weights
            ]
        threshold, excess = self._threshold(count)
        result = []
        # From the end, as the last of those that tie are not among them.
        for weight in reversed(self._weights):
            bits = [np.empty(0, np.uint8)]
            for block in self._blocks(weight, backwards=True):
                chosen = _up_to(block, threshold)
                if excess:
                    below = _below(block, threshold)
                    ties = np.greater(chosen, below)
                    found = np.count_nonzero(ties)
                    if found > excess:
                        below = chosen
                        below[np.flatnonzero(ties)[-excess:]] = False
                    chosen = below
                    excess -= min(found, excess)
                bits.append(np.packbits(chosen))
            result.append(np.concatenate(bits[::-1]))
        return result[::-1]

    def _blocks(
        self, *weights: tuple[np.ndarray, np.ndarray], backwards: bool = False
    ) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Yields scores, and which of them are ranked, `None` if all are."""
        for weight in weights or self._weights:
            for values, owner in ownership.blocks(*weight, backwards=backwards):
                values = values.astype(self._dtype, copy=False)
                if self._task is None:
                    yield values, None
                else:
                    yield values, ownership.trainable_mask(owner, self._task)

    def _threshold(self, rank: int) -> tuple[np.generic, int]:
        """Finds the score of a rank, from 1, in O(n).

        Returns:
            The score, and how many of those equal to it are beyond the rank.
        """
        for low, high in (self._bracket(rank), self._extremes()):
            below = 0
            between = []
            # Neither end is between them, however many tie there.
            for block in self._blocks():
                first = _up_to(block, low)
                below += np.count_nonzero(first)
                inside = _below(block, high)
                inside = np.greater(inside, first, out=inside)
                between.append(block[0][np.flatnonzero(inside)])
            between = np.concatenate(between)
            place = rank - below - 1
            if 0 <= place < between.size:
                between.partition(place)
                found = between[place]
                return found, np.count_nonzero(between <= found) - place - 1
            found = low if place < 0 else high
            if self._count(_below, found) < rank:
                excess = self._count(_up_to, found) - rank
                if excess >= 0:
                    return found, excess

    def _bracket(self, rank: int) -> tuple[np.generic, np.generic]:
        """Estimates between which scores the one of a rank lies.

        A sample tells about where it is, and how far off that is tells how
        near the ends can be: at four standard deviations, which hardly ever
        fails.
        """
        generator = np.random.default_rng(0)
        sample = []
        for values, owner in self._weights:
            size = math.ceil(_SAMPLE / self._owned * values.size)
            drawn = generator.integers(0, values.size, size)
            if self._task is not None:
                drawn = drawn[owner[drawn] == self._task]
            sample.append(values[drawn].astype(self._dtype, copy=False))
        sample = np.sort(np.concatenate(sample))
        scale = sample.size / self._owned
        guess = sample[min(int(rank * scale), sample.size - 1)]
        middle = np.searchsorted(sample, guess, "right")
        off = (rank - self._count(_up_to, guess)) * scale
        margin = 4 * math.sqrt(abs(off) + 1)
        low = math.floor(middle + off - margin) - 1
        high = math.ceil(middle + off + margin)
        lowest, highest = self._extremes()
        return (
            sample[low] if low >= 0 else lowest,
            sample[high] if high < sample.size else highest,
        )

    def _extremes(self) -> tuple[np.generic, np.generic]:
        """Returns the lowest and the highest score there can be."""
        if self._dtype.kind == "f":
            return self._dtype.type(-np.inf), self._dtype.type(np.nan)
        limits = np.iinfo(self._dtype)
        return self._dtype.type(limits.min), self._dtype.type(limits.max)

    def _count(self, which: Callable[..., np.ndarray], limit: Any) -> int:
        return sum(
            int(np.count_nonzero(which(block, limit)))
            for block in self._blocks()
        )


def _below(
    block: tuple[np.ndarray, np.ndarray | None], limit: np.generic
) -> np.ndarray:
    """Tells what ranks below a limit; not-a-number ranks highest."""
    values, owned = block
    found = values == values if limit != limit else values < limit
    return found if owned is None else np.logical_and(found, owned, out=found)


def _up_to(
    block: tuple[np.ndarray, np.ndarray | None], limit: np.generic
) -> np.ndarray:
    """Tells what ranks no higher than a limit."""
    values, owned = block
    found = np.ones(values.shape, bool) if limit != limit else values <= limit
    return found if owned is None else np.logical_and(found, owned, out=found)


def _compared_as(dtype: np.dtype) -> np.dtype:
    """Widens what NumPy compares slowly or, as bool, knows no limits of."""
    if dtype == bool:
        return np.dtype(np.uint8)
    if dtype.itemsize == 2 and dtype.kind not in "iu":
        return np.dtype(np.float32)
    return dtype
