"""Copies of a network: with its layers packed, and plain again."""

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from packnet_tf import inventory
from packnet_tf import ownership
from packnet_tf import registry
from packnet_tf.errors import UnsupportedLayerError
from packnet_tf.layers import PackedLayer

LayerFilter = Callable[[keras.layers.Layer], bool]


def is_graph(layer: Any) -> bool:
    """Tells whether something is a Functional or Sequential model.

    Args:
        layer: Anything.

    Returns:
        `True` for a Functional or Sequential model.
    """
    return isinstance(layer, (keras.Sequential, _functional_class()))


@functools.cache
def _functional_class() -> type:
    """Returns the class of Functional models, which Keras does not export."""
    x = keras.Input((1,), name="x")
    y = keras.layers.Identity(name="y")(x)
    return type(keras.Model(x, y, name="graph"))


def check_packable(model: keras.Model, should_pack: LayerFilter) -> None:
    """Checks that every layer of a network can be protected.

    Args:
        model: A built Functional or Sequential model.
        should_pack: As for `pack`.

    Raises:
        UnsupportedLayerError: If a layer cannot be protected; names it.
    """
    _refuse_sharing_between_models(model, {})
    for _, layer in inventory.walk_layers(model):
        if isinstance(layer, PackedLayer):
            raise UnsupportedLayerError(
                "The network is wrapped already. Wrap the plain Keras model, "
                "or call `export_task()` and wrap what it exports. "
                f"Received: model={model.name!r} with packed layer "
                f"{layer.name!r}"
            )
        _packed_names(layer, should_pack)


def pack(model: keras.Model, should_pack: LayerFilter) -> keras.Model:
    """Copies a network with every packable layer in a `PackedLayer`.

    Layers shared between nested models stay shared. Nested models become
    Functional models of the same name.

    Args:
        model: A built Functional or Sequential model.
        should_pack: `should_pack(layer)` says whether a layer may be packed;
            otherwise all of it is frozen after task 1.

    Returns:
        A Functional model that computes the same, bit for bit. All entries
        of its owner maps are free.
    """

    def convert(layer: keras.layers.Layer) -> keras.layers.Layer:
        copy = copy_layer(layer)
        if not isinstance(layer, keras.layers.Layer):
            return copy  # An operation such as `x + y`; it has no variables.
        packed = _packed_names(layer, should_pack)
        return PackedLayer(copy, packed=packed) if packed else copy

    pairs: dict[int, tuple[Any, Any]] = {}
    packed_model = _convert(model, convert, pairs)
    for layer, copy in pairs.values():
        inner = copy.layer if isinstance(copy, PackedLayer) else copy
        _copy_variables(layer, inner)
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
        for attribute, kernel, owner in zip(
            layer.packed, layer.packed_variables(), layer.owners
        ):
            visible = ownership.visible_mask(owner.numpy(), task)
            getattr(copy, attribute).assign(
                np.where(visible, kernel.numpy(), np.zeros((), kernel.dtype))
            )
    return model


def copy_model(model: keras.Model, name: str) -> keras.Model:
    """Copies a Functional or Sequential model, weights included.

    Args:
        model: A built Functional or Sequential model.
        name: Name of the copy.

    Returns:
        A Functional model that shares no variable with `model`.
    """
    pairs: dict[int, tuple[Any, Any]] = {}
    copy = _convert(model, copy_layer, pairs, name)
    for layer, layer_copy in pairs.values():
        _copy_variables(layer, layer_copy)
    return copy


def as_graph(model: keras.Model, name: str | None = None) -> keras.Model:
    """Makes a plain, uncompiled Functional model of the same layers.

    Args:
        model: A built Functional or Sequential model.
        name: Name of the new model. Defaults to that of `model`.

    Returns:
        A Functional model that shares its layers with `model`.
    """
    if isinstance(model, keras.Sequential):
        # `input` and `output` would be those of the graph it is nested in.
        inputs, outputs = model.inputs[0], model.outputs[0]
    else:
        inputs, outputs = model.input, model.output
    return keras.Model(inputs, outputs, name=name or model.name)


def copy_layer(layer: keras.layers.Layer) -> keras.layers.Layer:
    """Makes a new layer of the same configuration, without its weights.

    Args:
        layer: A layer or an operation.

    Returns:
        The new one.
    """
    return layer.__class__.from_config(layer.get_config())


def _packed_names(
    layer: keras.layers.Layer, should_pack: LayerFilter
) -> tuple[str, ...]:
    if isinstance(layer, keras.Model):
        raise UnsupportedLayerError(
            f"Layer '{layer.name}' cannot be protected: it is a subclassed "
            "model, whose layers cannot be seen. Use a Functional or "
            f"Sequential model. Received: {type(layer).__name__}"
        )
    names = registry.packed_names(layer)
    return names if names and should_pack(layer) else ()


def _refuse_sharing_between_models(
    model: keras.Model, users: dict[int, keras.Model]
) -> None:
    """Refuses a layer that several of the nested models use.

    Keras loses the wiring of such a layer when it saves and loads the model,
    in some cases without an error.
    """
    for layer in model.layers:
        if not isinstance(layer, keras.layers.Layer) or not layer.variables:
            continue
        if users.setdefault(id(layer), model) is not model:
            raise UnsupportedLayerError(
                f"Layer '{layer.name}' cannot be protected: it is used in "
                f"'{users[id(layer)].name}' and in '{model.name}', and Keras "
                "does not save and load a layer that models share across "
                "their nesting. Use it within one of them. "
                f"Received: layer={layer.name!r} of type "
                f"{type(layer).__name__}"
            )
        if is_graph(layer):
            _refuse_sharing_between_models(layer, users)


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
        if is_graph(layer):
            return _convert(layer, convert, pairs)
        return convert(layer)

    graph = keras.models.clone_model(
        as_graph(model, name),
        clone_function=lambda layer: _remember(layer, clone, pairs),
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

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = layer(*args, **kwargs)
        produced.setdefault(id(layer), []).append(outputs)
        return outputs

    keras.models.clone_model(
        as_graph(head),
        input_tensors=model.output,
        clone_function=lambda layer: _remember(layer, copy_layer, pairs),
        call_function=call,
    )

    def counterpart(output: keras.KerasTensor) -> keras.KerasTensor:
        layer, _, index = output._keras_history
        (made,) = produced[id(pairs[id(layer)][1])]
        return keras.tree.flatten(made)[index]

    if any(len(calls) > 1 for calls in produced.values()):
        # Which call made which output cannot be told; nest the head instead.
        return copy_model(head, head.name)(model.output)
    return keras.tree.map_structure(counterpart, head.output)


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
    if is_graph(source) or not isinstance(source, keras.layers.Layer):
        return  # A model's layers are copied one by one.
    for old, new in zip(source.variables, target.variables, strict=True):
        new.assign(old)
    if isinstance(target, keras.layers.Normalization):
        target.finalize_state()  # It computes with what it derives here.
