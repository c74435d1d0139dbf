"""What sections hold: the values of a variable, and owner maps.

Entries are streamed in pieces by their flat index. Values are cut into pieces
of 4,194,304 entries, of which those that are written are coded by
`byte_planes`. An owner map is cut into blocks of 4,194,304 entries; each is the
length of its code as u32, then the code of `entropy_coding`.
"""

import math
import struct
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from packnet_tf import behind
from packnet_tf import byte_planes
from packnet_tf import entropy_coding
from packnet_tf import flat_values
from packnet_tf import ownership
from packnet_tf.pack_format import damaged
from packnet_tf.pack_reader import SectionReader
from packnet_tf.pack_writer import SectionWriter

_BLOCK = 1 << 22  # Entries of an owner map that are coded together.
# Entries whose values are coded together; two such pieces are in memory.
_PIECE = 1 << 22
_LENGTH = struct.Struct("<I")
# Entries picked by their positions at a time. NumPy picks by bools as well,
# but takes three times as long unless nearly all of them are the same.
_PICKED = 1 << 18


def write_values(
    section: SectionWriter,
    values: np.ndarray,
    stored: str,
    owner: np.ndarray | None = None,
    choose: Callable[[np.ndarray], np.ndarray] | None = None,
) -> None:
    """Writes values, in the order of their positions.

    Args:
        section: Where to write.
        values: Array of any shape.
        stored: The dtype in the file.
        owner: Its owner map, if only some are written.
        choose: From a piece of the owner map, which ones as bools.
    """
    values = values.reshape(-1)
    width = flat_values.itemsize(stored)

    def encode(start: int) -> list[bytes | memoryview]:
        piece = values[start : start + _PIECE]
        if owner is not None:
            chosen = choose(owner.reshape(-1)[start : start + _PIECE])
            piece = _pick(piece, chosen)
        return byte_planes.encode(flat_values.to_bytes(piece, stored), width)

    starts = ((start,) for start in range(0, values.size, _PIECE))
    for planes in behind.results(encode, starts, values.size > _PIECE):
        section.write(*planes)


def read_values(
    section: SectionReader,
    variable: keras.Variable,
    stored: str,
    owner: keras.Variable | None = None,
    choose: Callable[[np.ndarray], np.ndarray] | None = None,
    others: bool = False,
) -> None:
    """Reads what `write_values` wrote into a variable.

    Args:
        section: Where to read.
        variable: What to assign to.
        stored: The dtype in the file.
        owner: Its owner map, if only some are in the file.
        choose: As for `write_values`.
        others: Whether the entries that are not in the file keep their
            values. They are zero otherwise.

    Raises:
        FileError: If there are more or fewer.
    """
    width = flat_values.itemsize(stored)
    size = math.prod(variable.shape)

    def pieces() -> Iterator[tuple[Any, ...]]:
        for start in range(0, size, _PIECE):
            stop = min(start + _PIECE, size)
            chosen, count = None, stop - start
            if owner is not None:
                chosen = choose(flat_values.get(owner, start, stop))
                count = int(np.count_nonzero(chosen))
                if count == len(chosen):
                    chosen = None
            yield start, stop, chosen, count, _planes(section, count, width)

    def decode(
        start: int,
        stop: int,
        chosen: np.ndarray | None,
        count: int,
        planes: list[bytes],
    ) -> tuple[int, np.ndarray | None]:
        if others and not count:
            return start, None
        content = _numbers(planes, count)
        values = flat_values.from_bytes(content, stored, variable.dtype)
        if chosen is None:
            return start, values
        if others:
            piece = flat_values.get(variable, start, stop)
        else:
            piece = np.zeros(stop - start, values.dtype)
        _spread(values, chosen, piece)
        return start, piece

    # Not where entries are read too: what is read while it is assigned to is
    # copied as a whole.
    beside = size > _PIECE and not others
    for start, piece in behind.results(decode, pieces(), beside):
        if piece is not None:
            flat_values.put(variable, start, piece)
    section.finish()


def write_owners(
    section: SectionWriter,
    owner: np.ndarray,
    alphabet: int,
    to_letters: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> None:
    """Writes an owner map.

    Args:
        section: Where to write.
        owner: `uint8` array of any shape.
        alphabet: How many different letters there may be.
        to_letters: What of a block is written, `uint8` in and out.
    """
    owner = owner.reshape(-1)

    def encode(start: int) -> bytes:
        letters = to_letters(owner[start : start + _BLOCK])
        return entropy_coding.encode(letters, alphabet)

    starts = ((start,) for start in range(0, owner.size, _BLOCK))
    for code in behind.results(encode, starts, owner.size > _BLOCK):
        section.write(_LENGTH.pack(len(code)), code)


def read_owners(
    section: SectionReader,
    owner: keras.Variable,
    alphabet: int,
    task: int | None = None,
) -> None:
    """Reads an owner map into a variable.

    Args:
        section: Where to read.
        owner: The owner map.
        alphabet: As for `write_owners`.
        task: `None` to read all of it; or the number of a task, to give it
            those of the free entries that have a 1, and to leave the others.

    Raises:
        FileError: If what is there is no owner map of this size.
    """
    size = math.prod(owner.shape)
    for start in range(0, size, _BLOCK):
        stop = min(start + _BLOCK, size)
        if task is None:
            block = _read_letters(section, stop - start, alphabet)
        else:
            block = flat_values.get(owner, start, stop)
            free = np.flatnonzero(block == ownership.FREE)
            letters = _read_letters(section, free.size, alphabet)
            block[free[letters.view(bool)]] = task
        flat_values.put(owner, start, block)
    section.finish()


def _pick(piece: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Does what `piece[chosen]` does, without a copy of all of it."""
    count = int(np.count_nonzero(chosen))
    if count == piece.size:
        return piece
    values, done = np.empty(count, piece.dtype), 0
    for start in range(0, piece.size, _PICKED):
        places = chosen[start : start + _PICKED].nonzero()[0]
        out = values[done : done + len(places)]
        # Never out of range, and to wrap is faster than to check.
        piece[start : start + _PICKED].take(places, out=out, mode="wrap")
        done += len(places)
    return values


def _spread(values: np.ndarray, chosen: np.ndarray, piece: np.ndarray) -> None:
    """Does what `piece[chosen] = values` does."""
    done = 0
    for start in range(0, piece.size, _PICKED):
        places = chosen[start : start + _PICKED].nonzero()[0]
        part = values[done : done + len(places)]
        piece[start : start + _PICKED][places] = part
        done += len(places)


def _planes(section: SectionReader, count: int, width: int) -> list[bytes]:
    try:
        return byte_planes.read(section.read, count, width)
    except ValueError as error:
        raise damaged("values cannot be read", str(error)) from error


def _numbers(planes: list[bytes], count: int) -> memoryview:
    try:
        return byte_planes.decode(planes, count)
    except ValueError as error:
        raise damaged("values cannot be read", str(error)) from error


def _read_letters(
    section: SectionReader, size: int, alphabet: int
) -> np.ndarray:
    (length,) = _LENGTH.unpack(section.read(_LENGTH.size))
    try:
        return entropy_coding.decode(section.read(length), size, alphabet)
    except ValueError as error:
        raise damaged("an owner map cannot be read", str(error)) from error
