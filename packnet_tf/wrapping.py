"""`wrap`: from a plain Keras network to a packed model."""

import re
from collections.abc import Callable
from typing import Any

import keras

from packnet_tf import cloning
from packnet_tf.errors import ArgumentError
from packnet_tf.model import PackNetModel
from packnet_tf.tasks import TaskList

_CLASSIFIERS = ("softmax", "sigmoid", "linear")


def wrap(
    model: keras.Model,
    task: str | None = None,
    head: str | None = "auto",
    filters: "str | Callable[[keras.layers.Layer], bool] | None" = None,
    name: str | None = None,
) -> PackNetModel:
    """Packs a Keras network, so that one task after another can train in it.

    The network is copied; the original is left as it is. The packed model
    computes the same, bit for bit. If the network ends in a classifier, that
    becomes the head of task 1, which begins at once and owns all weights.
    Otherwise the network is a backbone, and the first `add_task` is task 1.

    Args:
        model: A built Functional or Sequential model.
        task: Name of the task that the classifier belongs to. Defaults to
            `"task_1"` where there is one.
        head: Name of the layer at which the classifier begins. `"auto"`
            takes the last layer with weights if it is a dense layer (or a
            1×1 convolution) with softmax, sigmoid or no activation, whose
            outputs are of rank 2. `None`: all of it is backbone.
        filters: Which layers may be packed: a regular expression searched in
            the layer's name, or a callable `filters(layer)` that returns
            `True` for them. All other layers are frozen with task 1.
            Defaults to all.
        name: Name of the packed model. Defaults to `packed_<name>`.

    Returns:
        A `PackNetModel`.

    Raises:
        ArgumentError: If the model is not built, if there is no such head,
            or if no layer is packed.
        UnsupportedLayerError: If a layer cannot be protected; names it.
        TaskError: If `task` is not a name.

    Example:
    >>> import keras, packnet_tf
    >>> network = keras.Sequential([
    ...     keras.Input((28, 28, 1)),
    ...     keras.layers.Conv2D(8, 3, activation="relu"),
    ...     keras.layers.GlobalAveragePooling2D(),
    ...     keras.layers.Dense(10, activation="softmax"),
    ... ])
    >>> model = packnet_tf.wrap(network, task="digits")
    >>> model.task, model.stage.value
    ('digits', 'TRAIN')

    Reference:
        - [Mallya and Lazebnik, 2018](https://arxiv.org/abs/1711.05769)
    """
    _check_built(model)
    should_pack = _resolve_filters(filters)
    TaskList().check_new("task_1" if task is None else task)
    first = _find_head(model, head, required=task is not None)
    backbone, classifier = model, None
    if first is not None:
        backbone, classifier = _split(model, first)
    cloning.check_packable(backbone, should_pack)
    packed = PackNetModel(
        cloning.pack(backbone, should_pack),
        name=name or f"packed_{model.name}",
    )
    if not packed.summary_capacity(print_fn=lambda text: None).total:
        raise ArgumentError(
            "No weight would be packed, so tasks would have nothing to share. "
            "Let `filters` match a dense, convolutional or embedding layer of "
            f"the backbone. Received: filters={filters!r} for a backbone with "
            f"layers {[layer.name for layer in backbone.layers]}"
        )
    if classifier is not None:
        task = task or "task_1"
        packed.add_task(task, head=cloning.copy_model(classifier, task))
    return packed


def _check_built(model: Any) -> None:
    if not isinstance(model, keras.Model):
        raise ArgumentError(
            "`wrap` takes a Keras model (`keras.Model`, of Keras 3). "
            f"Received: {model!r} of type {type(model).__name__}"
        )
    if not model.built or (
        isinstance(model, keras.Sequential) and not model.inputs
    ):
        raise ArgumentError(
            "`wrap` needs a built model, whose weights exist. Begin it with "
            "`keras.Input(shape)`, or call it on data once. "
            f"Received: model={model.name!r}, which is not built"
        )
    if isinstance(model, PackNetModel):
        raise ArgumentError(
            "The model is wrapped already; go on with `add_task()`. "
            f"Received: model={model.name!r}"
        )
    if not cloning.is_graph(model):
        raise ArgumentError(
            "`wrap` takes Functional and Sequential models. Express the "
            f"network as one of them. Received: model={model.name!r} of type "
            f"{type(model).__name__}"
        )


def _resolve_filters(filters: Any) -> cloning.LayerFilter:
    if filters is None:
        return lambda layer: True
    if isinstance(filters, str):
        try:
            pattern = re.compile(filters)
        except re.error as error:
            raise ArgumentError(
                "`filters` is not a regular expression: "
                f"{error}. Received: filters={filters!r}"
            ) from error
        return lambda layer: pattern.search(layer.name) is not None
    if callable(filters):
        return filters
    raise ArgumentError(
        "`filters` is a regular expression or a callable that takes a layer. "
        f"Received: filters={filters!r}"
    )


def _find_head(
    model: keras.Model, head: str | None, required: bool
) -> keras.layers.Layer | None:
    """Finds the layer at which the classifier begins."""
    if head is None:
        if required:
            raise ArgumentError(
                "`task` names the task of the model's classifier, and "
                "`head=None` says that there is none. Leave one of them out. "
                "Received: head=None and a task"
            )
        return None
    if head != "auto":
        for layer in model.layers:
            if layer.name == head:
                return layer
        raise ArgumentError(
            "`head` names the layer at which the classifier begins: one of "
            f"{[layer.name for layer in model.layers]}. Received: {head!r}"
        )
    weighted = [layer for layer in model.layers if layer.weights]
    if weighted and _is_classifier(model, weighted[-1]):
        return weighted[-1]
    if required:
        raise ArgumentError(
            "`task` names the task of the model's classifier, but it ends in "
            "none that can be told by itself. Name its first layer with "
            "`head=`, or leave out `task` and call `add_task()`. "
            f"Received: model={model.name!r}, whose last layer with weights "
            f"is {weighted[-1].name if weighted else None!r}"
        )
    return None


def _is_classifier(model: keras.Model, layer: keras.layers.Layer) -> bool:
    outputs = model.outputs
    if len(outputs) != 1 or len(outputs[0].shape) != 2:
        return False
    is_pointwise = isinstance(
        layer, (keras.layers.Conv1D, keras.layers.Conv2D)
    ) and all(size == 1 for size in layer.kernel_size)
    if not (isinstance(layer, keras.layers.Dense) or is_pointwise):
        return False
    return keras.activations.serialize(layer.activation) in _CLASSIFIERS


def _split(
    model: keras.Model, first: keras.layers.Layer
) -> tuple[keras.Model, keras.Model]:
    """Splits a network before the first layer of its classifier."""
    model = cloning.as_graph(model)
    try:
        features = _input_in(model, first)
        return (
            keras.Model(model.input, features, name=model.name),
            keras.Model(features, model.output, name=f"{model.name}_head"),
        )
    except (ValueError, KeyError) as error:
        raise ArgumentError(
            "The model cannot be split there: all that follows must depend on "
            "the input of that layer alone. Name another layer with `head=`, "
            f"or pass `head=None`. Received: head={first.name!r}: {error}"
        ) from error


def _input_in(model: keras.Model, layer: keras.layers.Layer) -> Any:
    """Returns what a layer takes in this model, in case it is used twice."""
    calls = {
        id(node): node
        for nodes in model._nodes_by_depth.values()
        for node in nodes
        if node.operation is layer
    }
    if len(calls) != 1:
        raise ValueError(f"layer '{layer.name}' is used {len(calls)} times")
    (node,) = calls.values()
    inputs = node.input_tensors
    return inputs[0] if len(inputs) == 1 else list(inputs)
