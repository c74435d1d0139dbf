"""Decodes arrays in NumPy's file format, without trusting what they declare.

NumPy's own reader evaluates the header, and takes the memory before it has seen
the data.
"""

import math
import re

import numpy as np

_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00.."
    rb"{'descr': '(?P<dtype>\|u1|<i4|<i8|<U[1-9]\d{0,3})', "
    rb"'fortran_order': (?P<fortran>True|False), "
    rb"'shape': \((?P<shape>\d{1,9}(?:, ?\d{1,9})*,?)\), } *\n",
    re.DOTALL,
)


def decode(content: bytes, name: str) -> np.ndarray:
    """Decodes an array of `uint8`, `int32`, `int64` or strings.

    Args:
        content: What an .npy file holds.
        name: What to call it in the message.

    Returns:
        A view of the content, with at least one entry.

    Raises:
        ValueError: If the header is another, or does not agree with the size.
    """
    length = int.from_bytes(content[8:10], "little")
    header = _HEADER.fullmatch(content[: 10 + length])
    if header is None:
        raise ValueError(f"{name} with the header {content[:80]!r}")
    dtype = np.dtype(header["dtype"].decode())
    shape = tuple(int(n) for n in header["shape"].split(b",") if n)
    body = len(content) - header.end()
    if body == 0 or math.prod(shape) * dtype.itemsize != body:
        raise ValueError(f"{name} of shape {shape}, {dtype}, {body:,} bytes")
    values = np.frombuffer(content, dtype, offset=header.end())
    order = "F" if header["fortran"] == b"True" else "C"
    return values.reshape(shape, order=order)
