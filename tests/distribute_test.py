"""What several workers need, as far as one process can show it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import two_devices

from packnet_tf import distribute
from packnet_tf.errors import ArgumentError


@pytest.fixture(params=["none", "mirrored"])
def strategy(request):
    if request.param == "none":
        return tf.distribute.get_strategy()
    return two_devices()


def test_one_process_is_the_chief(strategy):
    assert not distribute.is_multi_worker(strategy)
    assert distribute.is_chief(strategy)


def test_one_process_does_it_itself_and_says_what_fails(strategy):
    done = []
    distribute.chief_does(lambda: done.append(1), strategy)
    assert done == [1]

    def fail():
        raise ArgumentError("too much")

    with pytest.raises(ArgumentError, match="too much"):
        distribute.chief_does(fail, strategy)


def test_one_process_has_the_same_as_all(strategy):
    distribute.check_equal({"thing": "anything"}, strategy)


def test_replicas_get_the_values_of_the_first():
    strategy = two_devices()
    with strategy.scope():
        variable = keras.Variable(np.zeros(3), trainable=False)
        packed = keras.Variable(
            np.zeros(3, "uint8"), dtype="uint8", trainable=False
        )
    for number, replica in enumerate(variable.value.values):
        replica.assign(np.full(3, number + 1.5))
    assert distribute.align([variable, packed], strategy) == []
    for replica in variable.value.values:
        np.testing.assert_array_equal(replica.numpy(), np.full(3, 1.5))


def test_errors_of_one_process_stay_what_they_are(strategy):
    error = tf.errors.UnavailableError(None, None, "gone")
    with pytest.raises(tf.errors.UnavailableError):
        with distribute.watched(strategy):
            raise error
