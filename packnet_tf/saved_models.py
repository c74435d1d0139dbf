"""SavedModels: of one task, or of all tasks over the same weights."""

import itertools
import os
import re
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from packnet_tf import endpoints
from packnet_tf import files
from packnet_tf import inventory
from packnet_tf import visibility

FOLDER = files.Folder(
    marks=("saved_model.pb",),
    others=("assets", "fingerprint.pb", "variables"),
    kept=("assets.extra",),
)
"""What a SavedModel is; `assets.extra` holds requests to warm a server up."""

# What Keras calls inputs, by a count that each process begins anew.
_UNNAMED = re.compile(r"(keras_tensor|input_layer)(_\d+)?")


def write_task(
    model: keras.Model,
    endpoint: endpoints.Endpoint,
    path: "str | os.PathLike[str]",
    verbose: bool,
) -> None:
    """Writes the SavedModel of one task, with an endpoint `serve`.

    Args:
        model: A plain Functional model of the task, preprocessing included.
        endpoint: What is around it.
        path: The folder to write.
        verbose: Whether Keras reports the signature.
    """

    def serve(inputs: Any) -> Any:
        # Said, because a Keras layer for images takes it for training if
        # nothing is, and so do all that come after it.
        return endpoints.label(model(inputs, training=False), endpoint)

    archive = keras.export.ExportArchive()
    _track_tables(archive, model)
    archive.add_endpoint("serve", serve, _signature(model.input))
    archive.write_out(path, verbose=verbose)


def input_names(inputs: Any) -> list[str]:
    """Returns what a signature calls its arguments.

    Args:
        inputs: The symbolic inputs.

    Returns:
        The name of each flat input, as far as a SavedModel takes it; of those
        that were given none `"inputs"`, `"inputs_1"` and so on.
    """
    names: list[str] = []
    for x in keras.tree.flatten(inputs):
        name = re.sub(r"\W", "_", x.name, flags=re.ASCII)
        name = name if name[0].isalpha() else f"input_{name}"
        if _UNNAMED.fullmatch(name):
            name = "inputs"
        numbered = (f"{name}_{number}" for number in itertools.count(1))
        names.append(
            next(n for n in itertools.chain([name], numbered) if n not in names)
        )
    return names


class Kept:
    """The weights of an older task in a SavedModel.

    On disk they are empty. The first call selects them once, and all calls
    compute with what it kept.

    Args:
        entries: The packed weights.
        task: Number of the task.
    """

    def __init__(self, entries: list[inventory.Entry], task: int) -> None:
        self._entries = entries
        self._task = task
        self._weights = [
            tf.Variable(
                tf.zeros((0,), entry.variable.dtype),
                trainable=False,
                shape=tf.TensorShape(None),
            )
            for entry in entries
        ]
        self._filled = tf.Variable(False, trainable=False)

    def read(self) -> dict[int, tf.Tensor]:
        """Returns the weights by the `id` of their variables, in a graph."""
        tf.cond(self._filled, lambda: True, self._fill)
        return {
            id(entry.variable): tf.ensure_shape(
                weight.read_value(), entry.variable.shape
            )
            for entry, weight in zip(self._entries, self._weights)
        }

    def _fill(self) -> bool:
        written = [
            weight.assign(
                visibility.select(entry.variable, entry.owner, self._task)
            )
            for entry, weight in zip(self._entries, self._weights)
        ]
        # Calls at the same time may both write, and the same. None may read
        # before all is written.
        with tf.control_dependencies(written):
            self._filled.assign(True)
        return True


def write_tasks(
    model: keras.Model,
    entries: list[inventory.Entry],
    numbers: Mapping[str, int],
    around: Mapping[str, endpoints.Endpoint],
    default: str,
    path: "str | os.PathLike[str]",
    keep: bool,
    verbose: bool,
) -> None:
    """Writes one SavedModel with a signature per task, weights once.

    Args:
        model: The packed model, with `backbone` and `heads`.
        entries: The backbone's packed weights.
        numbers: The number of each task, in their order.
        around: What is around each task.
        default: The task that is also `serving_default`.
        path: The folder to write.
        keep: Whether what is loaded keeps the weights of an older task from
            its first call on, or selects them in each.
        verbose: Whether Keras reports the signatures.
    """
    archive = keras.export.ExportArchive()
    _track_tables(archive, model)
    newest = max(numbers.values())
    for name, number in numbers.items():
        if around[name].preprocessing is not None:
            _track_tables(archive, around[name].preprocessing)
        # Free weights are zero, and nothing trains what is exported: those
        # of the newest task are the weights as they are.
        visible = None if number == newest else number
        kept = Kept(entries, number) if keep and visible else None
        fn = _task_fn(model, name, visible, around[name], kept)
        signature = _signature(_inputs(model, around[name]))
        archive.add_endpoint(name, fn, signature)
        if name == default:
            archive.add_endpoint("serving_default", fn, signature)
    archive.write_out(path, verbose=verbose)


def _track_tables(
    archive: keras.export.ExportArchive, model: keras.Model
) -> None:
    """Tracks lookup tables; variables come with the functions that read them.

    To track the model would store each variable twice, as that of Keras and
    as that of TensorFlow inside of it.
    """
    for trackable in tf.train.TrackableView(model).descendants():
        if isinstance(trackable, tf.saved_model.experimental.TrackableResource):
            archive.track(trackable)


def _task_fn(
    model: keras.Model,
    name: str,
    visible: int | None,
    endpoint: endpoints.Endpoint,
    kept: Kept | None,
) -> Callable[[Any], Any]:
    def serve(inputs: Any) -> Any:
        if endpoint.preprocessing is not None:
            inputs = endpoint.preprocessing(inputs, training=False)
        selected = {} if kept is None else kept.read()
        with (
            visibility.visible_task(visible),
            visibility.selected(selected),
        ):
            features = model.backbone(inputs, training=False)
        scores = model.heads[name](features, training=False)
        return endpoints.label(scores, endpoint)

    return serve


def _inputs(model: keras.Model, endpoint: endpoints.Endpoint) -> Any:
    if endpoint.preprocessing is None:
        return model.backbone.input
    return endpoint.preprocessing.input


def _signature(inputs: Any) -> list[Any]:
    specs = [
        tf.TensorSpec(x.shape, x.dtype, name=name)
        for x, name in zip(keras.tree.flatten(inputs), input_names(inputs))
    ]
    return [keras.tree.pack_sequence_as(inputs, specs)]
