"""Functional and Sequential models as graphs of layers."""

import functools
from collections.abc import Iterator
from typing import Any

import keras


def is_graph(layer: Any) -> bool:
    """Tells whether something is a Functional or Sequential model.

    Args:
        layer: Anything.

    Returns:
        `True` for a Functional or Sequential model whose call is nothing but
        its graph of layers.
    """
    return any(
        isinstance(layer, cls) and type(layer).call is cls.call
        for cls in (keras.Sequential, _functional_class())
    )


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


def walk_layers(
    model: keras.Model, prefix: str = "", seen: set[int] | None = None
) -> Iterator[tuple[str, keras.layers.Layer]]:
    """Walks the layers of a graph and of the graphs nested in it.

    Args:
        model: A Functional or Sequential model.
        prefix: What to put before each name.
        seen: Ids of the layers walked already; a shared layer comes once.

    Yields:
        A unique name and the layer; graphs themselves and operations such as
        `x + y` are left out.
    """
    seen = set() if seen is None else seen
    for layer in model.layers:
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        if is_graph(layer):
            yield from walk_layers(layer, f"{prefix}{layer.name}/", seen)
        elif isinstance(layer, keras.layers.Layer):
            yield f"{prefix}{layer.name}", layer


@functools.cache
def _functional_class() -> type:
    """Returns the class of Functional models, which Keras does not export."""
    x = keras.Input((1,), name="x")
    y = keras.layers.Identity(name="y")(x)
    return type(keras.Model(x, y, name="graph"))
