"""Looking at an HDF5 file before the HDF5 library does.

The library is written for files that are whole: on a damaged one it may crash
the process or never return. Of the format only that is taken which h5py
writes for the weights of a Keras model: groups, small attributes, and arrays
in one piece. All of it has its place, and no two things share a byte.

The format is told in "HDF5 File Format Specification", version 3: superblock
0, object headers 1, groups as symbol tables.
"""

import itertools
import math
import struct
from typing import BinaryIO

import h5py
import ml_dtypes
import numpy as np

_UNDEFINED = 2**64 - 1
_SUPERBLOCK = struct.Struct("<8s8B2HI4Q")
_SYMBOL = struct.Struct("<QQII16s")
_HEADER = struct.Struct("<BBHII")
_MESSAGE = struct.Struct("<HHB3s")
_TREE = struct.Struct("<4sBBHQQ")
_HEAP = struct.Struct("<4sB3sQQQ")
_LEAF, _INTERNAL = 8, 32  # Entries of a symbol node, children of a tree node.
_MAX_DEPTH = 64
_MAX_HEADER = 2**16
_MAX_NAME = 2**12


def _encode(dtype: object) -> bytes:
    """Returns what h5py writes for a dtype, without the library's prefix."""
    return h5py.h5t.py_create(np.dtype(dtype), logical=True).encode()[2:]


_DTYPES = {
    _encode(dtype): np.dtype(dtype).itemsize
    for dtype in (
        "bool",
        *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
        "float16",
        "float32",
        "float64",
        ml_dtypes.bfloat16,
    )
}
_TEXT = _encode(h5py.string_dtype())
_TEXT = _TEXT[:4] + struct.pack("<I", 16) + _TEXT[8:]  # In a file, not memory.
_SCALAR = bytes([1, 0, 0, 0, 0, 0, 0, 0])
_FILL = bytes([2, 2, 2, 1, 0, 0, 0, 0])  # None, zeros on demand.


def check(file: BinaryIO, start: int = 0, size: int | None = None) -> int:
    """Checks that an HDF5 file is what h5py writes for a Keras model.

    The arrays themselves are not read.

    Args:
        file: A file that can be read and sought.
        start: Where in it the HDF5 file begins.
        size: How many bytes it has. Defaults to all that follow.

    Returns:
        How many bytes its arrays have.

    Raises:
        ValueError: If it is anything else, or damaged.
    """
    if size is None:
        size = file.seek(0, 2) - start
    return _Walk(file, start, size).walk()


class _Walk:
    """One walk through a file; every address in it is relative to a start."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self.file, self.start, self.size = file, start, size
        self.taken: list[tuple[int, int]] = []
        self.heaps: dict[int, dict[int, int]] = {}
        self.objects = 0
        self.bytes = 0

    def walk(self) -> int:
        fields = self.unpack(_SUPERBLOCK, 0)
        *head, eof, driver = fields
        _expect(
            head
            == [
                b"\x89HDF\r\n\x1a\n",
                *(0, 0, 0, 0, 0, 8, 8, 0),
                *(_LEAF // 2, _INTERNAL // 2, 0),
                *(0, _UNDEFINED),
            ]
            and driver == _UNDEFINED,
            "its beginning is of another version",
        )
        _expect(eof == self.size, f"it is said to have {eof} bytes")
        left = [(self.symbol(_SUPERBLOCK.size)[1:], 0)]
        while left:
            (address, cached), depth = left.pop()
            _expect(depth <= _MAX_DEPTH, "its groups are nested too deep")
            left.extend(
                (entry, depth + 1) for entry in self.object(address, cached)
            )
        self.taken.sort()
        for (_, end), (begin, _) in itertools.pairwise(self.taken):
            _expect(end <= begin, f"two things share the byte {begin}")
        return self.bytes

    # Bytes.

    def read(self, address: int, size: int) -> bytes:
        _expect(
            address + size <= self.size,
            f"it leads to byte {address + size}, which it has not",
        )
        self.file.seek(self.start + address)
        content = self.file.read(size)
        _expect(len(content) == size, "it is cut off")
        return content

    def unpack(self, layout: struct.Struct, address: int) -> tuple:
        return layout.unpack(self.read(address, layout.size))

    def take(self, address: int, size: int) -> None:
        """Notes that these bytes have their use."""
        _expect(
            address + size <= self.size,
            f"it leads to byte {address + size}, which it has not",
        )
        self.taken.append((address, address + size))

    # Objects.

    def symbol(self, address: int) -> tuple[int, int, "bytes | None"]:
        """Reads an entry that names an object: name, header, cached table."""
        name, header, cache, zero, scratch = self.unpack(_SYMBOL, address)
        _expect(cache in (0, 1) and not zero, "it holds a link")
        return name, header, scratch if cache else None

    def object(
        self, address: int, cached: "bytes | None"
    ) -> "list[tuple[int, bytes | None]]":
        """Reads a group or an array; returns what is in a group."""
        self.objects += 1
        _expect(
            self.objects <= 2**16 + self.size // 512, "it holds too many things"
        )
        messages = self.messages(address)
        kinds = [kind for kind, _ in messages]
        found = dict(messages)
        for kind, body in messages:
            if kind == 0x0C:
                self.attribute(body)
        rest = sorted(kind for kind in kinds if kind not in (0x00, 0x0C))
        if rest == [0x11]:
            table = found[0x11]
            _expect(
                len(table) == 16 and cached in (None, table),
                "a group has two tables",
            )
            return self.group(*struct.unpack("<QQ", table))
        _expect(
            rest == [0x01, 0x03, 0x05, 0x08] and cached is None,
            f"it holds something that is no plain array: {rest}",
        )
        self.array(found[0x01], found[0x03], found[0x05], found[0x08])
        return []

    def messages(self, address: int) -> list[tuple[int, bytes]]:
        version, zero, count, links, size = self.unpack(_HEADER, address)
        _expect((version, zero) == (1, 0), "a header is of another version")
        _expect(links == 1, "a thing has several names")
        self.take(address, 16)
        blocks, found, total = [(address + 16, size)], [], 0
        while blocks:
            begin, size = blocks.pop()
            total += size
            _expect(total <= _MAX_HEADER, "a header is too large")
            self.take(begin, size)
            content, at = self.read(begin, size), 0
            while at < size:
                _expect(at + 8 <= size, "a header is cut off")
                kind, length, flags, zero = _MESSAGE.unpack_from(content, at)
                body = content[at + 8 : at + 8 + length]
                _expect(
                    len(body) == length and length % 8 == 0,
                    "a header is cut off",
                )
                _expect(flags in (0, 1) and zero == bytes(3), "it shares parts")
                if kind == 0x10:
                    _expect(length == 16, "a header goes on nowhere")
                    blocks.append(struct.unpack("<QQ", body))
                    kind = 0x00
                found.append((kind, body))
                at += 8 + length
        _expect(len(found) == count, "a header has other parts than it says")
        return found

    def attribute(self, body: bytes) -> None:
        """Checks an attribute, which is a short text."""
        _expect(len(body) >= 8, "an attribute is cut off")
        version, zero, *sizes = struct.unpack_from("<BBHHH", body)
        _expect((version, zero) == (1, 0), "an attribute is of another version")
        parts, at = [], 8
        for size in sizes:
            parts.append(body[at : at + size])
            at += -(-size // 8) * 8
        name, dtype, space = parts
        value = body[at : at + 16]
        _expect(
            name[-1:] == b"\0"
            and name.find(b"\0") == len(name) - 1 > 0
            and dtype == _TEXT
            and space == _SCALAR
            and len(value) == 16,
            "an attribute is no text",
        )
        length, address, index = struct.unpack("<IQI", value)
        if address in (0, _UNDEFINED) and length == 0:
            return
        if address not in self.heaps:
            self.heaps[address] = self.global_heap(address)
        _expect(
            self.heaps[address].get(index) == length,
            "an attribute leads nowhere",
        )

    def global_heap(self, address: int) -> dict[int, int]:
        """Reads a heap of texts: the size of each, by its index."""
        mark, version, _, size = self.unpack(struct.Struct("<4sB3sQ"), address)
        _expect(
            (mark, version) == (b"GCOL", 1) and 16 <= size <= 2**20,
            "a heap of texts is none",
        )
        self.take(address, size)
        content, at, found = self.read(address, size), 16, {}
        while at + 16 <= size:
            index, _, _, length = struct.unpack_from("<HHIQ", content, at)
            if not index:
                _expect(at + length == size, "a heap of texts has a gap")
                return found
            _expect(index not in found, "a heap of texts has one twice")
            found[index] = length
            at += 16 + -(-length // 8) * 8
        _expect(at <= size, "a heap of texts is cut off")
        return found

    # Arrays.

    def array(
        self, space: bytes, dtype: bytes, fill: bytes, layout: bytes
    ) -> None:
        _expect(fill[:8] == _FILL, "an array has a value to fill it")
        _expect(len(space) >= 8, "a shape is cut off")
        version, rank, flags, *zero = space[:8]
        wanted = 8 + 8 * rank * (2 if flags else 1)
        _expect(
            version == 1
            and flags == (1 if rank else 0)
            and rank <= 16
            and not any(zero)
            and len(space) == wanted,
            "a shape is of another version",
        )
        sizes = struct.unpack(f"<{(wanted - 8) // 8}Q", space[8:])
        shape = sizes[:rank]
        _expect(sizes[rank:] == shape, "an array could grow")
        itemsize = next(
            (
                itemsize
                for known, itemsize in _DTYPES.items()
                if dtype == known + bytes(-len(known) % 8)
            ),
            None,
        )
        _expect(itemsize, "an array is of another dtype")
        _expect(len(layout) == 24, "an array is in pieces")
        version, kind, address, size, zero = struct.unpack("<BBQQ6s", layout)
        _expect(
            (version, kind, zero) == (3, 1, bytes(6)), "an array is in pieces"
        )
        _expect(
            size == math.prod(shape) * itemsize,
            f"an array of shape {shape} has {size} bytes",
        )
        if size:
            self.take(address, size)
            self.bytes += size
        else:
            _expect(address == _UNDEFINED, "an empty array is somewhere")

    # Groups.

    def group(self, tree: int, heap: int) -> "list[tuple[int, bytes | None]]":
        mark, version, zero, size, free, data = self.unpack(_HEAP, heap)
        _expect(
            (mark, version, zero) == (b"HEAP", 0, bytes(3)) and size <= 2**24,
            "the names of a group are none",
        )
        self.take(heap, _HEAP.size)
        self.take(data, size)
        texts = self.read(data, size)
        self.free_list(texts, free)
        entries = self.tree(tree, texts)
        names = [_text(texts, name) for name, _, _ in entries]
        _expect(
            all(one < other for one, other in itertools.pairwise(names))
            and not any(
                name in (b"", b".", b"..") or b"/" in name for name in names
            ),
            "the names of a group are not in order",
        )
        return [entry[1:] for entry in entries]

    def free_list(self, texts: bytes, at: int) -> None:
        """Checks the places between names that hold none."""
        last = -1
        while at not in (1, _UNDEFINED):
            _expect(
                last < at <= len(texts) - 16 and at % 8 == 0,
                "the names of a group are cut off",
            )
            last = at
            at, size = struct.unpack_from("<QQ", texts, at)
            _expect(
                16 <= size <= len(texts) - last,
                "the names of a group are cut off",
            )

    def tree(
        self, root: int, texts: bytes
    ) -> "list[tuple[int, int, bytes | None]]":
        """Reads the entries of a group, in order."""
        entries: list[tuple[int, int, bytes | None]] = []
        left: list[tuple[int, int | None, bytes, bytes | None]]
        left = [(root, None, b"", None)]
        levels: dict[int, list[tuple[int, int, int]]] = {}
        while left:
            address, level, low, high = left.pop()
            if level == -1:
                found = self.symbol_node(address)
                names = [_text(texts, name) for name, _, _ in found]
                _expect(
                    all(low < name <= high for name in names),
                    "a group is out of order",
                )
                entries += found
                continue
            mark, kind, own, count, *sides = self.unpack(_TREE, address)
            levels.setdefault(own, []).append((address, *sides))
            _expect(
                (mark, kind) == (b"TREE", 0)
                and (level is None or own == level)
                and own <= 8
                and count <= _INTERNAL,
                "a group has no such tree",
            )
            self.take(address, _TREE.size + 8 * (2 * _INTERNAL + 1))
            pairs = struct.unpack(
                f"<{2 * count + 1}Q",
                self.read(address + _TREE.size, 8 * (2 * count + 1)),
            )
            keys = [_text(texts, key) for key in pairs[::2]]
            _expect(
                (level is None and not count)
                or all(one < other for one, other in itertools.pairwise(keys)),
                "a group is out of order",
            )
            _expect(
                level is None or (keys[0] >= low and keys[-1] <= high),
                "a group is out of order",
            )
            left += reversed(
                list(zip(pairs[1::2], [own - 1] * count, keys, keys[1:]))
            )
        for nodes in levels.values():
            # The library walks along these, too.
            places = [_UNDEFINED, *(node[0] for node in nodes), _UNDEFINED]
            _expect(
                nodes == list(zip(places[1:], places, places[2:])),
                "a group leads elsewhere",
            )
        return entries

    def symbol_node(
        self, address: int
    ) -> "list[tuple[int, int, bytes | None]]":
        mark, version, zero, count = self.unpack(
            struct.Struct("<4sBBH"), address
        )
        _expect(
            (mark, version, zero) == (b"SNOD", 1, 0) and 0 < count <= _LEAF,
            "a group has no such node",
        )
        self.take(address, 8 + _LEAF * _SYMBOL.size)
        return [
            self.symbol(address + 8 + _SYMBOL.size * place)
            for place in range(count)
        ]


def _text(texts: bytes, at: int) -> bytes:
    end = texts.find(b"\0", at, at + _MAX_NAME) if at < len(texts) else -1
    _expect(end >= 0, "the names of a group are cut off")
    return texts[at:end]


def _expect(condition: object, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)
