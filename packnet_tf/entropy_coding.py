"""Codes arrays of small numbers, such as owner maps, close to their entropy.

A range variant of asymmetric numeral systems (Duda, 2013, arXiv 1311.2540) in
many lanes side by side, so that NumPy does the work. docs/pack_format.md has
the code byte by byte. An array that is longer than a block has several, one
behind the other. Frequencies come from integers alone, so that they are the
same everywhere.
"""

import math
import struct
import threading

import numpy as np

_BLOCK = 6 << 20  # Entries, which bounds the memory.
_MANY = 1 << 17  # Entries from which on they are counted by pairs.
_BITS = 16
_TOTAL = 1 << _BITS
_LOWEST = 1 << 16  # A state is at least this, and less than 2^32.
_HALF = np.uint32(16)  # The bits in half a state.
_LOWER = np.uint32(0xFFFF)
# A lane costs a state of 32 bits, a row about ten microseconds. A large array
# gets a lane for so many bits; a small one more, so that its rows are few. One
# of millions of groups gets one for so many of them: its rows are so long that
# threads do not hold each other up.
_BITS_PER_LANE = 4096
_LEAST_PER_LANE = 1024
_MILLIONS = 1 << 21
_GROUPS_PER_LANE = 256
_MAX_LANES = 1 << 14
_MAX_ROWS = 1 << 11  # Which bounds the time.
# A row is a dozen short calls of NumPy. Two threads that make them do little
# but hand Python's lock to each other; beside one, others do longer work.
_ALONE = threading.Lock()


def entropy(counts: np.ndarray) -> float:
    """Returns the entropy of an array by how often each number is in it.

    Args:
        counts: Non-negative integers.

    Returns:
        The bits of the whole array, if each entry is coded by itself with the
        frequencies given.
    """
    counts = np.asarray(counts, np.float64)
    counts = counts[counts > 0]
    return float((counts * np.log2(counts.sum() / counts)).sum())


def count(symbols: np.ndarray) -> np.ndarray:
    """Counts how often each number occurs.

    Args:
        symbols: `uint8` array of shape `(size,)`.

    Returns:
        `int64` array of shape `(256,)`.
    """
    if len(symbols) < _MANY:
        return np.bincount(symbols, minlength=256)
    # Which takes a third of the time.
    even = len(symbols) // 2 * 2
    pairs = np.ascontiguousarray(symbols[:even]).view(np.uint16)
    found = np.zeros(1 << 16, np.int64)
    for start in range(0, len(pairs), _MANY):
        found += np.bincount(pairs[start : start + _MANY], minlength=1 << 16)
    found = found.reshape(256, 256)
    rest = np.bincount(symbols[even:], minlength=256)
    return found.sum(axis=0) + found.sum(axis=1) + rest


def encode(symbols: np.ndarray, alphabet: int) -> bytes:
    """Codes an array.

    Args:
        symbols: `uint8` array of shape `(size,)` of numbers below `alphabet`.
        alphabet: How many numbers there are, 1 to 256.

    Returns:
        What `decode` takes.

    Raises:
        ValueError: If a number is not below `alphabet`.
    """
    _check_alphabet(alphabet)
    parts = []
    for start in range(0, len(symbols), _BLOCK):
        block = symbols[start : start + _BLOCK]
        counts = count(block)
        most = int(counts.nonzero()[0][-1])
        if most >= alphabet:
            raise ValueError(f"{most} in an alphabet of {alphabet}")
        parts += _encode_block(block, counts[:alphabet])
    return b"".join(parts)


def decode(content: bytes, size: int, alphabet: int) -> np.ndarray:
    """Decodes what `encode` returned.

    Args:
        content: Bytes, which may come from a file that is not trusted.
        size: How many entries there are. The memory taken follows from it.
        alphabet: As for `encode`.

    Returns:
        `uint8` array of shape `(size,)`.

    Raises:
        ValueError: If the content is not what `encode` returns for an array
            of this size.
    """
    _check_alphabet(alphabet)
    symbols = np.empty(size, np.uint8)
    reader = _Reader(content)
    for start in range(0, size, _BLOCK):
        _decode_block(reader, symbols[start : start + _BLOCK], alphabet)
    if reader.place != len(content):
        raise ValueError(f"{len(content) - reader.place} bytes too many")
    return symbols


class _Reader:
    """Takes arrays out of bytes, and never more than there are."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.place = 0

    def take(self, dtype: str, count: int) -> np.ndarray:
        size = count * np.dtype(dtype).itemsize
        if size > len(self._content) - self.place:
            raise ValueError(f"cut off in byte {self.place}")
        values = np.frombuffer(self._content, dtype, count, self.place)
        self.place += size
        return values


def _check_alphabet(alphabet: int) -> None:
    if not 1 <= alphabet <= 256:
        raise ValueError(f"an alphabet of {alphabet}, expected 1 to 256")


def _encode_block(block: np.ndarray, counts: np.ndarray) -> list[bytes]:
    head = counts.astype("<u4").tobytes()
    if np.count_nonzero(counts) == 1:
        return [struct.pack("<H", 0), head]
    model = _Model(counts)
    groups = model.group(block)
    lanes = _lanes(len(groups), entropy(counts))
    rows = np.full((-(-len(groups) // lanes), lanes), model.filling, np.uint8)
    rows.ravel()[: len(groups)] = groups
    with _ALONE:
        states, words = _encode_rows(rows, model)
    coded = np.concatenate(words[::-1])
    return [
        struct.pack("<H", lanes),
        head,
        states.astype("<u4").tobytes(),
        struct.pack("<I", len(coded)),
        coded.tobytes(),
    ]


def _encode_rows(
    rows: np.ndarray, model: "_Model"
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Codes the groups of all lanes, from the last row to the first.

    Returns:
        The states in the end, and the words of each row, the last row's first.
    """
    states = np.full(rows.shape[1], _LOWEST, np.uint32)
    places = np.empty(len(states), np.intp)
    of_groups = model.frequencies << _HALF | model.starts
    frequencies, starts, scratch = (np.empty_like(states) for _ in range(3))
    words = []
    for row in rows[::-1]:
        places[:] = row
        of_groups.take(places, out=starts, mode="wrap")
        np.right_shift(starts, _HALF, out=frequencies)
        starts &= _LOWER
        # A state that would grow beyond 32 bits sheds its lower half first.
        np.left_shift(frequencies, _HALF, out=scratch)
        full = (states >= scratch).nonzero()[0]
        shed = states[full]
        words.append(shed.astype("<u2"))
        states[full] = shed >> _HALF
        np.floor_divide(states, frequencies, out=scratch)
        np.subtract(_TOTAL, frequencies, out=frequencies)
        scratch *= frequencies
        states += scratch
        states += starts
    return states, words


def _decode_block(reader: _Reader, block: np.ndarray, alphabet: int) -> None:
    (lanes,) = reader.take("<u2", 1).tolist()
    counts = reader.take("<u4", alphabet).astype(np.int64)
    if counts.sum() != len(block):
        raise ValueError(f"counts of {counts.sum()} entries of {len(block)}")
    if np.count_nonzero(counts) == 1:
        if lanes:
            raise ValueError(f"{lanes} lanes for entries that are all the same")
        block[:] = counts.argmax()
        return
    model = _Model(counts)
    size = -(-len(block) // model.letters)
    if not size <= lanes * _MAX_ROWS <= _MAX_LANES * _MAX_ROWS:
        raise ValueError(f"{lanes} lanes for {size} groups")
    states = reader.take("<u4", lanes).astype(np.uint32)
    (length,) = reader.take("<u4", 1).tolist()
    words = reader.take("<u2", length)
    groups = np.empty((-(-size // lanes), lanes), np.uint8)
    with _ALONE:
        _decode_rows(groups, states, words, model)
    groups = groups.ravel()
    if (groups[size:] != model.filling).any():
        raise ValueError("lanes that are not filled up")
    model.ungroup(groups[:size], block)


def _decode_rows(
    rows: np.ndarray, states: np.ndarray, words: np.ndarray, model: "_Model"
) -> None:
    """Decodes the groups of all lanes.

    Args:
        rows: `uint8` array of shape `(rows, lanes)` for the groups.
        states: `uint32` array of shape `(lanes,)`; they are changed.
        words: `uint16` array.
        model: The groups.

    Raises:
        ValueError: If there are too few words, or too many.
    """
    of_slot = np.repeat(
        np.arange(len(model.frequencies), dtype=np.uint8), model.frequencies
    )
    # By the lower half of a state: how much of the range its group has, and
    # how far within that it is.
    parts = (model.frequencies << _HALF) - model.starts
    parts = np.repeat(parts, model.frequencies)
    parts += np.arange(_TOTAL, dtype=np.uint32)
    places = np.empty(len(states), np.intp)
    found, widths = np.empty_like(states), np.empty_like(states)
    place = 0
    for row in rows:
        np.bitwise_and(states, _LOWER, out=places)
        of_slot.take(places, out=row, mode="wrap")
        # Never out of range, and to wrap is faster than to check.
        parts.take(places, out=found, mode="wrap")
        np.right_shift(found, _HALF, out=widths)
        found &= _LOWER
        states >>= _HALF
        states *= widths
        states += found
        low = (states < _LOWEST).nonzero()[0]
        more = words[place : place + len(low)]
        if len(more) < len(low):
            raise ValueError("too few words")
        states[low] = states[low] << _HALF | more
        place += len(low)
    if place != len(words) or (states != _LOWEST).any():
        raise ValueError("words that do not end where they began")


def _lanes(groups: int, bits: float) -> int:
    """Returns the number of lanes for so many groups of so many bits."""
    lanes = max(
        min(math.sqrt(groups) / 4, bits / _LEAST_PER_LANE),
        bits / _BITS_PER_LANE,
        groups / (_MAX_ROWS if groups < _MILLIONS else _GROUPS_PER_LANE),
    )
    return min(math.ceil(lanes), _MAX_LANES)


class _Model:
    """What the groups of a block are, and how frequent.

    Args:
        counts: How often each letter occurs; at least two do.

    Attributes:
        letters: How many make a group.
        filling: The group that fills lanes up.
        frequencies: `uint32`, of each group in units of 2^-16, 1 at least.
        starts: `uint32`, the sum of those before it.
    """

    def __init__(self, counts: np.ndarray) -> None:
        self._present = np.flatnonzero(counts).astype(np.uint8)
        self._counts = counts[self._present]
        self._most = int(self._counts.argmax())
        kinds = len(self._present)
        self.letters = 1
        while kinds ** (self.letters + 1) <= 256:
            self.letters += 1
        # Python's integers, which do not overflow.
        of_letters = self._counts.tolist()
        products = [1]
        for _ in range(self.letters):
            products = [p * c for p in products for c in of_letters]
        self.filling = sum(
            self._most * kinds**place for place in range(self.letters)
        )
        room, whole = _TOTAL - len(products), sum(products)
        shares = np.array([1 + p * room // whole for p in products], np.uint32)
        # What rounding down has left goes to the most frequent.
        shares[self.filling] += np.uint32(_TOTAL - shares.sum())
        self.frequencies = shares
        self.starts = np.cumsum(shares, dtype=np.uint32) - shares

    def group(self, block: np.ndarray) -> np.ndarray:
        """Takes entries together, `uint8` in and out."""
        place = np.zeros(256, np.uint8)
        place[self._present] = np.arange(len(self._present))
        entries = np.full(
            -(-len(block) // self.letters) * self.letters, self._most, np.uint8
        )
        entries[: len(block)] = _translate(block, place)
        columns = entries.reshape(-1, self.letters)
        groups = columns[:, 0].copy()
        for column in range(1, self.letters):
            groups *= np.uint8(len(self._present))
            groups += columns[:, column]
        return groups

    def ungroup(self, groups: np.ndarray, out: np.ndarray) -> None:
        """Takes groups apart into entries, without those that filled up.

        Args:
            groups: `uint8` array.
            out: `uint8` array for the entries.

        Raises:
            ValueError: If the entries are not as many of each as counted, or
                those that filled up are others.
        """
        kinds = len(self._present)
        powers = kinds ** np.arange(self.letters)[::-1]
        places = np.arange(kinds**self.letters)[:, np.newaxis] // powers % kinds
        if self.letters == 1:
            entries = _translate(groups, self._present)
        else:
            letters = self._present[places]
            entries = letters.take(groups, axis=0, mode="wrap").ravel()
        if (entries[len(out) :] != self._present[self._most]).any():
            raise ValueError("a last group that is not filled up")
        found = np.zeros(kinds, np.int64)
        of_groups = count(groups)[: len(places), np.newaxis]
        np.add.at(found, places, of_groups)
        found[self._most] -= len(entries) - len(out)
        if (found != self._counts).any():
            raise ValueError("entries that are not as many as counted")
        out[:] = entries[: len(out)]


def _translate(symbols: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Looks numbers up, faster than NumPy does for single bytes."""
    table = table.tobytes().ljust(256, b"\0")
    return np.frombuffer(symbols.tobytes().translate(table), np.uint8)
