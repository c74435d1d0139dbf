"""Which task is being computed, and the weights that it sees."""

import contextlib
import contextvars
import functools
import math
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from packnet_tf import ownership

# The task whose weights are visible, known when a call is traced. `None` is
# the newest task, whose visible weights are the raw ones.
_VISIBLE_TASK: contextvars.ContextVar[int | None] = contextvars.ContextVar(
    "packnet_tf_visible_task", default=None
)
_COMPILED_SELECTION: contextvars.ContextVar[bool] = contextvars.ContextVar(
    "packnet_tf_compiled_selection", default=False
)
_SELECTED: contextvars.ContextVar[Mapping[int, tf.Tensor] | None] = (
    contextvars.ContextVar("packnet_tf_selected", default=None)
)
_LARGE = 2**18  # Entries, below which a function of its own is no gain.


def visible_task(task: int | None) -> contextlib.AbstractContextManager[None]:
    """Makes packed layers compute with the weights of one task.

    Args:
        task: Number of an older task, or `None` for the raw weights, which
            are those of the newest task.

    Returns:
        A context manager; the choice holds inside of the `with` block.
    """
    return _within(_VISIBLE_TASK, task)


def current() -> int | None:
    """Returns the number of the task that is visible, `None` for the raw."""
    return _VISIBLE_TASK.get()


def compiled_selection(
    compiled: bool = True,
) -> contextlib.AbstractContextManager[None]:
    """Makes packed layers select large weights by functions of XLA.

    Run operation by operation, a selection passes over the weights several
    times. For graphs that are run here; those that are exported run elsewhere.

    Args:
        compiled: Whether to.

    Returns:
        A context manager; the choice holds inside of the `with` block.
    """
    return _within(_COMPILED_SELECTION, compiled)


def selected(
    values: Mapping[int, tf.Tensor],
) -> contextlib.AbstractContextManager[None]:
    """Makes packed layers compute with weights that were selected before.

    Args:
        values: By the `id` of a packed weight, what `select` would return.

    Returns:
        A context manager; the choice holds inside of the `with` block.
    """
    return _within(_SELECTED, values)


def select(
    variable: keras.Variable, owner: keras.Variable, task: int
) -> tf.Tensor:
    """Returns a packed weight as a task computes with it.

    Args:
        variable: The packed weight.
        owner: Its `uint8` owner map.
        task: Number of the task.

    Returns:
        The weight, zero where a later task owns it or none does.
    """
    before = _SELECTED.get() or {}
    if id(variable) in before:
        return before[id(variable)]
    chosen = _select
    if (
        _COMPILED_SELECTION.get()
        and math.prod(variable.shape) >= _LARGE
        and variable.dtype == "float32"  # XLA may change NaNs of others.
        and not tf.executing_eagerly()
        and not tf.distribute.has_strategy()
    ):
        chosen = _compiled_select(tuple(variable.shape))
    return chosen(
        tf.convert_to_tensor(variable.value),
        tf.convert_to_tensor(owner.value),
        tf.constant(task, tf.uint8),
    )


@contextlib.contextmanager
def _within(
    variable: contextvars.ContextVar[Any], value: Any
) -> Iterator[None]:
    """Sets a variable of the context inside of the `with` block."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def _select(values: tf.Tensor, owner: tf.Tensor, task: tf.Tensor) -> tf.Tensor:
    # Never multiply: a later task that diverged to NaN must not reach an
    # older one.
    return tf.where(
        ownership.visible_mask(owner, task),
        values,
        tf.zeros((), values.dtype),
    )


@functools.cache
def _compiled_select(shape: tuple[int, ...]) -> Any:
    """Returns `_select` as a function of XLA, which all tasks share."""
    return tf.function(_select, jit_compile=True, autograph=False)
