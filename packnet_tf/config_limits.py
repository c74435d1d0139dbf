"""How much a configuration may ask Keras to make, if it is not trusted.

Variables are bounded where they are made. Bounded here is what else a few
words can ask much for: constants, and loops in Python. Time and memory then
grow with the size of a configuration.
"""

import inspect
import math
from typing import Any

import keras

from packnet_tf.errors import FileError

# In all: a base, and so many more for each value of the configuration.
_BASE = 2**17
_BASE_ENTRIES = 2**20
_EACH = 4
# What a class of Keras counts with, unless it is named below.
_COUNT = 2**16
# What Keras loops over, whoever has registered a class that inherits it.
_LOOPS = {
    "chain_depth": 8,
    "indices_or_sections": 2**16,
    "ngrams": 2**8,
    "ns_steps": 64,
    "num_chains": 8,
    "num_oov_indices": 2**16,
    "num_ops": 16,
    "num_thresholds": 2**16,
    "power_iterations": 64,
}
# Sides of variables and of shapes, and what is no count at all.
_NO_COUNTS = frozenset(
    {
        "crossing_dim",
        "default_value",
        "fill_value",
        "filters",
        "hashing_dim",
        "head_dim",
        "initial",
        "input_dim",
        "key_dim",
        "mask_token",
        "mask_value",
        "max_freq",
        "max_tokens",
        "max_val",
        "max_value",
        "nan",
        "neginf",
        "num_bins",
        "num_classes",
        "num_segments",
        "num_tokens",
        "offset",
        "oov_token",
        "output_dim",
        "output_sequence_length",
        "posinf",
        "projection_dim",
        "salt",
        "sampling_rate",
        "scale",
        "seed",
        "threshold",
        "units",
        "value_dim",
        "vocabulary_size",
        "x_max",
        "x_min",
    }
)
# Keras calls what is in these to find the shape of what comes out.
_CALLED = tuple(
    getattr(module, name)
    for module, name in (
        (keras.layers, "Pipeline"),
        (getattr(keras, "distillation", None), "Distiller"),
    )
    if hasattr(module, name)
)
# In there, these go on as long as their input is wide.
_WIDE = tuple(
    getattr(keras.layers, name)
    for name in (
        "AugMix",
        "Equalization",
        "RandAugment",
        "RandomElasticTransform",
    )
    if hasattr(keras.layers, name)
)
# What all layers for preprocessing have in common, by whatever name.
_PREPROCESSING = tuple(
    base
    for base in keras.layers.Rescaling.__mro__
    if issubclass(base, keras.layers.Layer)
    and base not in (keras.layers.Rescaling, *keras.layers.Layer.__mro__)
)


class Account:
    """Adds up what a configuration asks for.

    Attributes:
        values: How many values the configuration has, set from outside.
        attempts: How often Keras tries to call its layers, likewise.
    """

    def __init__(self) -> None:
        self.values = 0
        self.attempts = 0
        self._counts: dict[int, int] = {}  # By the `id` of the configuration.
        self._entries = 0

    def add(self, found: Any, config: dict[str, Any]) -> None:
        """Checks what an object would make, and adds it.

        Args:
            found: The class of it.
            config: What Keras would make it from.

        Raises:
            FileError: If it asks for too much.
        """
        inner = config.get("config")
        if not inspect.isclass(found) or not isinstance(inner, dict):
            return
        if issubclass(found, keras.layers.RNN) and inner.get("unroll"):
            raise refusal(
                "unrolls a recurrent layer, for as many steps as it likes",
                f"unroll={brief(inner['unroll'])} of {found.__name__}",
            )
        if issubclass(found, keras.layers.Normalization):
            self._entries += _broadcast(inner, config.get("build_config"))
        padded = _number(inner.get("max_tokens"))
        if inner.get("pad_to_max_tokens") and _is_int(padded):
            self._entries += abs(padded)
        is_own = found.__module__.partition(".")[0] == "keras"
        if is_own and _is_operation(found, "Unstack"):
            if inner.get("num") is None:
                raise refusal(
                    "takes a tensor apart into as many as it likes",
                    f"num=None of {found.__name__}",
                )
        self._counts[id(config)] = sum(
            _count(found, name, _number(value), is_own)
            for name, value in inner.items()
        )

    def close(self, config: Any) -> None:
        """Checks what all objects together would make.

        Args:
            config: The whole configuration.

        Raises:
            FileError: If they ask for too much.
        """
        for what, found, base in (
            ("makes large constants of little", self._entries, _BASE_ENTRIES),
            ("calls its layers all too often", self._calls(config), _BASE),
            ("lists its layers in no order", self.attempts, _BASE),
        ):
            most = base + _EACH * self.values
            if found > most:
                raise refusal(what, f"{found}, expected {most} at most")

    def _calls(self, value: Any) -> int:
        """Counts the calls of all layers, each as often as it counts itself.

        A model within a model is called again with each call of that.
        """
        if isinstance(value, (list, tuple)):
            return sum(map(self._calls, value))
        if not isinstance(value, dict):
            return 0
        calls = self._counts.get(id(value), 0)
        calls += sum(map(self._calls, value.values()))
        nodes = value.get("inbound_nodes")
        if isinstance(nodes, (list, tuple)):
            return max(len(nodes), 1) * (calls + 1)
        return calls


def is_called(found: Any) -> bool:
    """Tells whether Keras calls what is in a layer already when it is made.

    Args:
        found: The class of the layer.

    Returns:
        `True` if so. What is in there should be checked by `may_be_called`.
    """
    return inspect.isclass(found) and issubclass(found, _CALLED)


def may_be_called(found: Any) -> bool:
    """Tells whether a call takes no longer however large the input is.

    Args:
        found: A class or function that is within such a layer.

    Returns:
        `True` if it may be there: if it is no layer of Keras, or one for
        preprocessing that is not known to do other than that.
    """
    return (
        not inspect.isclass(found)
        or not issubclass(found, keras.Operation)
        or found.__module__.partition(".")[0] != "keras"
        or (issubclass(found, _PREPROCESSING) and not issubclass(found, _WIDE))
    )


def brief(value: Any) -> str:
    """Describes a value for a message.

    Args:
        value: Anything that JSON holds.

    Returns:
        A short text.
    """
    try:
        return repr(value)[:80]
    except (RecursionError, ValueError):  # Deep, or a number too long.
        return f"a value of type {type(value).__name__}"


def refusal(what: str, received: str) -> FileError:
    """Makes the error for a configuration that is not allowed.

    Args:
        what: What it does.
        received: What was found in it.

    Returns:
        The error, to be raised.
    """
    return FileError(
        f"The configuration of the model {what}. It is refused, as it may come "
        "from anyone; load a file that you trust with `safe_mode=False`. "
        f"Received: {received}"
    )


def _count(found: type, name: str, value: Any, is_own: bool) -> int:
    """Checks one argument, and returns how far it counts."""
    if not _is_int(value):
        return 0
    most = _LOOPS.get(name)
    if most is None:
        is_operation = issubclass(found, keras.Operation)
        if not is_own or not (
            issubclass(found, keras.Metric)
            or (is_operation and name not in _NO_COUNTS)
        ):
            return 0
        most = _COUNT
    if abs(value) > most:
        raise refusal(
            "counts to more than it can need",
            f"{name}={brief(value)} of {found.__name__}, expected {most} at "
            "most",
        )
    return abs(value)


def _is_operation(found: type, name: str) -> bool:
    return issubclass(found, keras.Operation) and found.__name__ == name


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> Any:
    """Takes a number out of an array of one, which does as well."""
    if (
        isinstance(value, dict)
        and value.get("class_name") in ("__numpy__", "__tensor__")
        and isinstance(value.get("config"), dict)
    ):
        value = value["config"].get("value")
        while isinstance(value, (list, tuple)) and len(value) == 1:
            value = value[0]
    return value


def _broadcast(inner: dict[str, Any], build: Any) -> int:
    """Tells how large a mean becomes that is given to `Normalization`.

    Keras makes a constant of it, as large as the axes that are kept. A layer
    with a shape to be built for is built when it is made, and never again.

    Returns:
        How many entries the constant has, 0 if the file holds all of them.
    """
    mean, axes = inner.get("mean"), inner.get("axis", -1)
    axes = [axes] if _is_int(axes) else axes
    if mean is None or not axes:
        return 0
    sides = _sides(mean)
    if isinstance(axes, (list, tuple)):
        if len(sides) == len(axes) and all(side > 1 for side in sides):
            return 0  # It fits no other shape.
        shape = build.get("input_shape") if isinstance(build, dict) else None
        if isinstance(shape, (list, tuple)) and all(map(_is_int, axes)):
            kept = {
                axis % len(shape)
                for axis in axes
                if -len(shape) <= axis < len(shape)
            }
            if kept and all(
                _is_int(shape[axis]) and shape[axis] >= 0 for axis in kept
            ):
                return math.prod(shape[axis] for axis in kept)
    raise refusal(
        "normalizes by a mean for as many features as it likes",
        f"mean={brief(mean)} for axis={brief(axes)}, built for {brief(build)}",
    )


def _sides(value: Any) -> list[int]:
    """Returns the shape of nested lists; if they are uneven, Keras refuses."""
    sides = []
    while isinstance(value, (list, tuple)):
        sides.append(len(value))
        value = value[0] if value else None
    return sides
