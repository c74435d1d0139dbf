"""The gradients of a model's loss over data, for criteria that rank by them."""

from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from packnet_tf.errors import ArgumentError
from packnet_tf.errors import StageError
from packnet_tf.task_view import TaskViews

BATCH_SIZE = 32
_PIECE = 2**16


def check_data(data: Any) -> None:
    """Checks that data is there, is of a known kind, and has an end.

    Args:
        data: What to check.

    Raises:
        ArgumentError: If gradients cannot be computed on it.
    """
    if data is None:
        raise ArgumentError(
            "This criterion ranks weights by gradients. Pass `data`, what to "
            "compute them on, such as the training data. Received: data=None"
        )
    if isinstance(data, tf.data.Dataset):
        endless = bool(data.cardinality() == tf.data.INFINITE_CARDINALITY)
    elif isinstance(data, keras.utils.PyDataset):
        endless = data.num_batches is None
    else:
        endless = False
        _check_arrays(data)
    if endless:
        raise ArgumentError(
            "Gradients are averaged over all of the data, which therefore "
            "needs an end, as `data.take(100)` has. "
            f"Received: endless data of type {type(data).__name__}"
        )


def measure(
    model: keras.Model,
    task: str,
    variables: Sequence[keras.Variable],
    data: Any,
    kind: str,
) -> list[np.ndarray]:
    """Computes gradients of the compiled loss, averaged over batches.

    The forward pass is as at inference: nothing is dropped out, no statistics
    move. No variable changes.

    Args:
        model: A compiled packed model.
        task: Name of its newest task.
        variables: What to compute the gradients of.
        data: A `tf.data.Dataset` or `keras.utils.PyDataset` of batches
            `(x, y)` or `(x, y, sample_weight)`, or such a tuple of arrays,
            taken in batches of 32.
        kind: `"mean"` for the mean of the gradients over the batches, `"rms"`
            for the root of the mean of their squares.

    Returns:
        An array per variable, of its shape, `float64` if the variable is,
        else `float32`. A variable that the loss does not depend on has zeros.

    Raises:
        ArgumentError: If the data does not do, or a gradient is not finite.
        StageError: If the model is not compiled with a loss.
    """
    check_data(data)
    if not model.compiled:
        raise StageError(
            "Gradients are those of the compiled loss. Call `compile()` "
            "first. Received: a model that is not compiled"
        )
    step = _Step(model, task, variables)
    totals = [np.zeros(variable.shape, np.float64) for variable in variables]
    count = 0
    for batch in _batches(data):
        for total, gradient in zip(totals, step(batch, count)):
            if kind == "rms":
                _add_squares(total, gradient)
            else:
                total += gradient
        count += 1
    if count == 0:
        raise ArgumentError(
            "Gradients need at least one batch. Received: data without any"
        )
    averages = []
    for variable in variables:
        total = totals.pop(0)
        total /= count
        if kind == "rms":
            np.sqrt(total, out=total)
        double = variable.dtype == "float64"
        averages.append(total if double else total.astype(np.float32))
    return averages


class _Step:
    """Computes the gradients of one batch."""

    def __init__(
        self,
        model: keras.Model,
        task: str,
        variables: Sequence[keras.Variable],
    ) -> None:
        # A view of the task has a loss of its own: what the model's own has
        # counted in this epoch stays as it is.
        self._view = TaskViews().get(model, task)
        self._has_loss = model.recipe.arguments["loss"] is not None
        self._variables = list(variables)
        self._compute = self._compute_eagerly
        if not model.run_eagerly:
            self._compute = tf.function(
                self._compute_eagerly,
                reduce_retracing=True,
                autograph=False,
            )
        # In float16 small gradients vanish unless they are scaled. Powers of
        # two are taken out again without rounding.
        self._scale = 1.0
        if any(
            layer.compute_dtype == "float16"
            for layer in model._flatten_layers()
        ):
            self._scale = 2.0**15

    def __call__(self, batch: Any, number: int) -> list[np.ndarray]:
        scale = self._scale
        while True:
            gradients, finite = self._compute(batch, tf.constant(scale))
            if finite:
                return [gradient.numpy() for gradient in gradients]
            if scale == 1.0:
                raise ArgumentError(
                    "Weights cannot be ranked by gradients that are not "
                    "finite. Check the data and the loss. "
                    f"Received: gradients with inf or nan in batch {number}"
                )
            scale /= 2.0**5

    def _compute_eagerly(
        self, batch: Any, scale: tf.Tensor
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
        if y is None and self._has_loss:
            raise ArgumentError(
                "The compiled loss needs labels. Let the data consist of "
                "(x, y) or (x, y, sample_weight). Received: batches of x alone"
            )
        values = [
            tf.convert_to_tensor(variable.value) for variable in self._variables
        ]
        known = {id(variable) for variable in self._variables}
        # Keras looks up whatever is regularized in the scope.
        others = [
            (variable, tf.convert_to_tensor(variable.value))
            for variable in self._view.trainable_variables
            if id(variable) not in known
        ]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            # What a layer of the user's own assigns goes to the scope.
            with keras.StatelessScope(
                [*zip(self._variables, values), *others], collect_losses=True
            ):
                y_pred = self._view(x, training=False)
                if not self._has_loss and not self._view.losses:
                    raise StageError(
                        "Gradients are those of the compiled loss. Call "
                        "`compile()` with one. Received: loss=None"
                    )
                loss = self._view.compute_loss(
                    x=x,
                    y=y,
                    y_pred=y_pred,
                    sample_weight=sample_weight,
                    training=False,
                )
            # Keras divides by the replicas, which would add them up.
            replicas = tf.distribute.get_strategy().num_replicas_in_sync
            loss = loss * tf.cast(scale * replicas, loss.dtype)
        gradients = [
            _to_dense(gradient, value)
            for gradient, value in zip(tape.gradient(loss, values), values)
        ]
        gradients = [
            gradient / tf.cast(scale, gradient.dtype) for gradient in gradients
        ]
        finite = [
            tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients
        ]
        return gradients, tf.reduce_all(finite)


def _add_squares(total: np.ndarray, gradient: np.ndarray) -> None:
    """Adds squares in float64, where no square of a float32 is lost.

    In pieces, as the squares of a large weight would be twice its size.
    """
    sums = total.reshape(-1)
    values = gradient.reshape(-1)
    for start in range(0, sums.size, _PIECE):
        piece = slice(start, start + _PIECE)
        sums[piece] += np.square(values[piece], dtype=np.float64)


def _to_dense(gradient: Any, value: tf.Tensor) -> tf.Tensor:
    dtype = tf.float64 if value.dtype == tf.float64 else tf.float32
    if gradient is None:
        return tf.zeros(value.shape, dtype)
    if isinstance(gradient, tf.IndexedSlices):
        return tf.scatter_nd(
            gradient.indices[:, None],
            tf.cast(gradient.values, dtype),
            tf.constant(value.shape.as_list(), gradient.indices.dtype),
        )
    return tf.cast(gradient, dtype)


def _check_arrays(data: Any) -> None:
    if not isinstance(data, tuple) or len(data) not in (2, 3):
        raise ArgumentError(
            "Gradients are computed on a `tf.data.Dataset`, a "
            "`keras.utils.PyDataset`, or a tuple of arrays, (x, y) or "
            f"(x, y, sample_weight). Received: data of type "
            f"{type(data).__name__}"
        )
    sizes = set()
    for array in keras.tree.flatten(data):
        if array is not None:
            shape = tuple(getattr(array, "shape", ()))
            sizes.add(shape[0] if shape else None)
    if len(sizes) != 1 or None in sizes:
        raise ArgumentError(
            "The arrays to compute gradients on have one row per example. "
            f"Received: arrays of lengths {sorted(sizes, key=str)}"
        )


def _batches(data: Any) -> Iterator[Any]:
    if isinstance(data, tf.data.Dataset):
        yield from data
        return
    if isinstance(data, keras.utils.PyDataset):
        for index in range(data.num_batches):
            yield _to_tensors(data[index], slice(None))
        return
    arrays = keras.tree.flatten(data)
    rows = next(array.shape[0] for array in arrays if array is not None)
    for start in range(0, rows, BATCH_SIZE):
        yield _to_tensors(data, slice(start, start + BATCH_SIZE))


def _to_tensors(batch: Any, rows: slice) -> Any:
    return keras.tree.map_structure(
        lambda array: (
            None if array is None else tf.convert_to_tensor(array[rows])
        ),
        batch,
    )
