"""Reading and writing a variable's entries by their flat index, in place.

A large variable is filled piece by piece, so that no second copy of it is
made. Bits are kept, those of NaN included.
"""

import math
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

DTYPES = (
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bfloat16",
    "float16",
    "float32",
    "float64",
)
"""The dtypes of variables that files hold."""

ROUNDED = "bfloat16"
"""The dtype that values may be rounded to."""

_WIDE = ("float32", "float64")
# Entries of a row from which on rows are put as they are, in a tenth of the
# time that a slice takes. GPUs cannot do so for all dtypes.
_LONG = 64
_CPU = "device:CPU:"


def stored_dtype(dtype: str, rounded: bool) -> str:
    """Returns the dtype that values have in a file.

    Args:
        dtype: The variable's.
        rounded: Whether values are rounded.

    Returns:
        `"bfloat16"` for a wider float if values are rounded, else `dtype`.
    """
    return ROUNDED if rounded and dtype in _WIDE else dtype


def itemsize(dtype: str) -> int:
    """Returns how many bytes an entry has.

    Args:
        dtype: Name of a dtype.

    Returns:
        1, 2, 4 or 8.
    """
    return tf.as_dtype(dtype).size


def to_bytes(values: np.ndarray, stored: str) -> memoryview:
    """Returns the bytes of values in a file, little-endian.

    Args:
        values: Array of one axis.
        stored: The dtype in the file; values are rounded to it.

    Returns:
        The bytes.
    """
    values = np.ascontiguousarray(_cast(values, stored))
    size = values.itemsize
    words = values.view(f"u{size}").astype(f"<u{size}", copy=False)
    return memoryview(words.view(np.uint8))


def from_bytes(
    content: "bytes | memoryview", stored: str, dtype: str
) -> np.ndarray:
    """Returns the values that `to_bytes` returned the bytes of.

    Args:
        content: The bytes.
        stored: The dtype in the file.
        dtype: The dtype of the variable.

    Returns:
        Array of one axis.
    """
    size = itemsize(stored)
    words = np.frombuffer(content, f"<u{size}").astype(f"u{size}", copy=False)
    return _cast(words.view(tf.as_dtype(stored).as_numpy_dtype), dtype)


class Rounded:
    """An array as a file holds it that rounds, computed where it is read.

    Args:
        value: Array of any shape.

    Attributes:
        shape: As of the array.
        dtype: As of the array.
        size: As of the array.
    """

    def __init__(self, value: np.ndarray) -> None:
        self._value = value
        self.shape = value.shape
        self.dtype = value.dtype
        self.size = value.size

    def __getitem__(self, place: Any) -> np.ndarray:
        return _round(self._value[place])

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(_round(self._value), dtype)

    def reshape(self, *shape: Any) -> "Rounded":
        """Returns the same in another shape, as NumPy does.

        Args:
            *shape: As for `numpy.reshape`.

        Returns:
            Another view.
        """
        return Rounded(self._value.reshape(*shape))


def get(variable: keras.Variable, start: int, stop: int) -> np.ndarray:
    """Returns a copy of some entries, without one of all of them.

    Args:
        variable: A variable.
        start: Flat index of the first.
        stop: Flat index behind the last.

    Returns:
        Array of shape `(stop - start,)`.
    """
    place = _places(variable)[0]
    parts = [
        tf.strided_slice(place, begin, end).numpy().reshape(-1)
        for begin, end in _slices(tuple(variable.shape), start, stop)
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def put(variable: keras.Variable, start: int, values: np.ndarray) -> None:
    """Assigns some entries; memory for them alone is taken.

    Args:
        variable: A variable.
        start: Flat index of the first.
        values: Array of one axis, of the variable's dtype.
    """
    shape = tuple(variable.shape)
    if len(values) == math.prod(shape):
        variable.assign(values.reshape(shape))
        return
    places = _places(variable)
    done = 0
    for begin, end in _slices(shape, start, start + len(values)):
        sides = (end - begin).tolist()
        piece = values[done : done + math.prod(sides)].reshape(sides)
        done += piece.size
        whole = bool((end - begin == shape)[1:].all())
        long = math.prod(shape[1:]) >= _LONG
        for place in places:
            if whole and long and _CPU in place.device:
                tf.raw_ops.ResourceScatterUpdate(
                    resource=place.handle,
                    indices=np.arange(begin[0], end[0]),
                    updates=piece,
                )
                continue
            # `place[...].assign` would read all of the variable first.
            tf.raw_ops.ResourceStridedSliceAssign(
                ref=place.handle,
                begin=begin,
                end=end,
                strides=np.ones_like(begin),
                value=piece,
            )
    for place in places:
        # Each time that it is read it would be copied from here on.
        tf.raw_ops.DisableCopyOnRead(resource=place.handle)


def _places(variable: keras.Variable) -> Sequence[tf.Variable]:
    """Returns where the value is: once for each replica."""
    return getattr(variable.value, "values", (variable.value,))


def _slices(
    shape: Sequence[int], start: int, stop: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Does what `_boxes` does, as arrays that TensorFlow can slice by."""
    for begin, end in _boxes(shape, start, stop):
        yield np.array(begin, np.int64), np.array(end, np.int64)


def _boxes(
    shape: Sequence[int], start: int, stop: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Cuts a range of flat indices into boxes along the axes, in order.

    Yields:
        The first index on each axis, and the one behind the last.
    """
    if start >= stop:
        return
    if not shape:
        yield [], []
        return
    inner = math.prod(shape[1:])
    first, last = -(-start // inner), stop // inner
    if first > last:  # All within one row.
        yield from _in_row(shape, last, start, stop)
        return
    if start < first * inner:
        yield from _in_row(shape, first - 1, start, first * inner)
    if first < last:
        rest = list(shape[1:])
        yield [first] + [0] * len(rest), [last, *rest]
    if last * inner < stop:
        yield from _in_row(shape, last, last * inner, stop)


def _in_row(
    shape: Sequence[int], row: int, start: int, stop: int
) -> Iterator[tuple[list[int], list[int]]]:
    inner = math.prod(shape[1:])
    for begin, end in _boxes(
        shape[1:], start - row * inner, stop - row * inner
    ):
        yield [row, *begin], [row + 1, *end]


def _cast(values: np.ndarray, dtype: str) -> np.ndarray:
    if values.dtype.name == dtype:
        return values
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(tf.as_dtype(dtype).as_numpy_dtype)


def _round(values: np.ndarray) -> np.ndarray:
    dtype = values.dtype.name
    return _cast(_cast(values, stored_dtype(dtype, True)), dtype)
