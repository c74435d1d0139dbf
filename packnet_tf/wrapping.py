"""`wrap`: from a plain Keras network to a packed model."""

import itertools
from collections.abc import Callable
from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf

from packnet_tf import cloning
from packnet_tf import graphs
from packnet_tf import planning
from packnet_tf import probing
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import UnsupportedLayerError
from packnet_tf.model import PackNetModel
from packnet_tf.tasks import TaskList

_CLASSIFIERS = ("softmax", "sigmoid", "linear")
_MAX_TRIED = 5  # Inputs of a subclassed model whose dtypes are tried out.


def wrap(
    model: keras.Model,
    task: str | None = None,
    head: str | None = "auto",
    filters: "str | Callable[[keras.layers.Layer], bool] | None" = None,
    name: str | None = None,
    biases: str = "frozen",
    normalization: str = "frozen",
) -> PackNetModel:
    """Packs a Keras network, so that one task after another can train in it.

    The network is copied; the original is left as it is. The packed model
    computes the same, bit for bit. If the network ends in a classifier, that
    becomes the head of task 1, which begins at once and owns all weights.
    Otherwise the network is a backbone, and the first `add_task` is task 1.

    Args:
        model: A built Keras model. A subclassed model is packed as a whole,
            so its class needs a `get_config()`, as for saving.
        task: Name of the task that the classifier belongs to. Defaults to
            `"task_1"` where there is one.
        head: Name of the layer at which the classifier begins. `"auto"`
            takes the last layer with weights if it is a dense layer (or a
            1×1 convolution) with softmax, sigmoid or no activation, whose
            outputs are of rank 2. `None`: all of it is backbone.
        filters: Which layers may be packed: a regular expression searched in
            the layer's name (of a layer inside of another, `outer/inner`),
            or a callable `filters(layer)` that returns `True` for them. The
            weights of all other layers are frozen with task 1. Defaults to
            all.
        name: Name of the packed model. Defaults to `packed_<name>`.
        biases: `"frozen"`: biases, and all else that is neither packed nor
            normalization, train with task 1 and are frozen with it, as in
            the paper. `"per_task"`: each task has biases of its own, which
            start from those of the task before.
        normalization: The same for the variables of normalization layers,
            moving statistics included.

    Returns:
        A `PackNetModel`.

    Raises:
        ArgumentError: If the model is not built, if there is no such head,
            if no layer is packed, or if another argument makes no sense.
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
    TaskList().check_new("task_1" if task is None else task)
    backbone, classifier, plan = decide(
        model, head, filters, biases, normalization, required=task is not None
    )
    packed = PackNetModel(
        cloning.pack(backbone, plan),
        left_out=plan.left_out,
        name=name or f"packed_{model.name}",
    )
    if classifier is not None:
        task = task or "task_1"
        packed.add_task(task, head=cloning.copy_model(classifier, task))
    return packed


def decide(
    model: keras.Model,
    head: str | None = "auto",
    filters: "str | Callable[[keras.layers.Layer], bool] | None" = None,
    biases: str = "frozen",
    normalization: str = "frozen",
    required: bool = False,
) -> tuple[keras.Model, keras.Model | None, planning.Plan]:
    """Decides how a network will be packed; nothing is copied.

    Args:
        model: As for `wrap`, like all that follow.
        head: Name of a layer, `"auto"` or `None`.
        filters: Which layers may be packed.
        biases: `"frozen"` or `"per_task"`.
        normalization: The same.
        required: Whether there must be a classifier.

    Returns:
        The backbone and the classifier, if there is one, of the layers of
        `model`; and how each layer of the backbone will be protected.

    Raises:
        ArgumentError: As `wrap` does.
        UnsupportedLayerError: If a layer cannot be protected; names it.
    """
    _check_built(model)
    if not graphs.is_graph(model):
        model = _as_layer_of_graph(model)
    first = _find_head(model, head, required)
    backbone, classifier = model, None
    if first is not None:
        backbone, classifier = _split(model, first)
    plan = planning.make(backbone, filters, biases, normalization)
    if not any(of_layer.packed for of_layer in plan.layers.values()):
        raise ArgumentError(
            "No weight would be packed, so tasks would have nothing to share. "
            "Let `filters` match a trainable dense, convolutional or embedding "
            f"layer of the backbone. Received: filters={filters!r} for a "
            f"backbone with layers {[layer.name for layer in backbone.layers]}"
        )
    return backbone, classifier, plan


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
    for variable in model.variables:
        if not isinstance(variable.value, tf.Variable):
            raise ArgumentError(
                "The model's variables must be TensorFlow's. Make the model "
                "with Keras 3 on the TensorFlow backend. Received: "
                f"{variable.name!r} of type {type(variable.value).__name__}"
            )


def _as_layer_of_graph(model: keras.Model) -> keras.Model:
    """Makes a subclassed model the one layer of a Functional model."""
    shapes = (model.get_build_config() or {}).get("input_shape")
    last_error = "Keras does not know the shapes of its inputs"
    for dtypes in _input_dtypes(model, shapes) if shapes else ():
        try:
            made = _called_on(model, shapes, dtypes)
            takes_integers = probing.casts_to_integers(made)
            if not any(takes_integers):
                return made
            return _called_on(
                model,
                shapes,
                [
                    "int32" if is_integer else dtype
                    for dtype, is_integer in zip(dtypes, takes_integers)
                ],
            )
        except Exception as error:
            last_error = error
    raise UnsupportedLayerError(
        "A subclassed model is packed as the layer of a Functional model, "
        "which could not be made. Make it yourself: `x = keras.Input(shape, "
        f"dtype=...)` and `keras.Model(x, model(x))`. {last_error}. "
        f"Received: model={model.name!r} of type {type(model).__name__}"
    )


def _called_on(
    model: keras.Model, shapes: Any, dtypes: Iterable[str]
) -> keras.Model:
    left = iter(dtypes)
    inputs = keras.tree.map_shape_structure(
        lambda shape: keras.Input(
            batch_shape=(None, *shape[1:]), dtype=next(left)
        ),
        shapes,
    )
    return keras.Model(inputs, model(inputs), name=model.name)


def _input_dtypes(model: keras.Model, shapes: Any) -> list[tuple[str, ...]]:
    """Lists the dtypes to try for the inputs: as few integers as possible.

    What is given as another dtype is cast. So floats come first, and an input
    that has to be an integer does not make one of the others.
    """
    count = len(keras.tree.flatten(_leaves(shapes)))
    wide = keras.backend.result_type(model.compute_dtype, "float32")
    if count > _MAX_TRIED:
        return [(wide,) * count]
    choices = itertools.product((wide, "int32"), repeat=count)
    return sorted(choices, key=lambda dtypes: dtypes.count("int32"))


def _leaves(shapes: Any) -> Any:
    return keras.tree.map_shape_structure(lambda shape: 0, shapes)


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
    model = graphs.as_graph(model)
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
