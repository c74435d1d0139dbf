"""How much a model may take, refused before any of it is allocated."""

import contextlib
import functools
import math
import numbers
import threading
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from packnet_tf.errors import ArgumentError
from packnet_tf.errors import FileError

_MOST_ENTRIES = 2**63 - 1  # More no tensor can have.
# So many variables, and symbolic tensors, of which a call takes about two;
# and one more of either for so many bytes.
_MOST_OBJECTS = 2**16
_BYTES_OF_OBJECT = 2**8
_LOCK = threading.RLock()


def check_max_bytes(max_bytes: Any) -> None:
    """Checks what a user allows.

    Args:
        max_bytes: A positive integer, or `None`.

    Raises:
        ArgumentError: If it is anything else.
    """
    if max_bytes is not None and not (
        isinstance(max_bytes, numbers.Integral)
        and not isinstance(max_bytes, bool)
        and max_bytes > 0
    ):
        raise ArgumentError(
            "`max_bytes` is how many bytes the variables may take, a positive "
            f"integer. Received: max_bytes={max_bytes!r}"
        )


@contextlib.contextmanager
def bounded(max_bytes: int) -> Iterator[None]:
    """Refuses variables that take more bytes than they may.

    All variables that are made in the body count, whether or not they are
    still there. One that would be too much is refused before it is allocated
    and before its initial value is computed. So are more of them, however
    small, than a file of some size can have. Symbolic tensors that no memory
    could hold are refused as well, and more of them than there can be use for;
    and so is a call with an index that is out of range, which Keras 3.10 would
    try again for ever.

    Args:
        max_bytes: The most bytes that all of them together may take.

    Yields:
        Once.

    Raises:
        FileError: If they take more.
    """
    taken = count = 0
    most = _MOST_OBJECTS + max_bytes // _BYTES_OF_OBJECT
    refusal: FileError | None = None

    def take(shape: Any, dtype: tf.DType, name: Any) -> None:
        nonlocal taken, count, refusal
        taken += math.prod(shape) * max(dtype.size, 1)
        count += 1
        if count > most:
            refusal = _no_end(f"{count} variables", most)
            raise refusal
        if taken > max_bytes:
            refusal = FileError(
                "The model would take more memory than what it is read from "
                "can fill. It is damaged, or made to do harm; go back to a "
                f"file that is whole. Received: a variable {str(name)!r} of "
                f"shape {tuple(shape)}, {taken} bytes with those before it, "
                f"expected {max_bytes} at most"
            )
            raise refusal

    def create(make: Callable[..., tf.Variable], **kwargs: Any) -> tf.Variable:
        name = kwargs.get("name")
        known = _shape_and_dtype(kwargs["initial_value"], kwargs.get("dtype"))
        if known is not None:
            take(*known, name)
        variable = make(**kwargs)
        if known is None:
            take(variable.shape, variable.dtype, name)
        return variable

    with (
        tf.variable_creator_scope(create),
        _tensors_bounded(most),
        _indices_refused(),
    ):
        yield
    if refusal is not None:  # What made the variable may have gone on.
        raise refusal


@contextlib.contextmanager
def _tensors_bounded(most: int) -> Iterator[None]:
    """Refuses too many symbolic tensors, and those that no tensor can be.

    A few layers that broadcast and flatten square the size of their input.
    Keras counts it in integers of Python: after forty times these alone take
    gigabytes. There is no hook for it, so the class is lent another
    `__init__`; what other threads make meanwhile is not looked at.
    """
    thread, count = threading.get_ident(), 0

    def init(self: keras.KerasTensor, *args: Any, **kwargs: Any) -> None:
        nonlocal count
        make(self, *args, **kwargs)
        if threading.get_ident() != thread:
            return
        count += 1
        if count > most:
            raise _no_end(f"{count} symbolic tensors", most)
        if any(
            side is not None and side > _MOST_ENTRIES for side in self.shape
        ):
            bits = [(side or 0).bit_length() for side in self.shape]
            raise FileError(
                "The model has a tensor that is larger than any can be. It is "
                "damaged, or made to do harm; go back to a file that is "
                f"whole. Received: sides of {bits} bits, expected 63 at most"
            )

    with _LOCK:
        make = keras.KerasTensor.__init__
        keras.KerasTensor.__init__ = init
        try:
            yield
        finally:
            keras.KerasTensor.__init__ = make


def _no_end(received: str, most: int) -> FileError:
    return FileError(
        "Making the model comes to no end: it is damaged, or made to do harm; "
        f"go back to a file that is whole. Received: {received}, expected "
        f"{most} at most"
    )


@contextlib.contextmanager
def _indices_refused() -> Iterator[None]:
    """Turns an `IndexError` of any call into one that ends the loading.

    When Keras makes a Functional model, an `IndexError` means to it that a
    tensor is not there yet, whoever raised it. As above there is no hook.
    """
    thread = threading.get_ident()

    def lend(make: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(make)
        def call(self: keras.Operation, *args: Any, **kwargs: Any) -> Any:
            try:
                return make(self, *args, **kwargs)
            except IndexError as error:
                if threading.get_ident() != thread:
                    raise
                raise FileError(
                    "A layer of the model takes no such tensors. The file is "
                    "damaged, or made to do harm; go back to one that is "
                    f"whole. Received: a call of {self.name!r}, which raised "
                    f"{str(error)[:500]!r}"
                ) from error

        return call

    classes = (keras.Operation, keras.Layer)
    with _LOCK:
        made = [cls.__call__ for cls in classes]
        for cls, make in zip(classes, made):
            cls.__call__ = lend(make)
        try:
            yield
        finally:
            for cls, make in zip(classes, made):
                cls.__call__ = make


def _shape_and_dtype(
    initial_value: Any, dtype: Any
) -> tuple[tuple[int, ...], tf.DType] | None:
    """Finds what a function returns, without computing it.

    Args:
        initial_value: The function; anything else is there already.
        dtype: The dtype that the variable is given, or `None`.

    Returns:
        Shape and dtype, or `None` if they cannot be told beforehand.
    """
    if not callable(initial_value):
        return None
    for cell in getattr(initial_value, "__closure__", None) or ():
        # Keras passes on a function of the variable. To trace it instead is
        # as right, but takes a millisecond for each.
        with contextlib.suppress(ValueError):  # An empty cell.
            if isinstance(cell.cell_contents, keras.Variable):
                variable = cell.cell_contents
                return tuple(variable.shape), tf.as_dtype(variable.dtype)
    try:
        with tf.Graph().as_default():
            value = tf.convert_to_tensor(initial_value(), dtype)
        return tuple(value.shape.as_list()), value.dtype
    except Exception:  # What cannot be traced is counted when it is there.
        return None
