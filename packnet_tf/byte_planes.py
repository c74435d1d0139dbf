"""Codes numbers losslessly, one byte of each at a time.

The first bytes of all numbers make a plane, the second ones another. Of
floating-point numbers, the plane that holds sign and exponent has few different
bytes and is coded close to its entropy, which saves a sixth of trained float32
weights; the low bytes of the mantissa are as good as random and stay as they
are. Each plane, from the lowest byte on, is its length as u32 and then its
bytes: as they are if there are as many as numbers, else the code of
`entropy_coding`. Of no numbers there are no planes.
"""

import struct
from collections.abc import Callable
from collections.abc import Sequence

import numpy as np

from packnet_tf import entropy_coding

_LENGTH = struct.Struct("<I")
_FEW = 1 << 12  # Numbers; of fewer, coding saves less than its time is worth.
_SAMPLED = 16  # One byte of so many tells whether coding a plane pays off.
_WORTHWHILE = 0.97  # Of the size; less is not worth the time.


def encode(
    content: "bytes | memoryview", width: int
) -> "list[bytes | memoryview]":
    """Codes numbers.

    Args:
        content: Little-endian numbers.
        width: How many bytes each has.

    Returns:
        What `read` reads, in pieces.
    """
    numbers = np.frombuffer(content, np.uint8).reshape(-1, width)
    if not len(numbers):
        return []
    pieces: list[bytes | memoryview] = []
    for place in range(width):
        plane = np.ascontiguousarray(numbers[:, place])
        coded: bytes | memoryview = memoryview(plane)
        if len(plane) >= _FEW and _pays_off(plane[::_SAMPLED]):
            shorter = entropy_coding.encode(plane, 256)
            coded = min(coded, shorter, key=len)
        pieces += [_LENGTH.pack(len(coded)), coded]
    return pieces


def read(
    read_bytes: Callable[[int], bytes], count: int, width: int
) -> list[bytes]:
    """Reads what `encode` returned, without decoding it.

    Args:
        read_bytes: Returns so many of the next bytes, or raises.
        count: How many numbers there are.
        width: How many bytes each has.

    Returns:
        The planes, as they are stored.

    Raises:
        ValueError: If one is longer than it can be.
    """
    planes = []
    for _ in range(width if count else 0):
        (length,) = _LENGTH.unpack(read_bytes(_LENGTH.size))
        if length > count:
            raise ValueError(f"a plane of {length} bytes for {count} numbers")
        planes.append(read_bytes(length))
    return planes


def decode(planes: Sequence[bytes], count: int) -> memoryview:
    """Decodes what `read` returned.

    Args:
        planes: The planes, as they are stored.
        count: How many numbers there are. The memory taken follows from it.

    Returns:
        The numbers, little-endian.

    Raises:
        ValueError: If it is no code of so many numbers.
    """
    numbers = np.empty((count, len(planes)), np.uint8)
    for place, plane in enumerate(planes):
        if len(plane) == count:
            numbers[:, place] = np.frombuffer(plane, np.uint8)
        else:
            numbers[:, place] = entropy_coding.decode(plane, count, 256)
    return memoryview(numbers.reshape(-1))


def _pays_off(sample: np.ndarray) -> bool:
    bits = entropy_coding.entropy(np.bincount(sample))
    return bits < _WORTHWHILE * 8 * sample.size
