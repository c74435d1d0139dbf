"""What all tests share: small networks, small data, a fixed seed."""

import gc

import keras
import pytest
import tensorflow as tf
from helpers import eagerly
from helpers import make_images
from helpers import pack_network

# Graphs are many small objects that stay: looking for garbage among them as
# often as Python does by itself takes a tenth of the time of the suite.
gc.set_threshold(200_000, 20, 100)
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)


@pytest.fixture(autouse=True)
def _seeded():
    keras.utils.set_random_seed(7)
    yield
    keras.backend.clear_session(free_memory=False)


@pytest.fixture(autouse=True, scope="module")
def _forgotten():
    """Frees what a file leaves, and looks at the rest no more."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture
def images():
    """A batch of 32 gray images and labels of four classes."""
    return make_images()


@pytest.fixture(scope="session")
def network():
    """Makes a small convolutional network with batch normalization."""

    def make(classes=4):
        layers = [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(6, 3, name="conv"),
            keras.layers.BatchNormalization(momentum=0.5, name="norm"),
            keras.layers.ReLU(),
            keras.layers.Conv2D(8, 3, use_bias=False, name="conv_no_bias"),
            keras.layers.PReLU(name="prelu"),
            keras.layers.Dropout(0.2),
            keras.layers.Flatten(),
            keras.layers.Dense(12, activation="tanh", name="dense"),
        ]
        if classes:
            layers.append(keras.layers.Dense(classes, "softmax", name="top"))
        return keras.Sequential(layers, name="network")

    return make


@pytest.fixture
def packed(network):
    """A packed, compiled model in its first task, named "one"."""
    return pack_network(network)


@pytest.fixture(scope="session")
def finish_task():
    """Trains, prunes and freezes the current task of a model, eagerly."""

    def finish(model, x, y, sparsity=0.5):
        with eagerly(model):
            model.fit(x, y, batch_size=16, epochs=1, verbose=0)
            if sparsity is not None:
                model.prune(sparsity)
                model.fit(x, y, batch_size=16, epochs=1, verbose=0)
        return model.freeze_task()

    return finish


@pytest.fixture
def flags(tmp_path):
    """Sets flags of the program `fine_grained.py` for one test."""
    from absl.testing import flagsaver
    from program import options

    known = options.FLAGS
    if not known.is_parsed():
        known(["test"])

    def set_flags(**values):
        for name, value in values.items():
            setattr(known, name, value)

    with flagsaver.flagsaver(cache_dir=str(tmp_path / "cache")):
        yield set_flags
