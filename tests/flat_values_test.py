import math
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import same_bits
from helpers import two_devices
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from packnet_tf import flat_values
from packnet_tf import variables


def variable(values):
    return keras.Variable(values, dtype=values.dtype.name)


def numbers(shape, dtype="float32"):
    values = np.arange(1, 1 + math.prod(shape)).reshape(shape)
    return values.astype(tf.as_dtype(dtype).as_numpy_dtype)


@given(
    st.lists(st.integers(1, 5), max_size=4), st.sampled_from([1, 3]), st.data()
)
@settings(max_examples=100, deadline=None)
def test_any_range_is_read_and_written(shape, long, data):
    # With rows that count as long, too.
    with mock.patch.object(flat_values, "_LONG", long):
        read_and_write(shape, data)


def read_and_write(shape, data):
    values = numbers(shape)
    start = data.draw(st.integers(0, values.size - 1))
    stop = data.draw(st.integers(start + 1, values.size))
    held = variable(values)
    flat = values.reshape(-1)
    assert same_bits(flat_values.get(held, start, stop), flat[start:stop])
    flat_values.put(held, start, -flat[start:stop])
    flat[start:stop] *= -1
    assert same_bits(held.numpy(), values)


@pytest.mark.parametrize("dtype", flat_values.DTYPES)
@pytest.mark.parametrize("row", [4, 80])
def test_every_dtype_is_read_and_written(row, dtype):
    values = numbers((4, row), dtype)
    held = variable(np.zeros_like(values))
    flat = values.reshape(-1)
    flat_values.put(held, 2, flat[2 : 3 * row - 2])
    assert same_bits(
        flat_values.get(held, 2, 3 * row - 2), flat[2 : 3 * row - 2]
    )
    assert held.numpy().reshape(-1)[3 * row - 2 :].astype(bool).sum() == 0


@pytest.mark.parametrize("row", [4, 80])
def test_a_view_taken_before_stays_as_it_was(row):
    held = variable(numbers((4, row)))
    before = variables.view(held)
    flat_values.put(held, 3, np.zeros(2 * row, np.float32))
    assert same_bits(before, numbers((4, row)))


@pytest.mark.parametrize("row", [4, 80])
def test_reading_is_no_copy_afterwards(row):
    held = variable(numbers((4, row)))
    flat_values.put(held, 3, np.zeros(2 * row, np.float32))
    first, second = (variables.view(held) for _ in range(2))
    assert np.shares_memory(first, second)


def test_all_replicas_are_written():
    with two_devices().scope():
        held = variable(numbers((4, 4)))
    flat_values.put(held, 3, np.full(6, 99, np.float32))
    for replica in held.value.values:
        assert (replica.numpy().reshape(-1)[3:9] == 99).all()
    assert (flat_values.get(held, 3, 9) == 99).all()
    flat_values.put(held, 0, np.full(16, 7, np.float32))
    for replica in held.value.values:
        assert (replica.numpy() == 7).all()


def test_bits_of_nan_are_kept():
    bits = np.array([0x7F800001, 0xFFC12345, 0x80000000, 1], np.uint32)
    values = bits.view(np.float32)
    content = bytes(flat_values.to_bytes(values, "float32"))
    assert content == bits.astype("<u4").tobytes()
    read = flat_values.from_bytes(content, "float32", "float32")
    assert read.view(np.uint32).tolist() == bits.tolist()
    held = variable(np.zeros((3, 4), np.float32))
    flat_values.put(held, 5, read)
    found = flat_values.get(held, 5, 9)
    assert found.view(np.uint32).tolist() == bits.tolist()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rounding_is_to_the_nearest_bfloat16(dtype):
    values = np.array([0.0, -0.0, 1.0, 1.00390625, 1.01171875, 1e-45], dtype)
    expected = [0.0, -0.0, 1.0, 1.0, 1.015625, 0.0]
    assert flat_values.stored_dtype(dtype, True) == "bfloat16"
    content = bytes(flat_values.to_bytes(values, "bfloat16"))
    assert len(content) == 2 * len(values)
    read = flat_values.from_bytes(content, "bfloat16", dtype)
    assert same_bits(read, np.array(expected, dtype))
    rounded = flat_values.Rounded(values)
    assert same_bits(np.asarray(rounded), read)
    assert same_bits(rounded.reshape(2, 3)[1], read[3:])


@pytest.mark.parametrize("dtype", ["int32", "float16", "bfloat16", "bool"])
def test_what_rounding_would_not_shorten_is_kept(dtype):
    assert flat_values.stored_dtype(dtype, True) == dtype
    values = numbers((3,), dtype)
    assert same_bits(np.asarray(flat_values.Rounded(values)), values)
