"""The variables of a layer: names that are the same in any process, values.

Keras numbers unnamed layers and variables as they are made (`dense_7`), so a
name can differ after loading. The names here follow the attributes that hold
a sublayer or a variable: `kernel`, `cell/recurrent_kernel`, `blocks/0/gamma`.
"""

import functools
import re
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from packnet_tf import graphs

SEED_NAME = "seed_generator_state"
"""What Keras calls the state of a random seed generator."""

_AUTOMATIC = re.compile(r"variable(_\d+)?")
_MAX_DEPTH = 4  # How deep attributes are searched for what they hold.


def is_seed(variable: keras.Variable) -> bool:
    """Tells whether a variable is the state of a random seed generator.

    Args:
        variable: A Keras variable.

    Returns:
        `True` if it is only there to draw random numbers.
    """
    return variable.name == SEED_NAME and not variable.trainable


def view(variable: keras.Variable) -> np.ndarray:
    """Returns the value of a variable, without a copy where TensorFlow can.

    It stays as it is when the variable changes, which then takes memory of
    its own; so it is best dropped before.

    Args:
        variable: A Keras variable.

    Returns:
        A read-only array of the variable's shape and dtype.
    """
    value = np.asarray(tf.convert_to_tensor(variable.value)).view()
    value.flags.writeable = False
    return value


def own(layer: keras.layers.Layer) -> list[tuple[str, keras.Variable]]:
    """Lists the variables that a layer holds itself.

    Args:
        layer: A built layer.

    Returns:
        Pairs of name and variable, in Keras' order, those of its sublayers
        left out. Names are unique.
    """
    inner = {
        id(variable)
        for sublayer in _direct_sublayers(layer)
        for variable in sublayer.variables
    }
    attributes = _attributes(layer)
    named: dict[str, keras.Variable] = {}
    for variable in layer.variables:
        if id(variable) in inner:
            continue
        name = variable.name
        if _AUTOMATIC.fullmatch(name):
            name = attributes.get(id(variable), "variable")
        named[_unused(name, named)] = variable
    return list(named.items())


def sublayers(
    layer: keras.layers.Layer,
) -> list[tuple[str, keras.layers.Layer]]:
    """Lists the layers that a layer is directly made of.

    Args:
        layer: A layer.

    Returns:
        Pairs of name and layer. Names are unique. The layers of a Functional
        or Sequential model bear their own names, others that of the
        attribute that holds them.
    """
    attributes = {} if graphs.is_graph(layer) else _attributes(layer)
    named: dict[str, keras.layers.Layer] = {}
    for sublayer in _direct_sublayers(layer):
        name = attributes.get(id(sublayer)) or _given_name(sublayer)
        named[_unused(name, named)] = sublayer
    return list(named.items())


def walk(
    layer: keras.layers.Layer, prefix: str = ""
) -> Iterator[tuple[str, keras.Variable]]:
    """Walks all variables of a layer, those of its sublayers included.

    Args:
        layer: A built layer or model.
        prefix: What to put before each name.

    Yields:
        A unique name and the variable. A variable comes once.
    """
    seen: set[int] = set()
    for name, variable in _walk(layer, prefix):
        if id(variable) not in seen:
            seen.add(id(variable))
            yield name, variable


def _walk(
    layer: keras.layers.Layer, prefix: str
) -> Iterator[tuple[str, keras.Variable]]:
    for name, variable in own(layer):
        yield prefix + name, variable
    for name, sublayer in sublayers(layer):
        yield from _walk(sublayer, f"{prefix}{name}/")


def _direct_sublayers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    return layer._flatten_layers(include_self=False, recursive=False)


def _attributes(layer: keras.layers.Layer) -> dict[int, str]:
    """Finds under which attribute a layer holds an object.

    Returns:
        The first name for each `id(object)`, without leading underscores;
        entries of lists and dicts have their place behind it.
    """
    names: dict[int, str] = {}
    for attribute, value in vars(layer).items():
        # TensorFlow keeps what it tracks under `_self_...`.
        if attribute in _bookkeeping() or attribute.startswith("_self_"):
            continue
        for place, item in _flatten(value):
            names.setdefault(id(item), attribute.lstrip("_") + place)
    return names


def _flatten(value: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    if depth < _MAX_DEPTH and isinstance(value, dict):
        items = value.items()
    elif depth < _MAX_DEPTH and isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        yield "", value
        return
    for key, item in items:
        for place, found in _flatten(item, depth + 1):
            yield f"/{key}{place}", found


def _given_name(layer: keras.layers.Layer) -> str:
    """Returns a layer's name, without the number if Keras made it up."""
    base = re.sub(r"_\d+$", "", layer.name)
    made_up = type(layer).__name__.replace("_", "").lower()
    is_made_up = base.replace("_", "") == made_up
    return base if is_made_up else layer.name


@functools.cache
def _bookkeeping() -> frozenset[str]:
    """Names the attributes in which Keras' own code lists a layer's state."""
    # TensorFlow adds some of its own once a layer holds another.
    layer = keras.layers.Layer()
    layer.held = keras.layers.Layer()
    of_graphs = {"_functional", "_operations", "_operations_by_depth"}
    return (frozenset(vars(layer)) - {"held"}) | of_graphs


def _unused(name: str, taken: dict[str, Any]) -> str:
    """Returns the name, numbered if it is taken."""
    number, unused = 1, name
    while unused in taken:
        unused = f"{name}_{number}"
        number += 1
    return unused
