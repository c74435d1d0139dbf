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

from packnet_tf import call_order
from packnet_tf import config_limits
from packnet_tf.config_limits import brief
from packnet_tf.config_limits import refusal

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
    registered with Keras, as the classes of packnet_tf are. What they would
    make besides variables grows with the configuration, no faster. No module
    is imported, and nothing is made.

    Args:
        config: What `json.loads` made of a configuration, of a model or of
            any part of one. Lists may be tuples.

    Raises:
        FileError: If it names anything else, asks for too much, or is no
            configuration at all.
    """
    account, graphs = config_limits.Account(), call_order.Graphs()
    for value, depth in _walk(config):
        account.values += 1
        if depth > _MAX_DEPTH:
            raise refusal("is nested too deep", f"depth={depth}")
        if isinstance(value, dict):
            if not all(isinstance(key, str) for key in value):
                raise refusal("has keys that are no text", brief(value))
            if "class_name" in value:
                found = _check_object(value)
                account.add(found, value)
                graphs.add_object(found, value)
                if config_limits.is_called(found):
                    _check_called(value)
            if "inbound_nodes" in value:
                _check_nodes(value["inbound_nodes"])
            graphs.add(value)
        elif type(value) is int:
            if abs(value) > _MAX_INT:
                raise refusal("holds a number without sense", brief(value))
        elif not isinstance(value, (str, float, bool, list, tuple, type(None))):
            raise refusal("is not what JSON holds", brief(value))
    account.attempts = graphs.count_attempts()
    account.close(config)


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


def _check_called(config: dict[str, Any]) -> None:
    """Checks what Keras calls as soon as it is made."""
    for value, _ in _walk(config.get("config")):
        if isinstance(value, dict) and "class_name" in value:
            if not config_limits.may_be_called(_check_object(value)):
                raise refusal(
                    "calls layers that may take any time, as soon as it is "
                    "loaded",
                    f"{brief(value['class_name'])} within "
                    f"{brief(config['class_name'])}",
                )


def _check_nodes(nodes: Any) -> None:
    """Checks that each call of a layer takes a tensor of its model.

    Keras computes one that takes none at once, whatever its size. What else a
    call takes is made again as often as Keras tries to make the call.
    """
    if not isinstance(nodes, (list, tuple)) or not all(map(_has_tensor, nodes)):
        raise refusal("calls a layer on no tensor of its model", brief(nodes))
    for value, _ in _walk(nodes):
        if isinstance(value, dict) and "class_name" in value:
            found = _check_object(value)
            if inspect.isclass(found) and issubclass(found, keras.Operation):
                raise refusal(
                    "calls a layer on another layer",
                    brief(value["class_name"]),
                )


def _has_tensor(node: Any) -> bool:
    """Tells whether a call takes a tensor of the model."""
    if not isinstance(node, dict):
        return False
    left = [node.get("args"), node.get("kwargs")]
    while left:
        value = left.pop()
        if isinstance(value, (list, tuple)):
            left.extend(value)
        elif isinstance(value, dict) and "class_name" not in value:
            left.extend(value.values())
        elif isinstance(value, dict):
            if value["class_name"] == "__keras_tensor__" and isinstance(
                value.get("config"), dict
            ):
                return True
    return False


def _check_object(config: dict[str, Any]) -> Any:
    """Checks a dict that Keras would make an object from.

    Returns:
        Its class, or `None` if it is a function or plain.
    """
    name = config["class_name"]
    if not isinstance(name, str):
        raise refusal("names a class by no text", brief(name))
    inner = config.get("config")
    if name in _PLAIN:
        return None
    if name in _ARRAYS:
        dtype = inner.get("dtype") if isinstance(inner, dict) else None
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            raise refusal("holds an array of no such dtype", brief(dtype))
        return None
    if name.startswith("__"):
        raise refusal("brings code of its own", brief(name))
    module = config.get("module")
    # Without a module Keras takes it for the format of Keras 2.
    if "module" not in config or not isinstance(module, (str, type(None))):
        raise refusal("names a class without its module", brief(name))
    if name == "function":
        if not isinstance(inner, str) or not _is_function(module, inner):
            raise refusal(
                "names a function that is none of Keras and not registered",
                f"{brief(inner)} of module {brief(module)}",
            )
        return None
    found = _find(config, name, module)
    if not isinstance(inner, (dict, type(None))):
        raise refusal(
            "makes an object from no arguments",
            f"{brief(name)}, {brief(inner)}",
        )
    if inspect.isclass(found) and issubclass(found, _CODE):
        raise refusal("brings code of its own", f"a layer {brief(name)}")
    # Those of Keras that take a vocabulary take the path of one, too.
    if inner and isinstance(inner.get("vocabulary"), str):
        raise refusal(
            "reads another file for its vocabulary", brief(inner["vocabulary"])
        )
    return found


def _find(config: dict[str, Any], name: str, module: str | None) -> Any:
    """Finds the class that Keras would find."""
    registered = config.get("registered_name", name)
    found = None
    if isinstance(registered, str):
        found = keras.saving.get_registered_object(registered)
    if found is not None:
        # In a scope of custom objects, a class goes by any name of the user.
        if registered != name and getattr(found, "__name__", None) != name:
            raise refusal(
                "names a class by the name of another",
                f"{brief(name)}, registered_name={brief(registered)}",
            )
        return found
    if module is not None:
        found = _of_keras(module, name)
    if found is None:
        raise refusal(
            "names a class that is none of Keras and not registered. Import "
            "what registers it first",
            f"{brief(name)} of module {brief(module)}, "
            f"registered_name={brief(registered)}",
        )
    return found


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
    found = keras.saving.get_registered_object(name)
    if found is not None:
        return not inspect.isclass(found)
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
