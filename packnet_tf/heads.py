"""Heads: a task's own output layers on top of the shared backbone."""

import itertools
import numbers
from collections.abc import Callable
from collections.abc import Iterable
from typing import Any

import keras

from packnet_tf import cloning
from packnet_tf import graphs
from packnet_tf import planning
from packnet_tf import registry
from packnet_tf.errors import ArgumentError

_POOLING = {
    3: keras.layers.GlobalAveragePooling1D,
    4: keras.layers.GlobalAveragePooling2D,
    5: keras.layers.GlobalAveragePooling3D,
}


def build_head(
    features: Any,
    name: str,
    units: int | None,
    head: "keras.layers.Layer | None",
    activation: "str | Callable[..., Any] | None",
) -> keras.Model:
    """Builds the head of a task.

    Args:
        features: The backbone's symbolic output, or a structure of such.
        name: Name of the task, and of the head.
        units: Number of classes, for one dense layer. Features with spatial
            or time dimensions are averaged over those first.
        head: Any Keras layer or model instead.
        activation: Of the dense layer.

    Returns:
        A built Functional model. A dense head computes in full precision.

    Raises:
        ArgumentError: If not exactly one of `units` and `head` is given, or
            if it does not fit the features.
        UnsupportedLayerError: If its outputs cannot stay the same, or it
            cannot be copied.
    """
    if (units is None) == (head is None):
        raise ArgumentError(
            "A task has one head: give `units=` for a dense layer, or "
            "`head=` for any Keras layer or model. "
            f"Received: units={units}, head={head}"
        )
    # Named by place, so that a file does not tell how often it was tried.
    places = itertools.count()
    inputs = keras.tree.map_structure(
        lambda x: keras.Input(
            batch_shape=x.shape, dtype=x.dtype, name=f"features_{next(places)}"
        ),
        features,
    )
    if head is None:
        outputs = _classify(inputs, units, activation)
        built = keras.Model(inputs, outputs, name=name)
        planning.check_inference(built)  # The activation may be any function.
        return built
    if not isinstance(head, keras.layers.Layer):
        raise ArgumentError(
            "`head` is a Keras layer or model. "
            f"Received: head={head!r} of type {type(head).__name__}"
        )
    try:
        outputs = head(inputs)
    except Exception as error:
        shapes = keras.tree.map_structure(lambda x: x.shape, features)
        raise ArgumentError(
            f"`head` cannot be called on the backbone's features: {error} "
            f"Received: head={head.name!r}, features of shape {shapes}"
        ) from error
    if graphs.is_graph(head):
        built = graphs.as_graph(head, name)  # Its layers, not a nested model.
    else:
        built = keras.Model(inputs, outputs, name=name)
    check_protectable(built)
    return built


def check_unshared(
    head: keras.Model, variables: Iterable[keras.Variable]
) -> None:
    """Refuses a head that shares variables with the rest of a model.

    Args:
        head: The head of a task that is to be added.
        variables: Those of the model.

    Raises:
        ArgumentError: If it does.
    """
    own = {id(variable) for variable in head.variables}
    for variable in variables:
        if id(variable) in own:
            raise ArgumentError(
                "A head belongs to one task alone. Give a new layer. "
                f"Received: head with variable {variable.path!r}, which "
                "the model has already"
            )


def check_protectable(head: keras.Model) -> None:
    """Checks that a head's outputs stay the same, and can be exported.

    Args:
        head: A built Functional model.

    Raises:
        UnsupportedLayerError: If they cannot, or it cannot be copied.
    """
    layers = [layer for _, layer in graphs.walk_layers(head)]
    for layer in layers:
        registry.classify(layer)  # Refuses LoRA and the like.
        cloning.copy_layer(layer)
    seen = planning.check_inference(head)
    planning.assigned_in_training(head)
    if not all(planning.is_all_of_keras(layer) for layer in layers):
        cloning.copy_model(head, head.name, seen)


def _classify(inputs: Any, units: Any, activation: Any) -> Any:
    is_count = isinstance(units, numbers.Integral)
    if isinstance(units, bool) or not is_count or units < 1:
        raise ArgumentError(
            "`units` is the number of classes, a positive integer. "
            f"Received: units={units!r}"
        )
    if not isinstance(inputs, keras.KerasTensor):
        raise ArgumentError(
            "`units` needs a backbone with one output. Give `head=` a model "
            "that takes all of them. Received: units="
            f"{units}, outputs={keras.tree.map_structure(str, inputs)}"
        )
    x = inputs
    rank = len(x.shape)
    if rank in _POOLING:
        x = _POOLING[rank](name="pooling")(x)
    elif rank != 2:
        raise ArgumentError(
            "`units` needs features of rank 2 to 5. Give `head=` a layer "
            f"that takes them. Received: features of shape {x.shape}"
        )
    try:
        activation = keras.activations.get(activation)
    except ValueError as error:
        raise ArgumentError(
            "`activation` is the name of a Keras activation or a callable. "
            f"Received: activation={activation!r}"
        ) from error
    dtype = keras.config.floatx() if x.dtype != "float64" else "float64"
    return keras.layers.Dense(
        int(units), activation, dtype=dtype, name="predictions"
    )(x)
