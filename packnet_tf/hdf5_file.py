"""Looking at an HDF5 file before the HDF5 library does.

The library is written for files that are whole: on a damaged one it may crash
the process or never return. Of the format only that is taken which h5py
writes for the weights of a Keras model: groups, small attributes, and arrays
in one piece. All of it has its place, and no two things share a byte.

Reference:
    - HDF5 file format, superblock 0, symbol tables, object headers 1:
      https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html
"""

import array
import bisect
import math
import struct
from typing import BinaryIO

import h5py
import ml_dtypes
import numpy as np

from packnet_tf.hdf5_bytes import Bytes
from packnet_tf.hdf5_bytes import expect
from packnet_tf.hdf5_groups import INTERNAL
from packnet_tf.hdf5_groups import LEAF
from packnet_tf.hdf5_groups import UNDEFINED
from packnet_tf.hdf5_groups import read_group
from packnet_tf.hdf5_groups import read_symbol

_SUPERBLOCK = struct.Struct("<8s8B2HI4Q")
_HEADER = struct.Struct("<BBHII")
_MESSAGE = struct.Struct("<HHB3s")
_MAX_DEPTH = 64
_MAX_HEADER = 2**16


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
        self.file = Bytes(file, start, size)
        self.heaps: dict[int, array.array[int]] = {}
        self.left = 2**16 + size // 512 - 1  # Things that may yet come.
        self.bytes = 0

    def walk(self) -> int:
        fields = self.file.unpack(_SUPERBLOCK, 0)
        *head, eof, driver = fields
        expect(
            head
            == [
                b"\x89HDF\r\n\x1a\n",
                *(0, 0, 0, 0, 0, 8, 8, 0),
                *(LEAF // 2, INTERNAL // 2, 0),
                *(0, UNDEFINED),
            ]
            and driver == UNDEFINED,
            "its beginning is of another version",
        )
        expect(eof == self.file.size, f"it is said to have {eof} bytes")
        left = [(read_symbol(self.file, _SUPERBLOCK.size)[1:], 0)]
        while left:
            (address, cached), depth = left.pop()
            expect(depth <= _MAX_DEPTH, "its groups are nested too deep")
            entries = self.object(address, cached)
            self.left -= len(entries)
            left.extend((entry, depth + 1) for entry in entries)
        self.file.check_used_once()
        return self.bytes

    # Objects.

    def object(
        self, address: int, cached: "bytes | None"
    ) -> "list[tuple[int, bytes | None]]":
        """Reads a group or an array; returns what is in a group."""
        messages = self.messages(address)
        kinds = [kind for kind, _ in messages]
        found = dict(messages)
        for kind, body in messages:
            if kind == 0x0C:
                self.attribute(body)
        rest = sorted(kind for kind in kinds if kind not in (0x00, 0x0C))
        if rest == [0x11]:
            table = found[0x11]
            expect(
                len(table) == 16 and cached in (None, table),
                "a group has two tables",
            )
            entries = read_group(
                self.file, *struct.unpack("<QQ", table), self.left
            )
            return [entry[1:] for entry in entries]
        expect(
            rest == [0x01, 0x03, 0x05, 0x08] and cached is None,
            f"it holds something that is no plain array: {rest}",
        )
        self.array(found[0x01], found[0x03], found[0x05], found[0x08])
        return []

    def messages(self, address: int) -> list[tuple[int, bytes]]:
        version, zero, count, links, size = self.file.unpack(_HEADER, address)
        expect((version, zero) == (1, 0), "a header is of another version")
        expect(links == 1, "a thing has several names")
        self.file.take(address, 16)
        blocks, found, total = [(address + 16, size)], [], 0
        while blocks:
            begin, size = blocks.pop()
            total += size
            expect(total <= _MAX_HEADER, "a header is too large")
            self.file.take(begin, size)
            content, at = self.file.read(begin, size), 0
            while at < size:
                expect(at + 8 <= size, "a header is cut off")
                kind, length, flags, zero = _MESSAGE.unpack_from(content, at)
                body = content[at + 8 : at + 8 + length]
                expect(
                    len(body) == length and length % 8 == 0,
                    "a header is cut off",
                )
                expect(flags in (0, 1) and zero == bytes(3), "it shares parts")
                if kind == 0x10:
                    expect(length == 16, "a header goes on nowhere")
                    blocks.append(struct.unpack("<QQ", body))
                    kind = 0x00
                found.append((kind, body))
                at += 8 + length
        expect(len(found) == count, "a header has other parts than it says")
        return found

    def attribute(self, body: bytes) -> None:
        """Checks an attribute, which is a short text."""
        expect(len(body) >= 8, "an attribute is cut off")
        version, zero, *sizes = struct.unpack_from("<BBHHH", body)
        expect((version, zero) == (1, 0), "an attribute is of another version")
        parts, at = [], 8
        for size in sizes:
            parts.append(body[at : at + size])
            at += -(-size // 8) * 8
        name, dtype, space = parts
        value = body[at : at + 16]
        expect(
            name[-1:] == b"\0"
            and name.find(b"\0") == len(name) - 1 > 0
            and dtype == _TEXT
            and space == _SCALAR
            and len(value) == 16,
            "an attribute is no text",
        )
        length, address, index = struct.unpack("<IQI", value)
        if address in (0, UNDEFINED) and length == 0:
            return
        if address not in self.heaps:
            self.heaps[address] = self.global_heap(address)
        heap, wanted = self.heaps[address], index << 32 | length
        place = bisect.bisect_left(heap, wanted)
        expect(
            place < len(heap) and heap[place] == wanted,
            "an attribute leads nowhere",
        )

    def global_heap(self, address: int) -> "array.array[int]":
        """Reads a heap of texts.

        Returns:
            The index of each times 2**32, plus its size, in order: a dict
            would take far more memory than there are bytes in the file.
        """
        mark, version, _, size = self.file.unpack(
            struct.Struct("<4sB3sQ"), address
        )
        expect(
            (mark, version) == (b"GCOL", 1) and 16 <= size <= 2**20,
            "a heap of texts is none",
        )
        self.file.take(address, size)
        content, at, found = self.file.read(address, size), 16, {}
        while at + 16 <= size:
            index, _, _, length = struct.unpack_from("<HHIQ", content, at)
            if not index:
                expect(at + length == size, "a heap of texts has a gap")
                at = size
                break
            expect(index not in found, "a heap of texts has one twice")
            found[index] = length
            at += 16 + -(-length // 8) * 8
        expect(at <= size, "a heap of texts is cut off")
        return array.array(
            "Q", sorted(index << 32 | length for index, length in found.items())
        )

    # Arrays.

    def array(
        self, space: bytes, dtype: bytes, fill: bytes, layout: bytes
    ) -> None:
        expect(fill[:8] == _FILL, "an array has a value to fill it")
        expect(len(space) >= 8, "a shape is cut off")
        version, rank, flags, *zero = space[:8]
        wanted = 8 + 8 * rank * (2 if flags else 1)
        expect(
            version == 1
            and flags == (1 if rank else 0)
            and rank <= 16
            and not any(zero)
            and len(space) == wanted,
            "a shape is of another version",
        )
        sizes = struct.unpack(f"<{(wanted - 8) // 8}Q", space[8:])
        shape = sizes[:rank]
        expect(sizes[rank:] == shape, "an array could grow")
        itemsize = next(
            (
                itemsize
                for known, itemsize in _DTYPES.items()
                if dtype == known + bytes(-len(known) % 8)
            ),
            None,
        )
        expect(itemsize, "an array is of another dtype")
        expect(len(layout) == 24, "an array is in pieces")
        version, kind, address, size, zero = struct.unpack("<BBQQ6s", layout)
        expect(
            (version, kind, zero) == (3, 1, bytes(6)), "an array is in pieces"
        )
        expect(
            size == math.prod(shape) * itemsize,
            f"an array of shape {shape} has {size} bytes",
        )
        if size:
            self.file.take(address, size)
            self.bytes += size
        else:
            expect(address == UNDEFINED, "an empty array is somewhere")
