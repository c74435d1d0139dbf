"""What a configuration may ask Keras to make, if it is not trusted.

Keras makes an object of whatever class or function a configuration names, and
imports modules for that. Here every name is looked up among what is there
already, before anything is made.
"""

import inspect
import sys
from collections.abc import Iterator
from typing import Any

import keras

from packnet_tf.errors import FileError

_MAX_DEPTH = 128
_MAX_INT = 2**64

_MADE = (
    keras.Operation,  # Layers and models are operations too.
    keras.Initializer,
    keras.Loss,
    keras.Metric,
    keras.Optimizer,
    keras.Quantizer,
    keras.Regularizer,
    keras.constraints.Constraint,
    keras.dtype_policies.DTypePolicy,
    keras.optimizers.schedules.LearningRateSchedule,
    keras.random.SeedGenerator,
    *(
        getattr(keras.optimizers, name)
        for name in ("OptimizerMap",)
        if hasattr(keras.optimizers, name)
    ),
)
# These bring code of their own, or fetch it from a path.
_CODE = tuple(
    getattr(keras.layers, name)
    for name in (
        "FlaxLayer",
        "JaxLayer",
        "Lambda",
        "TFSMLayer",
        "TorchModuleWrapper",
    )
    if hasattr(keras.layers, name)
)
_LOOKUPS = (
    keras.layers.IntegerLookup,
    keras.layers.StringLookup,
    keras.layers.TextVectorization,
)
# Where Keras looks for a function that is named alone.
_FUNCTIONS = (
    keras.activations,
    keras.constraints,
    keras.initializers,
    keras.losses,
    keras.metrics,
    keras.optimizers,
    keras.regularizers,
)
_NO_FUNCTIONS = ("deserialize", "get", "serialize")
_ARRAYS = ("__numpy__", "__tensor__")
_PLAIN = ("__bytes__", "__ellipsis__", "__keras_tensor__", "__slice__")
_DTYPES = frozenset(
    {"bool", "bfloat16", "float16", "float32", "float64"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)


def check(config: Any) -> None:
    """Checks that a configuration makes known objects only.

    Known are the classes of Keras, but for those that bring code, and what is
    registered with Keras, as the classes of packnet_tf are. No module is
    imported, and nothing is made.

    Args:
        config: What `json.loads` made of a configuration, of a model or of
            any part of one. Lists may be tuples.

    Raises:
        FileError: If it names anything else, or is no configuration at all.
    """
    for value, depth in _walk(config):
        if depth > _MAX_DEPTH:
            raise _refusal("is nested too deep", f"depth={depth}")
        if isinstance(value, dict):
            if not all(isinstance(key, str) for key in value):
                raise _refusal("has keys that are no text", _brief(value))
            if "class_name" in value:
                _check_object(value)
        elif type(value) is int:
            if abs(value) > _MAX_INT:
                raise _refusal("holds a number without sense", _brief(value))
        elif not isinstance(value, (str, float, bool, list, tuple, type(None))):
            raise _refusal("is not what JSON holds", _brief(value))


def _walk(config: Any) -> Iterator[tuple[Any, int]]:
    """Yields each value and its depth, without recursion."""
    left = [(config, 0)]
    while left:
        value, depth = left.pop()
        yield value, depth
        if isinstance(value, dict):
            left.extend((each, depth + 1) for each in value.values())
        elif isinstance(value, (list, tuple)):
            left.extend((each, depth + 1) for each in value)


def _check_object(config: dict[str, Any]) -> None:
    """Checks a dict that Keras would make an object from."""
    name = config["class_name"]
    if not isinstance(name, str):
        raise _refusal("names a class by no text", _brief(name))
    inner = config.get("config")
    if name in _PLAIN:
        return
    if name in _ARRAYS:
        dtype = inner.get("dtype") if isinstance(inner, dict) else None
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            raise _refusal("holds an array of no such dtype", _brief(dtype))
        return
    if name.startswith("__"):
        raise _refusal("brings code of its own", _brief(name))
    module = config.get("module")
    # Without a module Keras takes it for the format of Keras 2.
    if "module" not in config or not isinstance(module, (str, type(None))):
        raise _refusal("names a class without its module", _brief(name))
    if name == "function":
        if not isinstance(inner, str) or not _is_function(module, inner):
            raise _refusal(
                "names a function that is none of Keras and not registered",
                f"{_brief(inner)} of module {_brief(module)}",
            )
        return
    registered = config.get("registered_name", name)
    found = None
    if isinstance(registered, str):
        found = keras.saving.get_registered_object(registered)
    if found is None and module is not None:
        found = _of_keras(module, name)
    if found is None:
        raise _refusal(
            "names a class that is none of Keras and not registered. Import "
            "what registers it first",
            f"{_brief(name)} of module {_brief(module)}, "
            f"registered_name={_brief(registered)}",
        )
    if inspect.isclass(found) and issubclass(found, _CODE):
        raise _refusal("brings code of its own", f"a layer {_brief(name)}")
    if inspect.isclass(found) and issubclass(found, _LOOKUPS):
        vocabulary = inner.get("vocabulary") if isinstance(inner, dict) else ""
        if isinstance(vocabulary, str):
            raise _refusal(
                "reads another file for its vocabulary", _brief(vocabulary)
            )


def _of_keras(module: str, name: str) -> type | None:
    """Finds a class of Keras in a module that is imported already."""
    if module != "keras" and not module.startswith("keras."):
        return None
    found = vars(sys.modules.get(module, object)).get(name)
    is_made = inspect.isclass(found) and issubclass(found, _MADE)
    return found if is_made else None


def _is_function(module: str | None, name: str) -> bool:
    """Tells whether a function is one of Keras, or registered."""
    registered = keras.saving.get_custom_objects()
    if keras.saving.get_registered_object(name) is not None:
        return True
    if name in _NO_FUNCTIONS:
        return False
    if module == "builtins":
        return any(
            inspect.isfunction(vars(each).get(name)) for each in _FUNCTIONS
        ) or any(key.endswith(f">{name}") for key in registered)
    return any(
        module == each.__name__ and inspect.isfunction(vars(each).get(name))
        for each in _FUNCTIONS
    )


def _brief(value: Any) -> str:
    try:
        return repr(value)[:80]
    except (RecursionError, ValueError):  # Deep, or a number too long.
        return f"a value of type {type(value).__name__}"


def _refusal(what: str, received: str) -> FileError:
    return FileError(
        f"The configuration of the model {what}. It is refused, as it may come "
        "from anyone; for a file that you trust there is "
        f"`keras.saving.load_model`. Received: {received}"
    )
