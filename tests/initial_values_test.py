import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import two_devices

import packnet_tf
from packnet_tf import allocation
from packnet_tf import initial_values
from packnet_tf.errors import FileError

L = keras.layers
LARGE = 1024


def network(initializer="glorot_uniform", dtype=None, layer=L.Dense):
    dense = layer(LARGE, kernel_initializer=initializer, dtype=dtype)
    return keras.Sequential([keras.Input((LARGE,)), dense, L.Dense(2)])


@keras.saving.register_keras_serializable(package="initial_values_test")
class ReadsInitialValues(L.Dense):
    """A user's layer that computes a constant from its first weights."""

    def build(self, input_shape):
        super().build(input_shape)
        self.first = float(keras.ops.sum(self.kernel))

    def call(self, inputs):
        return super().call(inputs) * self.first


def test_spared_makes_large_variables_without_their_initial_values():
    calls = []

    def initializer(shape, dtype=None):
        if tf.executing_eagerly():
            calls.append(shape)
        return tf.ones(shape, dtype)

    source = L.Dense(LARGE, kernel_initializer="he_normal")
    source.build((None, LARGE))
    copy = L.Dense(LARGE, kernel_initializer=initializer)
    with initial_values.spared(source):
        copy.build((None, LARGE))
    assert calls == []
    np.testing.assert_array_equal(copy.kernel, source.kernel)
    copy.kernel.assign_add(keras.ops.ones_like(copy.kernel))
    assert not np.any(np.equal(copy.kernel, source.kernel))
    again = L.Dense(LARGE, kernel_initializer=initializer)
    again.build((None, LARGE))
    assert calls == [(LARGE, LARGE)]


@pytest.mark.parametrize(
    ("size", "dtype"), [(LARGE + 1, None), (8, None), (LARGE, "float64")]
)
def test_spared_leaves_the_values_of_what_the_source_does_not_have(size, dtype):
    source = L.Dense(LARGE)
    source.build((None, LARGE))
    copy = L.Dense(size, kernel_initializer="ones", dtype=dtype)
    with initial_values.spared(source):
        copy.build((None, LARGE))
    assert np.all(np.equal(copy.kernel, 1.0))
    assert np.all(np.equal(copy.bias, 0.0))


def test_spared_computes_what_cannot_be_traced():
    def eager(shape, dtype=None):
        return np.full(shape, tf.ones(()).numpy(), dtype)

    source = L.Dense(LARGE)
    source.build((None, LARGE))
    copy = L.Dense(LARGE, kernel_initializer=eager)
    with initial_values.spared(source):
        copy.build((None, LARGE))
    assert np.all(np.equal(copy.kernel, 1.0))


def test_spared_ends_with_its_body():
    source = L.Dense(LARGE)
    source.build((None, LARGE))
    with pytest.raises(KeyError), initial_values.spared(source):
        raise KeyError
    other = L.Dense(LARGE, kernel_initializer="ones")
    other.build((None, LARGE))
    assert np.all(np.equal(other.kernel, 1.0))


@pytest.mark.parametrize("dtype", [None, "mixed_bfloat16", "float64"])
def test_wrap_copies_large_layers(dtype):
    model = network("he_normal", dtype)
    x = np.random.default_rng(0).normal(size=(3, LARGE)).astype("float32")
    before = [variable.numpy() for variable in model.variables]
    packed = packnet_tf.wrap(model)
    np.testing.assert_array_equal(packed(x), model(x))
    kernel = packed.backbone.layers[1].packed_variables()[0]
    assert not any(kernel is variable for variable in model.variables)
    kernel.assign(keras.ops.zeros_like(kernel))
    for variable, value in zip(model.variables, before):
        np.testing.assert_array_equal(variable, value)


def test_wrap_copies_large_layers_under_a_strategy():
    with two_devices().scope():
        model = network()
        packed = packnet_tf.wrap(model)
    x = np.random.default_rng(0).normal(size=(3, LARGE)).astype("float32")
    np.testing.assert_array_equal(packed(x), model(x))
    kernel = packed.backbone.layers[1].packed_variables()[0]
    one, other = kernel.value.values
    np.testing.assert_array_equal(one, other)


def test_wrap_leaves_the_seed_of_an_initializer_alone():
    seed = keras.random.SeedGenerator(7)
    model = network(keras.initializers.RandomNormal(seed=seed))
    before = seed.state.numpy()
    packed = packnet_tf.wrap(model)
    x = np.ones((1, LARGE), "float32")
    np.testing.assert_array_equal(packed(x), model(x))
    np.testing.assert_array_equal(seed.state, before)


def test_wrap_leaves_the_global_random_state_alone():
    def drawn(act):
        keras.utils.set_random_seed(3)
        model = network("he_normal")
        keras.random.normal(())
        tf.random.normal(())
        act(model)
        values = keras.random.normal((4,)), tf.random.normal((4,))
        return [*map(np.asarray, values), np.random.random(4)]

    for value, expected in zip(drawn(packnet_tf.wrap), drawn(lambda _: None)):
        np.testing.assert_array_equal(value, expected)


def test_wrap_refuses_a_layer_that_reads_its_initial_values():
    # Their copy has other ones, which are not taken from the original.
    model = network(layer=ReadsInitialValues)
    with pytest.raises(
        packnet_tf.errors.UnsupportedLayerError, match="compute something else"
    ):
        packnet_tf.wrap(model)
    model = network("ones", layer=ReadsInitialValues)
    x = np.ones((1, LARGE), "float32")
    model.layers[0].kernel.assign(keras.ops.eye(LARGE))
    np.testing.assert_array_equal(packnet_tf.wrap(model)(x), model(x))


def test_an_exported_task_keeps_its_large_weights(tmp_path):
    packed = packnet_tf.wrap(network(), task="one")
    packed.prune(0.5)
    packed.freeze_task()
    packed.export_task("one", tmp_path / "one.keras")
    plain = keras.models.load_model(tmp_path / "one.keras")
    x = np.ones((1, LARGE), "float32")
    np.testing.assert_array_equal(plain(x), packed(x))


def test_large_variables_alone_are_unset():
    calls = []

    def initializer(shape, dtype=None):
        if tf.executing_eagerly():
            calls.append(tuple(shape))
        return tf.ones(shape, dtype)

    with initial_values.unset():
        large = keras.layers.Dense(1024, kernel_initializer=initializer)
        large.build((None, 1024))
        small = keras.layers.Dense(8, kernel_initializer=initializer)
        small.build((None, 8))
        owner = keras.Variable(
            lambda shape, dtype: tf.ones(shape, dtype), (1024, 1024), "uint8"
        )
    assert calls == [(8, 8)]
    assert large.kernel.shape == (1024, 1024)
    assert small.kernel.numpy().all()
    assert not owner.numpy().any()
    large = keras.layers.Dense(1024)
    large.build((None, 1024))
    assert large.kernel.numpy().any()


def test_a_side_that_the_op_would_cut_is_begun_as_ever():
    with (
        pytest.raises(FileError, match="more memory") as caught,
        allocation.bounded(2**30),
        initial_values.unset(),
    ):
        keras.layers.Dense(2**40).build((None, 128))
    assert str(2**40) in str(caught.value)
