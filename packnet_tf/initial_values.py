"""Sparing the layers of a copy their initial values, which are overwritten."""

import contextlib
import math
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

_LARGE = 2**20  # Entries from which computing them costs more than a trace.
_LARGEST_SIDE = 2**31 - 1  # `tf.raw_ops.Empty` would take more for less.


@contextlib.contextmanager
def spared(source: keras.layers.Layer) -> Iterator[None]:
    """Makes large variables without computing their initial values.

    A variable that a copy makes in the body begins with whatever variable of
    the source has its shape and dtype, so it takes neither the time to draw
    random numbers nor memory of its own. Whoever makes the copy assigns to
    all of its variables afterwards. Those for which the source has no large
    counterpart begin as ever.

    Args:
        source: The layer that is copied in the body.

    Yields:
        Once.
    """
    large = {
        (tuple(variable.shape), variable.dtype): variable
        for variable in source.variables
        if math.prod(variable.shape) >= _LARGE
    }

    def create(make: Callable[..., tf.Variable], **kwargs: Any) -> tf.Variable:
        initial_value = kwargs["initial_value"]
        dtype = kwargs["dtype"] and tf.as_dtype(kwargs["dtype"]).name
        if callable(initial_value) and dtype in {kind for _, kind in large}:
            same = large.get((_shape(initial_value), dtype))
            if same is not None:
                kwargs["initial_value"] = lambda: tf.convert_to_tensor(
                    same.value
                )
        return make(**kwargs)

    with (
        tf.variable_creator_scope(create) if large else contextlib.nullcontext()
    ):
        yield


@contextlib.contextmanager
def unset() -> Iterator[None]:
    """Makes large variables without computing their initial values.

    For a model that is made from its configuration and then filled: drawing
    random numbers for all of it would take longer than reading it. Variables
    of floating-point numbers begin with whatever is in the memory, which is
    not touched before they are filled; so all of them have to be, or thrown
    away. Large ones of other dtypes begin with zeros, small ones as ever.

    Yields:
        Once.
    """

    def create(make: Callable[..., tf.Variable], **kwargs: Any) -> tf.Variable:
        initial_value = kwargs["initial_value"]
        dtype = kwargs["dtype"]
        shape = None
        if callable(initial_value) and dtype is not None:
            shape = _shape(initial_value)
        if shape is not None and _can_be_empty(shape):
            kind = tf.as_dtype(dtype)
            kwargs["initial_value"] = lambda: tf.raw_ops.Empty(
                shape=shape, dtype=kind, init=not kind.is_floating
            )
        return make(**kwargs)

    with tf.variable_creator_scope(create):
        yield


def _can_be_empty(shape: tuple[int, ...]) -> bool:
    """Tells whether it is worth it, and the sides are such as the op takes."""
    return math.prod(shape) >= _LARGE and max(shape) <= _LARGEST_SIDE


def _shape(initial_value: Callable[[], Any]) -> tuple[int, ...] | None:
    """Finds the shape of what a function returns, without computing it."""
    try:
        with tf.Graph().as_default():
            return tuple(initial_value().shape)
    except Exception:  # What cannot be traced is computed.
        return None
