import keras
import numpy as np
import pytest

from packnet_tf import heads
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import PackNetError
from packnet_tf.errors import UnsupportedLayerError


def _features(*shape, dtype="float32"):
    return keras.KerasTensor((None, *shape), dtype=dtype)


def _build(features, units=None, head=None, activation="softmax", name="birds"):
    return heads.build_head(features, name, units, head, activation)


def _error(*args, **kwargs):
    with pytest.raises(ArgumentError) as info:
        _build(*args, **kwargs)
    assert isinstance(info.value, PackNetError)
    assert isinstance(info.value, ValueError)
    assert "Received: " in str(info.value)
    return str(info.value)


def _noisy(x):
    return x + keras.random.normal(keras.ops.shape(x))


def test_build_head_refuses_an_activation_that_draws_random_numbers():
    for given in (
        {"units": 3, "activation": _noisy},
        {"head": keras.layers.Dense(3, activation=_noisy)},
    ):
        with pytest.raises(UnsupportedLayerError, match="Received: "):
            _build(_features(6), **given)


@pytest.mark.parametrize(
    "shape", [(6,), (4, 6), (4, 5, 6), (2, 3, 4, 6)], ids=str
)
def test_build_head_averages_then_classifies(shape):
    head = _build(_features(*shape), units=3, activation=None)
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    kernel, bias = (v.numpy() for v in head.trainable_variables)
    pooled = x.reshape(2, -1, 6).mean(axis=1)
    np.testing.assert_allclose(
        head(x), pooled @ kernel + bias, rtol=1e-5, atol=1e-6
    )
    assert head.name == "birds"
    assert head.built
    assert head.output_shape == (None, 3)


def test_build_head_takes_sizes_that_are_not_known():
    head = _build(_features(None, None, 6), units=3)
    assert head(np.zeros((2, 5, 4, 6))).shape == (2, 3)


def test_build_head_applies_the_activation():
    x = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    outputs = _build(_features(6), units=3)(x).numpy()
    np.testing.assert_allclose(outputs.sum(axis=1), np.ones(5), rtol=1e-6)
    relu = _build(_features(6), units=3, activation=keras.activations.relu)
    assert relu(x).numpy().min() == 0


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("float16", "float32"),
        ("bfloat16", "float32"),
        ("float32", "float32"),
        ("float64", "float64"),
    ],
)
def test_build_head_classifies_in_full_precision(dtype, expected):
    head = _build(_features(6, dtype=dtype), units=3)
    assert head.output.dtype == expected
    assert {v.dtype for v in head.variables} == {expected}


def test_build_head_makes_new_variables_each_time():
    first = _build(_features(6), units=3)
    second = _build(_features(6), units=3)
    assert not {id(v) for v in first.variables} & {
        id(v) for v in second.variables
    }


def test_build_head_takes_a_layer():
    layer = keras.layers.Dense(3, name="own")
    head = _build(_features(6), head=layer)
    assert layer in head.layers
    assert head.name == "birds"
    x = np.ones((2, 6), np.float32)
    np.testing.assert_array_equal(head(x), layer(x))


def test_build_head_takes_a_sequential_model():
    model = keras.Sequential(
        [keras.layers.Flatten(), keras.layers.Dense(3), keras.layers.ReLU()]
    )
    head = _build(_features(2, 2, 3), head=model)
    assert head.output_shape == (None, 3)
    assert len(head.trainable_variables) == 2


def test_build_head_takes_a_model_of_all_outputs():
    inputs = [keras.Input((4,)), keras.Input((2,))]
    outputs = keras.layers.Dense(3)(keras.layers.Concatenate()(inputs))
    model = keras.Model(inputs, outputs)
    head = _build([_features(4), _features(2)], head=model)
    x = [np.ones((5, 4), np.float32), np.ones((5, 2), np.float32)]
    np.testing.assert_array_equal(head(x), model(x))


def test_build_head_takes_a_layer_without_weights():
    head = _build(_features(6), head=keras.layers.Softmax())
    assert head.count_params() == 0


@pytest.mark.parametrize(
    ("units", "head"), [(None, None), (3, keras.layers.Dense(3))]
)
def test_build_head_takes_exactly_one_of_units_and_head(units, head):
    message = _error(_features(6), units=units, head=head)
    assert "`units=`" in message
    assert "`head=`" in message
    assert f"Received: units={units}" in message


@pytest.mark.parametrize("units", [0, -1, True, False, 2.0, "3", [3]])
def test_build_head_refuses_units_that_are_no_positive_integer(units):
    message = _error(_features(6), units=units)
    assert f"Received: units={units!r}" in message


@pytest.mark.parametrize("shape", [(), (1, 1, 1, 1, 6)], ids=str)
def test_build_head_refuses_units_for_other_ranks(shape):
    message = _error(_features(*shape), units=3)
    assert f"features of shape {(None, *shape)}" in message


@pytest.mark.parametrize(
    "features",
    [[_features(4), _features(2)], {"a": _features(4)}],
    ids=["list", "dict"],
)
def test_build_head_refuses_units_for_several_outputs(features):
    assert "one output" in _error(features, units=3)


@pytest.mark.parametrize("head", [keras.layers.Dense, "dense", 3, lambda x: x])
def test_build_head_refuses_what_is_no_layer(head):
    message = _error(_features(6), head=head)
    assert f"Received: head={head!r}" in message


def test_build_head_refuses_a_head_that_does_not_fit():
    layer = keras.layers.Conv2D(3, 3, name="flat_earth")
    message = _error(_features(6), head=layer)
    assert "head='flat_earth'" in message
    assert "features of shape (None, 6)" in message
