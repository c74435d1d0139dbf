import inspect
import json
import re
import sys

import keras
import numpy as np
import pytest

from packnet_tf import configurations
from packnet_tf.errors import FileError

L = keras.layers


def serialize(thing):
    """Returns a configuration as a file holds it."""
    return json.loads(
        json.dumps(keras.saving.serialize_keras_object(thing), default=list)
    )


def dense(**changes):
    return {**serialize(L.Dense(2)), **changes}


def instances(module, base):
    """Makes an object of each class of a module that needs no arguments."""
    for name, cls in vars(module).items():
        if inspect.isclass(cls) and issubclass(cls, base) and cls is not base:
            try:
                made = cls()
                made.get_config()
            except (NotImplementedError, TypeError, ValueError):
                continue
            yield name, made


def test_check_takes_a_compiled_model(packed, images, finish_task):
    finish_task(packed, *images)
    packed.add_task("two", units=3)
    configurations.check(serialize(packed))
    configurations.check(packed.get_config())


@pytest.mark.parametrize(
    ("module", "base", "least"),
    [
        (keras.constraints, keras.constraints.Constraint, 4),
        (keras.initializers, keras.Initializer, 10),
        (keras.layers, keras.layers.Layer, 60),
        (keras.losses, keras.Loss, 15),
        (keras.metrics, keras.Metric, 20),
        (keras.optimizers, keras.Optimizer, 10),
        (keras.regularizers, keras.Regularizer, 3),
    ],
)
def test_check_takes_what_keras_makes(module, base, least):
    count = 0
    for name, made in instances(module, base):
        if name in ("IntegerLookup", "StringLookup", "TextVectorization"):
            continue
        configurations.check(serialize(made))
        count += 1
    assert count >= least


def test_check_takes_operations_and_functions():
    inputs = keras.Input((4,))
    outputs = keras.ops.relu(inputs) + keras.ops.sum(inputs, -1, keepdims=True)
    configurations.check(serialize(keras.Model(inputs, outputs)))
    for function in (keras.activations.relu, keras.losses.mean_squared_error):
        configurations.check(serialize(function))


def test_check_takes_a_vocabulary_of_its_own():
    for layer in (
        L.StringLookup(vocabulary=["a", "b"]),
        L.IntegerLookup(vocabulary=[1, 2]),
        L.TextVectorization(vocabulary=["a"]),
    ):
        configurations.check(serialize(layer))


def test_check_takes_optimizers_made_of_others():
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 3)
    inner = keras.optimizers.SGD(schedule)
    configurations.check(serialize(keras.optimizers.LossScaleOptimizer(inner)))
    if hasattr(keras.optimizers, "MultiOptimizer"):  # Since Keras 3.15.
        both = keras.optimizers.OptimizerMap(inner, {"a": inner})
        configurations.check(serialize(keras.optimizers.MultiOptimizer(both)))


def test_check_takes_arrays():
    for value in (np.ones(2), keras.ops.ones(2, "int32"), b"ab", slice(1, 2)):
        configurations.check(serialize(value))


def test_check_takes_what_is_registered_and_no_more():
    @keras.saving.register_keras_serializable("configurations_test")
    class Own(L.Layer):
        pass

    @keras.saving.register_keras_serializable("configurations_test")
    def own_activation(x):
        return x

    layer, function = serialize(Own()), serialize(own_activation)
    configurations.check([layer, function])
    registered = keras.saving.get_custom_objects()
    for key in [key for key in registered if key.startswith("configurations_")]:
        del registered[key]
    for config in (layer, function):
        with pytest.raises(FileError, match="not registered"):
            configurations.check(config)


@pytest.mark.parametrize(
    "change",
    [
        {"module": "os", "class_name": "system"},
        {"module": "subprocess", "class_name": "Popen"},
        {"module": "builtins", "class_name": "eval"},
        {"module": "keras.utils", "class_name": "get_file"},
        {"module": "keras.saving", "class_name": "load_model"},
        {"module": "keras.config", "class_name": "enable_interactive_logging"},
        {"module": "keras.callbacks", "class_name": "ModelCheckpoint"},
        {"module": "keras.layers", "class_name": "Nothing"},
        {"module": "keras.layers", "class_name": "__builtins__"},
        {"module": "keras.nothing", "class_name": "Dense"},
        {"module": "keras_hub.layers", "class_name": "Dense"},
        {"module": "kerasevil", "class_name": "Dense"},
        {"module": "packnet_tf.files", "class_name": "replacing"},
        {"module": None},
        {"module": 3},
        {"class_name": 3},
        {"class_name": ["Dense"]},
        {"class_name": "__lambda__", "config": {"value": ["", None, None]}},
        {"class_name": "__typespec__", "config": []},
        {"class_name": "Lambda"},
        {"class_name": "TFSMLayer", "config": {"filepath": "x"}},
        {"class_name": "JaxLayer"},
        {"class_name": "TorchModuleWrapper"},
        {"class_name": "StringLookup", "config": {"vocabulary": "/etc/passwd"}},
        {"class_name": "StringLookup", "config": "x"},
        {"class_name": "function", "config": {"vocabulary": "/etc/passwd"}},
        {"class_name": "function", "config": "get_file"},
        {"class_name": "function", "module": "os", "config": "system"},
        {"class_name": "function", "module": "builtins", "config": "eval"},
        {"class_name": "function", "module": "builtins", "config": "get"},
        {
            "class_name": "function",
            "module": "keras.utils",
            "config": "get_file",
        },
    ],
    ids=str,
)
def test_check_refuses_other_classes_and_functions(change):
    before = set(sys.modules)
    # Deep inside, as anywhere else.
    config = {"a": [{"b": dense(config={"layer": dense(**change)})}]}
    with pytest.raises(FileError, match="Received: "):
        configurations.check(config)
    assert set(sys.modules) == before


def test_check_imports_no_module_of_keras():
    aside = "keras._tf_keras.keras.layers"
    kept = sys.modules.pop(aside)
    try:
        with pytest.raises(FileError, match="none of Keras"):
            configurations.check(dense(module=aside))
        assert aside not in sys.modules
    finally:
        sys.modules[aside] = kept


def test_check_knows_a_refused_layer_by_any_name():
    for module in list(sys.modules):
        found = vars(sys.modules[module]).get("Lambda")
        if module.startswith("keras.") and found is L.Lambda:
            with pytest.raises(FileError, match="code of its own"):
                configurations.check(dense(module=module, class_name="Lambda"))


def test_check_refuses_what_has_no_module():
    # Keras would take it for the format of Keras 2.
    config = dense()
    del config["module"]
    with pytest.raises(FileError, match="without its module"):
        configurations.check(config)


@pytest.mark.parametrize("kind", ["__numpy__", "__tensor__"])
@pytest.mark.parametrize(
    "dtype", ["object", "S1000000000", "(1000000,)f4", "V9", None, ["f4"]]
)
def test_check_refuses_arrays_of_other_dtypes(kind, dtype):
    config = {"class_name": kind, "config": {"value": [1], "dtype": dtype}}
    with pytest.raises(FileError, match="no such dtype"):
        configurations.check(config)


@pytest.mark.parametrize("make", [lambda x: [x], lambda x: {"a": x}])
def test_check_refuses_what_is_nested_too_deep(make):
    config = None
    for _ in range(100):
        config = make(config)
    configurations.check(config)
    for _ in range(100_000):
        config = make(config)
    with pytest.raises(FileError, match="too deep"):
        configurations.check(config)


@pytest.mark.parametrize(
    "value",
    [10**5000, -(2**70), object(), {1: 2}, {1, 2}, b"a", 1j],
    ids=lambda value: type(value).__name__,
)
def test_check_refuses_what_json_does_not_hold(value):
    with pytest.raises(FileError, match=re.escape("Received: ")):
        configurations.check({"a": [value]})
