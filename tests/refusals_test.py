"""What cannot be protected is refused by name, and nothing has changed."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import packnet_tf
from packnet_tf.errors import PackNetError
from packnet_tf.errors import UnsupportedLayerError

L = keras.layers
CLOSED_OVER = tf.Variable(2.0, name="closed_over")
serializable = keras.saving.register_keras_serializable("refusals_test")


class MadeInCall(L.Layer):
    """Makes a new layer, and so new variables, in each call."""

    def call(self, inputs):
        return L.Dense(4)(inputs)


class BuiltInTraining(L.Layer):
    """Builds a sublayer in the first call as in training."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.auxiliary = L.Dense(4)

    def build(self, input_shape):
        pass

    def call(self, inputs, training=False):
        return self.auxiliary(inputs) if training else inputs


class RawVariable(L.Layer):
    """Computes with a variable of TensorFlow, not of Keras."""

    def build(self, input_shape):
        self.raw = tf.Variable(tf.ones((4,)), name="raw_one")

    def call(self, inputs):
        return inputs * self.raw


class HiddenVariable(L.Layer):
    """Computes with a Keras variable that Keras does not track."""

    def build(self, input_shape):
        variable = keras.Variable(np.ones(4, "float32"), name="hidden_one")
        self.get = lambda: variable

    def call(self, inputs):
        return inputs * self.get()


class ValueOfBuild(L.Layer):
    """Computes with the value that a variable had at another time."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(4,))
        self.raw = self.scale.value

    def call(self, inputs):
        return inputs * self.raw


class Counter(L.Layer):
    """Counts its calls."""

    def build(self, input_shape):
        self.count = self.add_weight(
            shape=(), initializer="zeros", trainable=False, name="count"
        )

    def call(self, inputs):
        self.count.assign_add(1.0)
        return inputs


class RawCounter(Counter):
    """Counts its calls behind Keras' back."""

    def build(self, input_shape):
        super().build(input_shape)
        self.raw = self.count.value

    def call(self, inputs):
        if not isinstance(inputs, keras.KerasTensor):
            self.raw.assign_add(1.0)
        return inputs


class InFunction(L.Layer):
    """Computes with its weight in a function of its own."""

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(4, 4))

    @tf.function
    def call(self, inputs):
        return inputs @ self.kernel


class RescalesInFunction(L.Layer):
    """Assigns to a sublayer's weight in a function, only in training."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = L.Dense(4)

    @tf.function
    def rescale(self):
        self.dense.kernel.assign(self.dense.kernel / 2.0)

    def call(self, inputs, training=False):
        if training:
            self.rescale()
        return self.dense(inputs)


class Noisy(L.Layer):
    """Draws random numbers, by TensorFlow's own means."""

    def call(self, inputs):
        return inputs + tf.random.normal(tf.shape(inputs))


class NoisyGenerator(L.Layer):
    """Draws random numbers from a generator of TensorFlow."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.generator = tf.random.Generator.from_seed(1)

    def call(self, inputs):
        return inputs + self.generator.normal(tf.shape(inputs))


class NoisySeed(L.Layer):
    """Draws random numbers from a seed generator of Keras."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed = keras.random.SeedGenerator(1)

    def call(self, inputs):
        shape = keras.ops.shape(inputs)
        return inputs + keras.random.normal(shape, seed=self.seed)


class AlwaysDrops(L.Layer):
    """Drops out at inference too."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dropout = L.Dropout(0.5)

    def call(self, inputs):
        return self.dropout(inputs, training=True)


class InPython(L.Layer):
    """Runs Python code in the graph."""

    def call(self, inputs):
        outputs = tf.py_function(lambda x: x * 2, [inputs], tf.float32)
        outputs.set_shape(inputs.shape)
        return outputs


class InNumpy(L.Layer):
    """Runs NumPy code in the graph."""

    def call(self, inputs):
        outputs = tf.numpy_function(lambda x: x * 2, [inputs], tf.float32)
        outputs.set_shape(inputs.shape)
        return outputs


class LacksArgument(L.Layer):
    """Cannot be made from its configuration."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(4, self.units))

    def call(self, inputs):
        return inputs @ self.kernel

    def get_config(self):
        return super().get_config()


class LacksSize(LacksArgument):
    """Is made from its configuration with another size."""

    def __init__(self, units=3, **kwargs):
        super().__init__(units, **kwargs)


class LacksFactor(L.Layer):
    """Is made from its configuration with another factor."""

    def __init__(self, factor=1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, inputs):
        return inputs * self.factor

    def get_config(self):
        return super().get_config()


class RandomConstant(L.Layer):
    """Has state that is no variable."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.directions = np.random.default_rng().normal(size=(4, 4))

    def call(self, inputs):
        return inputs @ keras.ops.cast(self.directions, inputs.dtype)


@serializable
class Tied(L.Layer):
    """Computes with the kernel of another layer."""

    def __init__(self, other, **kwargs):
        super().__init__(**kwargs)
        self.other = other

    def call(self, inputs):
        return inputs @ keras.ops.transpose(self.other.kernel)

    def get_config(self):
        other = keras.saving.serialize_keras_object(self.other)
        return {**super().get_config(), "other": other}


def ending_in(*layers, **kwargs):
    """Returns a network, or a head, that ends in layers of four features."""
    inputs = keras.Input((4,), name="x")
    x = L.Dense(4, name="stem")(inputs)
    for layer in layers:
        x = layer(x, **kwargs)
    return keras.Model(inputs, x, name="network")


def times(variable):
    inputs = keras.Input((4,), name="x")
    return keras.Model(inputs, L.Dense(4)(inputs) * variable, name="network")


def altered(how):
    model = ending_in(L.Dense(4, name="changed"))
    layer = model.get_layer("changed")
    layer.enable_lora(2) if how == "LoRA" else layer.quantize("int8")
    return model


def altered_inside():
    model = ending_in(keras.Sequential([L.Dense(4, name="changed")]))
    model.layers[-1].get_layer("changed").enable_lora(2)
    return model


def sharing_a_variable():
    inputs = keras.Input((4,), name="x")
    dense = L.Dense(4, name="stem")
    return keras.Model(inputs, Tied(dense, name="tied")(dense(inputs)))


def in_two_models():
    shared = L.Dense(4, name="everywhere")
    inner = keras.Sequential([keras.Input((4,)), L.Dense(4), shared])
    return ending_in(shared, inner)


# How each is made, what the message names, and the reason it gives. All of
# them take and return four features.
CASES = {
    "lora": (lambda: altered("LoRA"), "'changed'", "LoRA"),
    "lora_inside": (altered_inside, "'changed'", "LoRA"),
    "quantized": (lambda: altered("int8"), "'changed'", "quantized"),
    "made_in_call": (
        lambda: ending_in(MadeInCall(name="lazy")),
        "'{model}'",
        "cannot be traced",
    ),
    "built_in_training": (
        lambda: ending_in(BuiltInTraining(name="lazy")),
        "lazy",
        "makes variables when it is called",
    ),
    "raw_variable": (
        lambda: ending_in(RawVariable()),
        "raw_one",
        "no weights of its layers",
    ),
    "hidden_variable": (
        lambda: ending_in(HiddenVariable()),
        "hidden_one",
        "no weights of its layers",
    ),
    "variable_in_lambda": (
        lambda: ending_in(L.Lambda(lambda x: x * CLOSED_OVER, name="closure")),
        "closed_over|'closure'",
        "no weights of its layers|cannot be copied",
    ),
    "variable_as_constant": (
        lambda: times(keras.Variable(2.0, name="factor")),
        "factor",
        "no weights of its layers",
    ),
    "tf_variable_as_constant": (
        lambda: times(tf.Variable(2.0, name="factor")),
        "factor",
        "no weights of its layers",
    ),
    "value_of_build": (
        lambda: ending_in(ValueOfBuild(name="stale")),
        "'stale'.*'scale'",
        "at another time than its call",
    ),
    "state_at_inference": (
        lambda: ending_in(Counter(name="counts")),
        "'counts'.*'count'",
        "at inference",
    ),
    "raw_state_at_inference": (
        lambda: ending_in(RawCounter(name="counts")),
        "counts",
        "Keras does not see",
    ),
    "own_function": (
        lambda: ending_in(InFunction(name="in_function")),
        "in_function",
        "Take off `@tf.function`",
    ),
    "own_function_in_training": (
        lambda: ending_in(RescalesInFunction(name="rescales")),
        "'{model}'",
        "cannot be traced",
    ),
    "dropout_at_inference": (
        lambda: ending_in(L.Dropout(0.5, name="drops"), training=True),
        "'drops'",
        "draws random numbers at inference",
    ),
    "noise_at_inference": (
        lambda: ending_in(L.GaussianNoise(0.5, name="noisy"), training=True),
        "'noisy'",
        "draws random numbers at inference",
    ),
    "statistics_at_inference": (
        lambda: ending_in(L.BatchNormalization(name="norm"), training=True),
        "'norm'.*'moving_mean'",
        "at inference",
    ),
    "inner_dropout_at_inference": (
        lambda: ending_in(AlwaysDrops(name="drops")),
        "'drops'",
        "draws random numbers at inference",
    ),
    "tf_random": (
        lambda: ending_in(Noisy(name="noisy")),
        "noisy",
        "draws random numbers at inference",
    ),
    "tf_generator": (
        lambda: ending_in(NoisyGenerator()),
        "StateVar",
        "no weights of its layers",
    ),
    "keras_seed": (
        lambda: ending_in(NoisySeed(name="noisy")),
        "'noisy'",
        "draws random numbers at inference",
    ),
    "py_function": (
        lambda: ending_in(InPython(name="pythonic")),
        "pythonic",
        "runs Python code",
    ),
    "numpy_function": (
        lambda: ending_in(InNumpy(name="pythonic")),
        "pythonic",
        "runs Python code",
    ),
    "lacks_argument": (
        lambda: ending_in(LacksArgument(4, name="lacking")),
        "'lacking'",
        "cannot be copied",
    ),
    "lacks_size": (
        lambda: ending_in(LacksSize(4, name="lacking")),
        "'lacking'",
        "cannot be copied",
    ),
    "lacks_factor": (
        lambda: ending_in(LacksFactor(3.0, name="lacking")),
        "'lacking'",
        "cannot be copied",
    ),
    "random_constant": (
        lambda: ending_in(RandomConstant(name="lacking")),
        "'lacking'",
        "cannot be copied",
    ),
    "python_lambda": (
        lambda: ending_in(L.Lambda(lambda x: x + 1.0, name="anonymous")),
        "'anonymous'",
        "cannot be copied",
    ),
    "shared_variable": (sharing_a_variable, "'stem'.*'tied'", "shares"),
    "in_two_models": (in_two_models, "'everywhere'", "share"),
}
# Nothing is copied together with a head that shares a layer within itself.
OF_NETWORKS = {"shared_variable", "in_two_models"}


def state(model):
    """Returns all that makes up a model: variables, flags, configuration."""
    layers = list(model._flatten_layers())
    configs = []
    for layer in layers:
        try:
            configs.append(repr(layer.get_config()))
        except NotImplementedError:
            configs.append(None)
    return (
        [(v.path, v.dtype, v.numpy().tobytes()) for v in model.variables],
        [(layer.name, layer.trainable) for layer in layers],
        configs,
        model.compiled,
    )


def check_message(error, model, named, reason):
    assert isinstance(error, PackNetError)
    message = str(error).replace("\n", " ")
    assert re.search(named.format(model=model), message), message
    assert re.search(reason, message), message
    assert "Received: " in message


@pytest.mark.filterwarnings("ignore:Layer .* looks like it has unbuilt state")
@pytest.mark.parametrize("case", CASES)
def test_wrap_refuses_by_name_and_leaves_the_network_alone(case):
    make, named, reason = CASES[case]
    model = make()
    before = state(model)
    if case == "built_in_training":
        before = None  # What it builds in its first training step is built.
    with pytest.raises(UnsupportedLayerError) as info:
        packnet_tf.wrap(model, head=None)
    check_message(info.value, model.name, named, reason)
    assert before is None or state(model) == before


@pytest.mark.parametrize("case", sorted(set(CASES) - OF_NETWORKS))
def test_add_task_refuses_such_heads_and_leaves_the_model_alone(case):
    make, named, reason = CASES[case]
    head = make()
    packed = packnet_tf.wrap(
        keras.Sequential([keras.Input((4,)), L.Dense(4, "relu")]), head=None
    )
    packed.add_task("one", units=2)
    packed.prune(0.5)
    packed.freeze_task()
    before, of_head = state(packed), state(head)
    with pytest.raises(UnsupportedLayerError) as info:
        packed.add_task("two", head=head)
    check_message(info.value, "two", named, reason)
    assert state(packed) == before
    assert packed.task_names == ["one"]
    assert packed.task == "one"
    if case != "built_in_training":
        assert state(head) == of_head
    packed.add_task("two", units=2)
    packed.verify()


def stateful(batch=2):
    inputs = keras.Input(batch_shape=(batch, 3, 4), name="x")
    return keras.Model(inputs, L.LSTM(4, stateful=True, name="memory")(inputs))


def test_wrap_refuses_a_stateful_layer():
    model = stateful()
    before = state(model)
    with pytest.raises(UnsupportedLayerError, match=r"memory.*stateful"):
        packnet_tf.wrap(model, head=None)
    assert state(model) == before


def test_add_task_refuses_a_stateful_head():
    inputs = keras.Input(batch_shape=(2, 3, 4))
    packed = packnet_tf.wrap(keras.Model(inputs, L.Dense(4)(inputs)), head=None)
    before = state(packed)
    with pytest.raises(UnsupportedLayerError, match=r"memory.*stateful"):
        packed.add_task("one", head=stateful())
    assert state(packed) == before
    assert packed.task_names == []


def test_dropout_and_statistics_that_follow_the_model_are_no_reason():
    model = ending_in(
        L.Dropout(0.5), L.GaussianNoise(0.5), L.BatchNormalization()
    )
    packed = packnet_tf.wrap(model, head=None)
    packed.add_task("one", head=keras.Sequential([L.Dropout(0.5), L.Dense(2)]))
    assert packed.task_names == ["one"]
