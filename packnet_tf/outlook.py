"""What is known of a network before its next task, packed already or not."""

import dataclasses
import math
import numbers
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from packnet_tf import graphs
from packnet_tf import inventory
from packnet_tf import registry
from packnet_tf import wrapping
from packnet_tf.capacity import Capacity
from packnet_tf.errors import ArgumentError
from packnet_tf.model import PackNetModel
from packnet_tf.tasks import Stage


@dataclasses.dataclass(frozen=True)
class Outlook:
    """What is known of a network before its next task.

    Attributes:
        capacity: Who owns what now.
        widths: Bytes of an entry of each packed weight, by its key.
        shared: Bytes of what all tasks share that is not packed.
        own: Bytes of what each task has of its own in the backbone.
        features: The backbone's symbolic output, or a structure of such.
        heads: Bytes of the heads there are.
        unfrozen: Name of the newest task if it is not frozen, else `None`.
        classifier: Entries of the classifier that becomes the head of task 1,
            `None` if there is none.
    """

    capacity: Capacity
    widths: dict[str, int]
    shared: int
    own: int
    features: Any
    heads: int = 0
    unfrozen: str | None = None
    classifier: int | None = None


def of_plain(model: keras.Model, **options: Any) -> Outlook:
    """Looks at a plain network as `wrap` does; nothing is copied.

    Args:
        model: A built Keras model.
        **options: `head`, `filters`, `biases` and `normalization`, as for
            `wrap`.

    Returns:
        An `Outlook`.

    Raises:
        ArgumentError: As `wrap` does.
        UnsupportedLayerError: If a layer cannot be protected; names it.
    """
    backbone, classifier, plan = wrapping.decide(model, **options)
    layers, widths = {}, {}
    shared = own = unpacked = 0
    for name, layer in graphs.walk_layers(backbone):
        of_layer = plan.layers[id(layer)]
        for part in registry.classify(layer):
            count = math.prod(part.variable.shape)
            if part.name in of_layer.packed:
                layers[f"{name}/{part.name}"] = (count,)
                widths[f"{name}/{part.name}"] = _width(part.variable)
                continue
            if part.kind is not registry.Kind.SEED:
                unpacked += count
            if part.name in of_layer.per_task:
                own += _bytes(part.variable)
            else:
                shared += _bytes(part.variable)
    return Outlook(
        Capacity((), layers, unpacked, ()),
        widths,
        shared,
        own,
        graphs.as_graph(backbone).output,
        classifier=classifier and classifier.count_params(),
    )


def of_packed(model: PackNetModel) -> Outlook:
    """Looks at a packed model.

    Args:
        model: The model, in any stage.

    Returns:
        An `Outlook`.
    """
    widths = {}
    shared = own = 0
    for entry in model.summary_protection(print_fn=len):
        if entry.owner is not None:
            widths[entry.key] = _width(entry.variable)
        elif entry.protection == inventory.PER_TASK:
            own += _bytes(entry.variable)
        else:
            shared += _bytes(entry.variable)
    names = model.task_names
    frozen = model.stage in (None, Stage.FROZEN)
    return Outlook(
        model.summary_capacity(print_fn=len),
        widths,
        shared,
        own,
        model.backbone.output,
        sum(_bytes(v) for name in names for v in model.heads[name].variables),
        None if frozen else names[-1],
    )


def count_heads(
    known: Outlook,
    tasks: list[str],
    units: "int | Mapping[str, int] | None",
    heads: Mapping[str, int] | None,
) -> list[int | None]:
    """Counts the entries of the heads of new tasks.

    Args:
        known: The network.
        tasks: Names of the new tasks.
        units: Number of classes of each, or of some by name, for a dense head.
        heads: Number of entries in the head instead, by name.

    Returns:
        The number of each task, `None` where nothing is known of its head.

    Raises:
        ArgumentError: If a task has two heads, is not new, or if it is no
            number.
    """
    found: dict[str, int] = {}
    if known.classifier is not None and tasks:
        found[tasks[0]] = known.classifier
    if not isinstance(units, Mapping):
        given = {} if units is None else dict.fromkeys(tasks, units)
        units = {name: n for name, n in given.items() if name not in found}
    heads = heads or {}
    for name, number in [*units.items(), *heads.items()]:
        is_count = isinstance(number, numbers.Integral)
        if isinstance(number, bool) or not is_count or number < 0:
            raise ArgumentError(
                "`units` are numbers of classes, `heads` numbers of entries. "
                f"Received: {number!r} for {name!r}"
            )
        if (
            name not in tasks
            or name in found
            or (name in units and name in heads)
        ):
            raise ArgumentError(
                "Each new task has one head, by `units` or by `heads`; the "
                "classifier of a plain model is that of the first. Received: "
                f"one more for {name!r}, where the new tasks are {tasks}"
            )
        if name in units:
            number = _dense(known.features, number)
        found[name] = int(number)
    return [found.get(name) for name in tasks]


def _dense(features: Any, units: int) -> int:
    """Counts the entries of a dense head."""
    width = getattr(features, "shape", (None,))[-1]
    if width is None:
        raise ArgumentError(
            "`units` needs a backbone with one output of known width. Give "
            "`heads` instead. Received: "
            f"outputs={keras.tree.map_structure(str, features)}"
        )
    return units * (width + 1)


def _bytes(variable: keras.Variable) -> int:
    return math.prod(variable.shape) * _width(variable)


def _width(variable: keras.Variable) -> int:
    return tf.as_dtype(variable.dtype).size
