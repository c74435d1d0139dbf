"""Every variable of a packed backbone, and how it is protected."""

import dataclasses
from collections.abc import Iterable
from collections.abc import Iterator

import keras

from packnet_tf import registry
from packnet_tf.layers import PackedLayer

PACKED = "packed"
FROZEN = "frozen after task 1"
SEED = "random state, no output at inference depends on it"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One variable of the backbone.

    Attributes:
        key: Its name, unique in the backbone and the same after loading:
            the names of nested models and of the layer, then of the variable.
        layer: The key of its layer.
        variable: The variable.
        protection: `PACKED`, `FROZEN` or `SEED`.
        owner: The owner map if it is packed, else `None`.
        assignable: Whether the layer is a user's own, which may assign to the
            variable while it trains even when it is not trainable.
    """

    key: str
    layer: str
    variable: keras.Variable
    protection: str
    owner: keras.Variable | None = None
    assignable: bool = False


def walk_layers(
    model: keras.Model, prefix: str = "", seen: set[int] | None = None
) -> Iterator[tuple[str, keras.layers.Layer]]:
    """Walks the layers of a model and of the models nested in it.

    Args:
        model: A Functional or Sequential model.
        prefix: What to put before each name.
        seen: Ids of the layers walked already; a shared layer comes once.

    Yields:
        A unique name and the layer, models themselves left out.
    """
    seen = set() if seen is None else seen
    for layer in model.layers:
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        if isinstance(layer, keras.Model):
            yield from walk_layers(layer, f"{prefix}{layer.name}/", seen)
        else:
            yield f"{prefix}{layer.name}", layer


def take(backbone: keras.Model) -> list[Entry]:
    """Lists every variable of a packed backbone.

    Args:
        backbone: A model as `cloning.pack` makes it.

    Returns:
        One entry per variable, in the order of the layers. Owner maps are
        not listed on their own.
    """
    entries = []
    for name, layer in walk_layers(backbone):
        owners = {}
        inner = layer
        if isinstance(layer, PackedLayer):
            inner = layer.layer
            owners = {
                id(variable): owner
                for variable, owner in zip(
                    layer.packed_variables(), layer.owners
                )
            }
        for key, variable in named_variables(name, inner.variables):
            owner = owners.get(id(variable))
            protection = FROZEN if owner is None else PACKED
            if is_seed(variable):
                protection = SEED
            assignable = protection == FROZEN and not _is_of_keras(inner)
            entries.append(
                Entry(key, name, variable, protection, owner, assignable)
            )
    return entries


def named_variables(
    prefix: str, variables: Iterable[keras.Variable]
) -> list[tuple[str, keras.Variable]]:
    """Gives each variable of a layer a unique key.

    Args:
        prefix: The name of the layer.
        variables: Its variables, in Keras' order.

    Returns:
        Pairs of key and variable. A name that comes twice gets a number.
    """
    named: dict[str, keras.Variable] = {}
    for variable in variables:
        key = base = f"{prefix}/{variable.name}"
        number = 1
        while key in named:
            key = f"{base}_{number}"
            number += 1
        named[key] = variable
    return list(named.items())


def is_seed(variable: keras.Variable) -> bool:
    """Tells whether a variable is the state of a random seed generator.

    Args:
        variable: A Keras variable.

    Returns:
        `True` if no output at inference depends on it.
    """
    return variable.name == registry.SEED_NAME and not variable.trainable


def _is_of_keras(layer: keras.layers.Layer) -> bool:
    return type(layer).__module__.split(".")[0] == "keras"


def to_text(entries: Iterable[Entry]) -> str:
    """Lists entries as a table.

    Args:
        entries: What to list.

    Returns:
        One line per variable: its key, shape, dtype and protection.
    """
    rows = [("variable", "shape", "dtype", "protection")]
    rows += [
        (
            entry.key,
            str(tuple(entry.variable.shape)),
            entry.variable.dtype,
            entry.protection,
        )
        for entry in entries
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join(
        "  ".join(
            [cell.ljust(width) for cell, width in zip(row, widths)] + [row[3]]
        )
        for row in rows
    )
