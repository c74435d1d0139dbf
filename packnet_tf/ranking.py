"""The lowest of many scores: exact, in O(n), ties by lowest index."""

import math
from collections.abc import Iterable
from collections.abc import Iterator

import numpy as np

from packnet_tf import ownership

# Large enough that about one score in fifty is left to sort out.
_SAMPLE = 2**11
_FEW = 2**21  # Up to here `partition` is faster than the passes it saves.
_Block = tuple[np.ndarray, np.ndarray | None]


class Ranked:
    """What is ranked: the scores of the entries that a task owns.

    They are read in blocks, so that what is made of them stays in the cache
    and nothing as large as the scores is made.

    Args:
        scores: Arrays of the owner maps' shapes.
        owners: `uint8` owner maps, at least one.
        task: The task; `None` to rank all entries.

    Attributes:
        size: How many entries are ranked.
        total: How many entries there are.
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
        self.total = sum(values.size for values, _ in self._weights)
        self.size = self.total
        self._task = None
        if task is not None:
            owned = sum(
                ownership.count(owner, task) for _, owner in self._weights
            )
            if owned < self.size:
                self.size = owned
                self._task = task

    def lowest(self, count: int) -> list[np.ndarray]:
        """Chooses the `count` lowest, ties by order and lowest index.

        Args:
            count: Int in `[0, size]`.

        Returns:
            For each weight what `np.packbits` makes of a flat bool array.
        """
        if count == 0:
            return [
                np.zeros(-(-owner.size // 8), np.uint8)
                for _, owner in self._weights
            ]
        if self._task is None and self.total <= _FEW:
            return self._lowest_of_few(count)
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

    def _lowest_of_few(self, count: int) -> list[np.ndarray]:
        """Chooses as `lowest` does, by arrays of all scores."""
        scores = [v.astype(self._dtype, copy=False) for v, _ in self._weights]
        # Without a copy if there is but one.
        values = scores[0] if len(scores) == 1 else np.concatenate(scores)
        threshold = np.partition(values, count - 1)[count - 1]
        chosen = _up_to((values, None), threshold)
        excess = np.count_nonzero(chosen) - count
        if excess:
            below = _below((values, None), threshold)
            chosen[np.flatnonzero(chosen > below)[-excess:]] = False
        ends = np.cumsum([owner.size for _, owner in self._weights])
        return list(map(np.packbits, np.split(chosen, ends[:-1])))

    def _blocks(
        self, *weights: tuple[np.ndarray, np.ndarray], backwards: bool = False
    ) -> Iterator[_Block]:
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
        low, high = self._bracket(rank)
        while True:
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
            below = 0
            up_to = 0
            for block in self._blocks():
                below += np.count_nonzero(_below(block, found))
                up_to += np.count_nonzero(_up_to(block, found))
            if below < rank <= up_to:
                return found, up_to - rank
            # The sample has misled. Between these everything is found.
            low, high = self._extremes()

    def _bracket(self, rank: int) -> tuple[np.generic, np.generic]:
        """Estimates between which scores the one of a rank lies.

        A sample tells about where it is, and how far off that is tells how
        near the ends can be: at four standard deviations, which hardly ever
        fails.
        """
        lowest, highest = self._extremes()
        if self.size <= 16 * _SAMPLE:
            return lowest, highest
        generator = np.random.default_rng(0)
        sample = []
        for values, owner in self._weights:
            size = math.ceil(_SAMPLE / self.size * values.size)
            drawn = generator.integers(0, values.size, size)
            if self._task is not None:
                drawn = drawn[np.flatnonzero(owner[drawn] == self._task)]
            sample.append(values[drawn].astype(self._dtype, copy=False))
        sample = np.sort(np.concatenate(sample))
        if not sample.size:
            return lowest, highest
        scale = sample.size / self.size
        guess = sample[min(int(rank * scale), sample.size - 1)]
        middle = np.searchsorted(sample, guess, "right")
        found = sum(
            np.count_nonzero(_up_to(block, guess)) for block in self._blocks()
        )
        off = (rank - found) * scale
        margin = 4 * math.sqrt(abs(off) + 1)
        last = sample.size - 1
        low = min(math.floor(middle + off - margin) - 1, last)
        high = max(math.ceil(middle + off + margin), 0)
        return (
            sample[low] if low >= 0 else lowest,
            sample[high] if high <= last else highest,
        )

    def _extremes(self) -> tuple[np.generic, np.generic]:
        """Returns the lowest and the highest score there can be."""
        if self._dtype.kind == "f":
            return self._dtype.type(-np.inf), self._dtype.type(np.nan)
        limits = np.iinfo(self._dtype)
        return self._dtype.type(limits.min), self._dtype.type(limits.max)


def _below(block: _Block, limit: np.generic) -> np.ndarray:
    """Tells what ranks below a limit; not-a-number ranks highest."""
    values, owned = block
    found = values == values if limit != limit else values < limit
    return found if owned is None else np.logical_and(found, owned, out=found)


def _up_to(block: _Block, limit: np.generic) -> np.ndarray:
    """Tells what ranks no higher than a limit."""
    values, owned = block
    found = np.ones(values.shape, bool) if limit != limit else values <= limit
    return found if owned is None else np.logical_and(found, owned, out=found)


def _compared_as(dtype: np.dtype) -> np.dtype:
    """Widens what NumPy compares slowly, and bool, which has no limits."""
    if dtype.kind == "b":
        return np.dtype(np.uint8)
    if dtype.itemsize == 2 and dtype.kind not in "iu":
        return np.dtype(np.float32)
    return dtype
