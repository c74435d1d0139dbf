"""How many entries of a variable differ, told from a sketch of it.

A sketch stands in for a copy of the variable. Position and value of each entry
are hashed, and the hashes summed in cells. The position picks the cell: level
0 has three quarters of the entries, each level after it a quarter of the one
before, the last the rest. An entry that changes changes its cell, so the
number of cells that differ tells how many entries do: few by the lower levels,
many by the higher ones, where cells are still left that agree. A variable of
few entries has a cell per entry.
"""

import base64
import dataclasses
import math
from typing import Any

import numpy as np

from packnet_tf.errors import ArgumentError

_CHUNK = 1 << 16  # Entries hashed at a time, which fit into a cache.
_MAX_SIZE = 1 << 48  # Bits of a hash are left for every level up to this.
_CELLS = 128  # Per level.
_SEEN = 255 / 256  # Of the cells that differ; the sums of the others agree.
_TESTED = 4000  # Numbers that an estimate chooses from.


@dataclasses.dataclass(frozen=True)
class Sketch:
    """What is kept of a variable, or of the entries that a task owns of it.

    Attributes:
        shape: The variable's shape.
        dtype: The name of its dtype.
        entries: How many entries were hashed.
        cells: The sums. Two bytes each, the lower first, where each entry has
            a cell; one byte each where entries share them.
    """

    shape: tuple[int, ...]
    dtype: str
    entries: int
    cells: bytes

    def __post_init__(self) -> None:
        if not (
            isinstance(self.shape, tuple)
            and all(_is_count(side) for side in self.shape)
            and math.prod(self.shape) < _MAX_SIZE
            and isinstance(self.dtype, str)
            and _is_count(self.entries)
            and self.entries <= math.prod(self.shape)
            and isinstance(self.cells, bytes)
            and len(self.cells) == _byte_count(math.prod(self.shape))
        ):
            raise ArgumentError(
                "A sketch has as many cells as the variable's shape asks for, "
                "and no more entries than the variable. Go back to a file "
                f"that is whole. Received: shape={str(self.shape)[:80]}, "
                f"dtype={str(self.dtype)[:80]}, "
                f"entries={str(self.entries)[:80]}, "
                f"{type(self.cells).__name__} of cells"
            )

    def to_config(self) -> dict[str, Any]:
        """Returns the sketch as a dict that JSON can hold."""
        return {
            "shape": list(self.shape),
            "dtype": self.dtype,
            "entries": self.entries,
            "cells": base64.b64encode(self.cells).decode("ascii"),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Sketch":
        """Makes a sketch from what `to_config` returned.

        Args:
            config: A dict, which may come from a file that is not trusted.

        Returns:
            The sketch.

        Raises:
            ArgumentError: If it is anything else than a sketch.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        if (
            not isinstance(config, dict)
            or set(config) != set(names)
            or not isinstance(config["shape"], list)
            or not isinstance(config["cells"], str)
        ):
            raise ArgumentError(
                f"A sketch is a dict of {names}. Go back to a file that is "
                f"whole. Received: {str(config)[:80]}"
            )
        try:
            cells = base64.b64decode(config["cells"], validate=True)
        except ValueError as error:
            raise ArgumentError(
                "The cells of a sketch are base64. Go back to a file that is "
                f"whole. Received: cells={config['cells'][:80]!r}"
            ) from error
        return cls(
            tuple(config["shape"]), config["dtype"], config["entries"], cells
        )


def sketch(
    value: np.ndarray, owner: np.ndarray | None = None, task: int = 1
) -> Sketch:
    """Makes a sketch of an array, or of the entries that a task owns of it.

    Args:
        value: Array of any shape, of a dtype of 1, 2, 4 or 8 bytes. Values
            count as bits: zeros of both signs differ, and so do NaN.
        owner: Its `uint8` owner map; all entries count without one.
        task: Whose entries count, if there is an owner map.

    Returns:
        The sketch.
    """
    value = np.asarray(value)
    shape, dtype, size = value.shape, value.dtype.name, value.size
    native = value.astype(value.dtype.newbyteorder("="), copy=False)
    bits = native.reshape(-1).view(f"u{value.itemsize}")
    owners = None if owner is None else np.asarray(owner).reshape(-1)
    exact, levels = size <= _CELLS, _level_count(size)
    sums = np.zeros(size if exact else levels * _CELLS, np.uint64)
    entries = 0
    for start in range(0, size, _CHUNK):
        chosen = bits[start : start + _CHUNK]
        if owners is None:
            places = np.arange(start, start + chosen.size, dtype=np.uint64)
        else:
            mine = np.flatnonzero(owners[start : start + _CHUNK] == task)
            chosen = chosen[mine]
            places = mine.astype(np.uint64) + np.uint64(start)
        entries += chosen.size
        cells, hashes = _hash(places, chosen, levels)
        if exact:
            cells = places.view(np.int64)
        # Sums of 2**16 hashes of 16 bits are exact as floats.
        totals = np.bincount(cells, hashes, sums.size)
        sums += totals.astype(np.uint64)
    width = _width(size)
    cells = (sums & np.uint64(256**width - 1)).astype(f"<u{width}").tobytes()
    return Sketch(shape, dtype, entries, cells)


def count(before: Sketch, after: Sketch) -> int:
    """Tells how many entries differ between two arrays that are not the same.

    Args:
        before: The sketch of the one.
        after: The sketch of the other, of the same shape and dtype.

    Returns:
        A number of at least 1; exactly 1 if one entry differs. Up to 128
        entries of an array it is as good as exact, beyond that an estimate:
        nearly exact for a handful, else within some 8 % (standard error).
    """
    size = math.prod(before.shape)
    width = _width(size)
    one, other = (
        np.frombuffer(each.cells, f"<u{width}") for each in (before, after)
    )
    lowest = max(1, abs(before.entries - after.entries))
    highest = max(lowest, min(before.entries + after.entries, size))
    differ = one != other
    if size <= _CELLS:
        return min(max(lowest, np.count_nonzero(differ)), highest)
    levels = _level_count(size)
    numbers = np.unique(np.rint(np.geomspace(lowest, highest, _TESTED)))
    likelihood = np.zeros(numbers.size)
    for level, row in enumerate(differ.reshape(levels, _CELLS)):
        share = 0.25**level * (0.75 if level < levels - 1 else 1) / _CELLS
        chance = -np.expm1(numbers * np.log1p(-share)) * _SEEN
        changed = np.count_nonzero(row)
        likelihood += changed * np.log(chance)
        likelihood += (_CELLS - changed) * np.log1p(-chance)
    return int(numbers[np.argmax(likelihood)])


def describe(before: Sketch, after: Sketch) -> str:
    """Says how two arrays differ that are not the same.

    Args:
        before: The sketch of the array as it was.
        after: Its sketch now.

    Returns:
        `"in about 1,200 entries of 5,000"`, or what else there is to say, to
        stand behind the array's name.
    """
    for name in ("shape", "dtype"):
        was, now = getattr(before, name), getattr(after, name)
        if was != now:
            return f"whose {name} was {was} and is {now} now"
    number = count(before, after)
    text = "1 entry" if number == 1 else f"{number:,} entries"
    if number > 1 and math.prod(before.shape) > _CELLS:
        # Two digits: the estimate is not better than that.
        rounded = round(number, min(0, 2 - len(str(number))))
        limit = before.entries + after.entries
        text = f"about {min(rounded, limit, math.prod(before.shape)):,} entries"
    if before.entries != after.entries:
        return (
            f"in {text}: the task owned {before.entries:,} and owns "
            f"{after.entries:,} now"
        )
    return f"in {text} of {before.entries:,}"


def _hash(
    places: np.ndarray, bits: np.ndarray, levels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Hashes entries, given by `uint64` positions and their bits.

    Returns:
        The cell of each by its position, and a hash of 16 bits.
    """
    picks = _mix(places + np.uint64(1))
    hashes = _mix(picks ^ bits) >> np.uint64(48)
    # Each pair of zeros that the upper 52 bits begin with is a level up. As a
    # float they are exact, and its exponent tells how many zeros there are.
    floats = (picks >> np.uint64(12)).astype(np.float64)
    zeros = 1074 - (floats.view(np.int64) >> 52)
    cells = np.minimum(zeros >> 1, levels - 1) * _CELLS
    cells += (picks & np.uint64(_CELLS - 1)).view(np.int64)
    return cells, hashes


def _mix(numbers: np.ndarray) -> np.ndarray:
    """Maps `uint64` one to one so that each bit depends on all bits.

    Shifts and products as in MurmurHash3's last step.
    """
    numbers = numbers ^ (numbers >> np.uint64(32))
    numbers *= np.uint64(0xFF51AFD7ED558CCD)
    numbers ^= numbers >> np.uint64(32)
    numbers *= np.uint64(0xC4CEB9FE1A85EC53)
    numbers ^= numbers >> np.uint64(32)
    return numbers


def _level_count(size: int) -> int:
    """Returns how many levels tell apart all numbers up to a size."""
    levels = 1
    while 2 * _CELLS * 4 ** (levels - 1) < size:
        levels += 1
    return levels


def _width(size: int) -> int:
    """Returns how many bytes a cell has."""
    return 2 if size <= _CELLS else 1


def _byte_count(size: int) -> int:
    """Returns how many bytes all cells have."""
    cells = size if size <= _CELLS else _level_count(size) * _CELLS
    return cells * _width(size)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
