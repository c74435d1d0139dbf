"""What goes around a network that is exported: raw inputs and class names."""

import collections
import dataclasses
from collections.abc import Mapping
from collections.abc import Sequence
from collections.abc import Set
from typing import Any

import keras
import tensorflow as tf

from packnet_tf import cloning
from packnet_tf import graphs
from packnet_tf import probing
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import UnsupportedLayerError

SCORES = "scores"
LABELS = "labels"


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """How a task takes its inputs, and what it returns.

    Attributes:
        preprocessing: A Functional model from the inputs to those of the
            network, or `None` if they are the same.
        class_names: Entry `i` names output `i`, or `None` to return the
            outputs alone.
    """

    preprocessing: keras.Model | None = None
    class_names: tuple[str, ...] | None = None


def make(
    network: keras.Model,
    head: keras.Model,
    preprocessing: keras.layers.Layer | None = None,
    class_names: Sequence[str] | None = None,
) -> Endpoint:
    """Checks what is to go around a task's network.

    Args:
        network: The backbone, a Functional model.
        head: The task's head, a Functional model.
        preprocessing: A Keras layer or model whose outputs the backbone
            takes. A model that declares its inputs takes those; any other
            takes inputs of the backbone's shape and dtype.
        class_names: Unique strings, as many as the head has outputs.

    Returns:
        The endpoint.

    Raises:
        ArgumentError: If the class names do not fit the head, if the outputs
            of `preprocessing` do not fit the backbone, or if they are random.
    """
    if class_names is not None:
        class_names = _check_names(class_names, head.output)
    if preprocessing is not None:
        preprocessing = _check_preprocessing(preprocessing, network.input)
    return Endpoint(preprocessing, class_names)


def check_savable(endpoint: Endpoint) -> None:
    """Checks that a Keras file can hold the preprocessing.

    Args:
        endpoint: As `make` returns it.

    Raises:
        UnsupportedLayerError: If a layer has no configuration, or one that
            is not safe to load.
    """
    if endpoint.preprocessing is not None:
        for _, layer in graphs.walk_layers(endpoint.preprocessing):
            cloning.copy_layer(layer)
            if not isinstance(layer, keras.layers.Lambda):
                continue
            # Older versions of Keras refuse it only when the file is loaded.
            function = layer.get_config()["function"]
            if isinstance(function, dict) and (
                function.get("class_name") == "__lambda__"
            ):
                raise UnsupportedLayerError(
                    "A Keras file with Python code is not safe to load. Write "
                    "a layer class, or register a named function with "
                    "`keras.saving.register_keras_serializable`. "
                    f"Received: layer={layer.name!r} of type Lambda"
                )


def surround(model: keras.Model, endpoint: Endpoint) -> keras.Model:
    """Puts preprocessing before a network, as one model.

    Args:
        model: A Functional model of one task.
        endpoint: What goes around it.

    Returns:
        A Functional model that takes what the endpoint takes, and returns
        what `model` returns.
    """
    if endpoint.preprocessing is None:
        return model
    inputs = _inputs_like(endpoint.preprocessing.input)
    outputs = model(endpoint.preprocessing(inputs))
    return keras.Model(inputs, outputs, name=f"{model.name}_with_inputs")


def add_labels(model: keras.Model, endpoint: Endpoint) -> keras.Model:
    """Makes a network return labels too, by layers of Keras alone.

    Args:
        model: A Functional model of one task.
        endpoint: What goes around it.

    Returns:
        A Functional model that returns a dict as `label` does, or what
        `model` returns if there are no class names.
    """
    if endpoint.class_names is None:
        return model
    lookup = keras.layers.StringLookup(
        vocabulary=list(endpoint.class_names),
        num_oov_indices=0,
        oov_token=_unused(endpoint.class_names),
        mask_token=None,
        invert=True,
        name=LABELS,
    )
    scores = model.output
    labels = lookup(keras.ops.argmax(scores, axis=-1))
    return keras.Model(
        model.input, {SCORES: scores, LABELS: labels}, name=model.name
    )


def label(scores: tf.Tensor, endpoint: Endpoint) -> Any:
    """Adds labels to what a network returns.

    Args:
        scores: What the network returns.
        endpoint: What goes around it.

    Returns:
        A dict of `"scores"`, which are those, and `"labels"`, the name of
        the highest along the last axis, the first of those that are equal;
        `scores` alone if there are no class names.
    """
    if endpoint.class_names is None:
        return scores
    names = tf.constant(endpoint.class_names)
    labels = tf.gather(names, tf.argmax(scores, axis=-1), name=LABELS)
    return {SCORES: scores, LABELS: labels}


def can_cast(one: tf.DType, other: tf.DType) -> bool:
    """Tells whether numbers can be cast, losing no more than precision.

    Args:
        one: The dtype that they have.
        other: The one that they are to get.

    Returns:
        `True` from integers to integers or to floats, but not back; also if
        both dtypes are the same.
    """
    kinds = ("is_bool", "is_integer", "is_floating", "is_complex")
    ranks = [
        [n for n, kind in enumerate(kinds) if getattr(dtype, kind)]
        for dtype in (one, other)
    ]
    return one == other or (all(ranks) and ranks[0] <= ranks[1])


def describe(structure: Any) -> str:
    """Describes symbolic tensors in a message.

    Args:
        structure: A symbolic tensor, or a structure of such.

    Returns:
        The dtype and shape of each.
    """
    return str(
        keras.tree.map_structure(lambda x: f"{x.dtype} {x.shape}", structure)
    )


# Helpers.


def _inputs_like(structure: Any) -> Any:
    return keras.tree.map_structure(
        lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name),
        structure,
    )


def _unused(names: Sequence[str]) -> str:
    """Returns a word that is none of the names."""
    word = "[UNK]"
    while word in names:
        word = f"[{word}]"
    return word


def _check_names(names: Sequence[str], outputs: Any) -> tuple[str, ...]:
    if not isinstance(outputs, keras.KerasTensor):
        shapes = keras.tree.map_structure(lambda x: x.shape, outputs)
        raise ArgumentError(
            "`class_names` name the outputs of a head that returns one "
            "tensor. Leave them out, and name the classes where the outputs "
            f"are used. Received: class_names={names!r}, outputs of shape "
            f"{shapes}"
        )
    size = outputs.shape[-1] if len(outputs.shape) > 1 else None
    if size is None or size < 2:
        raise ArgumentError(
            "`class_names` need a head that returns a score for each of at "
            "least two classes; the highest names the label. Leave them out. "
            f"Received: class_names={names!r}, outputs of shape "
            f"{outputs.shape}"
        )
    if (
        isinstance(names, (str, bytes, Mapping, Set))  # Those have no order.
        or not hasattr(names, "__iter__")
    ):
        names_ok, listed = False, names
    else:
        # Python's own strings, of NumPy's or any other kind.
        listed = tuple(
            str(name) if isinstance(name, str) else name for name in names
        )
        names_ok = all(
            isinstance(name, str) and name and name.splitlines() == [name]
            for name in listed
        )
    if not names_ok:
        raise ArgumentError(
            "`class_names` is a sequence of strings, none empty and each of "
            f"one line. Received: class_names={listed!r}"
        )
    if len(listed) != size:
        raise ArgumentError(
            f"`class_names` has one name for each of the {size} outputs of "
            f"the head, in their order. Received: {len(listed)} names, "
            f"{_short(listed)}"
        )
    counts = collections.Counter(listed)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise ArgumentError(
            "`class_names` are unique, else a label would not tell which "
            f"class it is. Received: {_short(twice)} more than once"
        )
    return listed


def _short(names: Sequence[str]) -> str:
    listed = ", ".join(repr(name) for name in names[:5])
    return f"{listed}, ..." if len(names) > 5 else listed


def _check_preprocessing(
    preprocessing: keras.layers.Layer, expected: Any
) -> keras.Model:
    """Returns preprocessing as a Functional model whose outputs fit."""
    if not isinstance(preprocessing, keras.layers.Layer):
        raise ArgumentError(
            "`preprocessing` is a Keras layer or model. Received: "
            f"preprocessing={preprocessing!r} of type "
            f"{type(preprocessing).__name__}"
        )
    declared = graphs.is_graph(preprocessing) and preprocessing.built
    inputs = _inputs_like(
        graphs.as_graph(preprocessing).input if declared else expected
    )
    try:
        outputs = preprocessing(inputs)
        model = keras.Model(inputs, outputs, name="preprocessing")
    except Exception as error:
        raise ArgumentError(
            "`preprocessing` cannot be called on its inputs: "
            f"{error} If they are not as the backbone's, give a model that "
            "declares them by `keras.Input`. Received: preprocessing="
            f"{preprocessing.name!r}, inputs {describe(inputs)}"
        ) from error
    if not _fits(outputs, expected):
        raise ArgumentError(
            "The outputs of `preprocessing` are the backbone's inputs, "
            f"{describe(expected)}. Let it end with a layer that makes them "
            "so, such as `Resizing` or `Rescaling`. Received: "
            f"preprocessing={preprocessing.name!r} with outputs "
            f"{describe(outputs)}"
        )
    seen = probing.observe(model, training=False)
    changing = [
        *(variable.path for variable in seen.assigned),
        *seen.unseen,
        *seen.random,
        *seen.opaque,
    ]
    if changing:
        raise ArgumentError(
            "`preprocessing` computes the same for the same inputs, by "
            "TensorFlow alone: no random numbers, no assignments and no "
            "Python code. Take that out. Received: preprocessing="
            f"{preprocessing.name!r} with {_short(changing)}"
        )
    return model


def _fits(outputs: Any, expected: Any) -> bool:
    try:
        keras.tree.assert_same_structure(outputs, expected)
    except (TypeError, ValueError):
        return False
    return all(
        _fits_one(one, other)
        for one, other in zip(
            keras.tree.flatten(outputs), keras.tree.flatten(expected)
        )
    )


def _fits_one(output: keras.KerasTensor, expected: keras.KerasTensor) -> bool:
    """Tells whether one tensor can go where another is expected.

    As in Keras, numbers are cast, if that loses no more than precision.
    """
    one, other = (tf.as_dtype(x.dtype) for x in (output, expected))
    return (
        len(output.shape) == len(expected.shape)
        and all(
            here == there or there is None
            for here, there in zip(output.shape[1:], expected.shape[1:])
        )
        and expected.shape[0] in (None, output.shape[0])
        and can_cast(one, other)
    )
