"""Copies of a network: with its layers packed, and plain again."""

import contextlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from packnet_tf import graphs
from packnet_tf import initial_values
from packnet_tf import ownership
from packnet_tf import planning
from packnet_tf import probing
from packnet_tf import variables
from packnet_tf.errors import UnsupportedLayerError
from packnet_tf.layers import PackedLayer


def pack(model: keras.Model, plan: planning.Plan) -> keras.Model:
    """Copies a network with what is to be protected in a `PackedLayer`.

    Layers shared within a model stay shared. Nested models become Functional
    models of the same name.

    Args:
        model: A built Functional or Sequential model.
        plan: How each of its layers will be protected.

    Returns:
        A Functional model that computes the same, bit for bit. All entries
        of its owner maps are free.

    Raises:
        UnsupportedLayerError: If a layer cannot be copied.
    """

    def convert(layer: keras.layers.Layer) -> keras.layers.Layer:
        copy = copy_layer(layer)
        if not isinstance(layer, keras.layers.Layer):
            return copy  # An operation such as `x + y`; it has no variables.
        of_layer = plan.layers[id(layer)]
        if not of_layer.is_wrapped:
            return copy
        return PackedLayer(
            copy, of_layer.packed, of_layer.per_task, of_layer.guarded
        )

    pairs: dict[int, tuple[Any, Any]] = {}
    packed_model = _convert(model, convert, pairs)
    for layer, copy in pairs.values():
        inner = copy.layer if isinstance(copy, PackedLayer) else copy
        _copy_variables(layer, inner)
    _check_same(model, packed_model, plan.seen)
    return packed_model


def unpack(
    backbone: keras.Model, head: keras.Model, task: int, name: str
) -> keras.Model:
    """Makes the plain Keras model of one task.

    Args:
        backbone: A model as `pack` returns it.
        head: The task's head, a Functional model on the backbone's outputs.
        task: Int in `[1, 255]`, whose weights are taken.
        name: Name of the new model.

    Returns:
        A Functional model of plain layers, holding the task's weights and
        zeros elsewhere. It shares no variable with the packed model.
    """

    def convert(layer: keras.layers.Layer) -> keras.layers.Layer:
        inner = layer.layer if isinstance(layer, PackedLayer) else layer
        return copy_layer(inner)

    pairs: dict[int, tuple[Any, Any]] = {}
    plain = _convert(backbone, convert, pairs)
    outputs = _extend(plain, head, pairs)
    model = keras.Model(plain.input, outputs, name=name)
    for layer, copy in pairs.values():
        if not isinstance(layer, PackedLayer):
            _copy_variables(layer, copy)
            continue
        _copy_variables(layer.layer, copy)
        of_copy = dict(variables.walk(copy))
        for name, kernel, owner in zip(
            layer.packed, layer.packed_variables(), layer.owners
        ):
            visible = ownership.visible_mask(owner.numpy(), task)
            of_copy[name].assign(
                np.where(visible, kernel.numpy(), np.zeros((), kernel.dtype))
            )
        for name, value in zip(layer.per_task, layer.copies_of(task)):
            of_copy[name].assign(value)
    return model


def copy_model(
    model: keras.Model, name: str, seen: probing.Observation | None = None
) -> keras.Model:
    """Copies a Functional or Sequential model, weights included.

    Args:
        model: A built Functional or Sequential model.
        name: Name of the copy.
        seen: What it does when it is called, if it was observed already.

    Returns:
        A Functional model that shares no variable with `model`.

    Raises:
        UnsupportedLayerError: If a layer cannot be copied.
    """
    pairs: dict[int, tuple[Any, Any]] = {}
    copy = _convert(model, copy_layer, pairs, name)
    for layer, layer_copy in pairs.values():
        _copy_variables(layer, layer_copy)
    _check_same(model, copy, seen)
    return copy


def copy_layer(
    layer: keras.layers.Layer, name: str | None = None
) -> keras.layers.Layer:
    """Makes a new layer of the same configuration, without its weights.

    Args:
        layer: A layer, a subclassed model or an operation.
        name: Name of the new one. Defaults to that of `layer`.

    Returns:
        The new one.

    Raises:
        UnsupportedLayerError: If its configuration cannot be had.
    """
    try:
        config = layer.get_config()
        if name is not None and name != layer.name:
            config = {**config, "name": name}
        return layer.__class__.from_config(config)
    except (NotImplementedError, TypeError, ValueError) as error:
        advice = (
            "Give its class a `get_config()` that returns all arguments of "
            f"`__init__`: {error}"
        )
        if isinstance(layer, keras.layers.Lambda):
            advice = (
                "Its function is in no configuration that is safe to load. "
                "Write a layer class, or register a named function with "
                "`keras.saving.register_keras_serializable`."
            )
        raise UnsupportedLayerError(
            f"Layer '{layer.name}' cannot be copied. {advice} "
            f"Received: layer={layer.name!r} of type "
            f"{type(layer).__name__}"
        ) from error


def _convert(
    model: keras.Model,
    convert: Callable[[keras.layers.Layer], keras.layers.Layer],
    pairs: dict[int, tuple[Any, Any]],
    name: str | None = None,
) -> keras.Model:
    """Clones a graph, nested graphs included, by way of `convert`.

    Args:
        model: A built Functional or Sequential model.
        convert: Makes the counterpart of one layer.
        pairs: Filled with `id(layer): (layer, counterpart)`.
        name: Name of the clone. Defaults to that of `model`.
    """

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        if graphs.is_graph(layer):
            return _convert(layer, convert, pairs)
        made = convert(layer)
        sources[id(made)] = layer
        return made

    def call(made: Any, *args: Any, **kwargs: Any) -> Any:
        # What has no variables yet makes them now.
        with _spared(sources.pop(id(made), None)):
            return made(*args, **kwargs)

    sources: dict[int, Any] = {}
    graph = keras.models.clone_model(
        graphs.as_graph(model, name),
        clone_function=lambda layer: _remember(layer, clone, pairs),
        call_function=call,
    )
    graph.trainable = graph.trainable and model.trainable
    return graph


def _extend(
    model: keras.Model, head: keras.Model, pairs: dict[int, tuple[Any, Any]]
) -> Any:
    """Calls copies of a head's layers on the outputs of a model.

    Returns:
        The symbolic outputs, so that the head's layers become layers of the
        whole instead of a nested model.
    """
    produced: dict[int, list[Any]] = {}
    taken = {operation.name for operation in model.operations}

    def copy(layer: keras.layers.Layer) -> keras.layers.Layer:
        # A head may use the name of a layer of the backbone; a graph may not.
        name = layer.name
        while name in taken:
            name = f"{head.name}_{name}"
        taken.add(name)
        return copy_layer(layer, name)

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = layer(*args, **kwargs)
        produced.setdefault(id(layer), []).append(outputs)
        return outputs

    keras.models.clone_model(
        graphs.as_graph(head),
        input_tensors=model.output,
        clone_function=lambda layer: _remember(layer, copy, pairs),
        call_function=call,
    )

    def counterpart(output: keras.KerasTensor) -> keras.KerasTensor:
        layer, _, index = output._keras_history
        (made,) = produced[id(pairs[id(layer)][1])]
        return keras.tree.flatten(made)[index]

    if any(len(calls) > 1 for calls in produced.values()):
        # Which call made which output cannot be told; nest the head instead.
        name = head.name
        while name in taken:
            name = f"{name}_head"
        return copy_model(head, name)(model.output)
    return keras.tree.map_structure(counterpart, head.output)


def _spared(layer: Any) -> contextlib.AbstractContextManager[None]:
    """Spares a layer's copy the initial values that are overwritten."""
    inner = layer.layer if isinstance(layer, PackedLayer) else layer
    # A user's layer may compute more from its initial values.
    if not isinstance(inner, keras.layers.Layer) or not (
        planning.is_all_of_keras(inner)
    ):
        return contextlib.nullcontext()
    return initial_values.spared(inner)


def _remember(
    layer: keras.layers.Layer,
    make: Callable[[keras.layers.Layer], keras.layers.Layer],
    pairs: dict[int, tuple[Any, Any]],
) -> keras.layers.Layer:
    if id(layer) not in pairs:
        pairs[id(layer)] = (layer, make(layer))
    return pairs[id(layer)][1]


def _copy_variables(
    source: keras.layers.Layer, target: keras.layers.Layer
) -> None:
    if graphs.is_graph(source) or not isinstance(source, keras.layers.Layer):
        return  # A model's layers are copied one by one.
    values = dict(variables.walk(source))
    places = dict(variables.walk(target))
    if [(n, v.shape, v.dtype) for n, v in values.items()] != [
        (n, v.shape, v.dtype) for n, v in places.items()
    ]:
        raise UnsupportedLayerError(
            f"Layer '{source.name}' cannot be copied: a layer made from its "
            "configuration has other variables. Let `get_config()` return all "
            "arguments of `__init__`, and make all variables in `__init__` or "
            f"`build()`. Received: variables {list(values)}, in the copy "
            f"{list(places)}"
        )
    ids = {id(v) for v in values.values() if not variables.is_seed(v)}
    shared = [name for name, v in places.items() if id(v) in ids]
    if shared:
        raise UnsupportedLayerError(
            f"Layer '{source.name}' cannot be copied: a layer made from its "
            "configuration shares variables with it. Let `get_config()` "
            "return its sublayers by "
            "`keras.saving.serialize_keras_object(layer)`. "
            f"Received: layer={source.name!r} with shared variables {shared}"
        )
    for name, value in values.items():
        places[name].assign(value)
    for layer in target._flatten_layers():
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # It computes with what it derives here.


def _check_same(
    model: keras.Model, copy: keras.Model, seen: probing.Observation | None
) -> None:
    """Checks that a copy computes the same, where users' layers are in it."""
    of_users = [
        layer.name
        for _, layer in graphs.walk_layers(model)
        if not planning.is_all_of_keras(layer)
    ]
    if not of_users:
        return
    missing = probing.difference(
        graphs.as_graph(model), graphs.as_graph(copy), seen
    )
    if missing:
        raise UnsupportedLayerError(
            "The network cannot be copied: layers made from their "
            "configurations compute something else. Let `get_config()` return "
            "all arguments of `__init__`, and make no other state there than "
            f"variables. Received: layers {of_users}, with operations that "
            f"the copy does not have: {missing}"
        )
