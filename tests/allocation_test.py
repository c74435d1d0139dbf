import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from packnet_tf import allocation
from packnet_tf.errors import FileError

L = keras.layers
TERA = 2**40


def test_bounded_lets_pass_what_fits():
    with allocation.bounded(4 * 3 * 4 + 3 * 4):
        layer = L.Dense(3)
        layer.build((None, 4))
    assert layer.kernel.shape == (4, 3)


def test_bounded_refuses_one_byte_too_much():
    with pytest.raises(FileError, match="expected 59 at most"):
        with allocation.bounded(4 * 3 * 4 + 3 * 4 - 1):
            L.Dense(3).build((None, 4))


def test_bounded_counts_all_variables_together():
    def make():
        for _ in range(100):
            keras.Variable(np.ones(5, "float32"))

    with pytest.raises(FileError, match="120 bytes with those before it"):
        with allocation.bounded(100):
            make()


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float16", "bool"])
def test_bounded_counts_bytes_of_the_dtype(dtype):
    size = 6 * tf.as_dtype(dtype).size
    make = {"initializer": "zeros", "shape": (2, 3), "dtype": dtype}
    with allocation.bounded(size):
        keras.Variable(**make)
    with pytest.raises(FileError):
        with allocation.bounded(size - 1):
            keras.Variable(**make)


@pytest.mark.parametrize(
    "make",
    [
        lambda: L.Dense(TERA).build((None, 4)),
        lambda: L.Dense(4, kernel_initializer="orthogonal").build((1, TERA)),
        lambda: L.Embedding(TERA, TERA).build(),
        lambda: L.LSTM(2**20).build((1, 1, 9)),
        lambda: keras.Variable("zeros", shape=(TERA,)),
        lambda: tf.Variable(lambda: tf.zeros((TERA,))),
        lambda: tf.Variable(lambda: tf.zeros((TERA,)), dtype="float32"),
    ],
)
def test_bounded_refuses_before_it_computes(make):
    # It would take terabytes.
    with pytest.raises(FileError, match="more memory"):
        with allocation.bounded(2**20):
            make()


def test_bounded_counts_what_cannot_be_told_beforehand():
    def value():
        return tf.ones(5).numpy()  # No graph can do that.

    with allocation.bounded(20):
        tf.Variable(value)
    with pytest.raises(FileError, match="shape \\(5,\\)"):
        with allocation.bounded(19):
            tf.Variable(value)


def test_bounded_refuses_what_went_on_without_the_variable():
    def make():
        with contextlib.suppress(OSError):
            L.Dense(TERA).build((None, 4))

    with pytest.raises(FileError, match="more memory"):
        with allocation.bounded(2**20):
            make()


def test_bounded_ends_with_its_body():
    with allocation.bounded(8):
        pass
    keras.Variable(np.ones(5, "float32"))


def test_bounded_changes_no_initial_value():
    def make():
        keras.utils.set_random_seed(3)
        layer = L.Dense(4)
        layer.build((None, 4))
        return layer.kernel.numpy()

    expected = make()
    with allocation.bounded(2**20):
        np.testing.assert_array_equal(make(), expected)


def test_bounded_refuses_tensors_without_end():
    with allocation.bounded(2**16):
        for _ in range(2**16 + 2**8):
            keras.KerasTensor((2,))
        with pytest.raises(FileError, match="comes to no end"):
            keras.KerasTensor((2,))


class Picking(L.Layer):
    """A layer that takes the seventh of some tensors."""

    def call(self, inputs):
        return inputs[7]


class PickingOperation(keras.Operation):
    """An operation that does so."""

    def compute_output_spec(self, inputs):
        return inputs[7]


@pytest.mark.parametrize(
    "call",
    [
        lambda x: Picking()([x]),
        lambda x: L.Dot(7)([x, x]),
        lambda x: PickingOperation()([x]),
    ],
)
def test_bounded_refuses_indices_out_of_range(call):
    before = keras.Operation.__call__, keras.Layer.__call__
    with pytest.raises(FileError, match="no such tensors"):
        with allocation.bounded(2**20):
            call(keras.Input((4,)))
    assert (keras.Operation.__call__, keras.Layer.__call__) == before
    with pytest.raises(IndexError):
        call(keras.Input((4,)))


@pytest.mark.slow
def test_bounded_refuses_small_variables_without_end():
    variables = []

    def make(count):
        for _ in range(count):
            variables.append(tf.Variable(np.zeros(0, "float32")))

    with pytest.raises(FileError, match="65537 variables"):
        with allocation.bounded(0):
            make(2**17)
    assert len(variables) == 2**16
