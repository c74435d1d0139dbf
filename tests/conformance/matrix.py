"""One small network taken through its tasks, and all that must hold then."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import compile_model

import packnet_tf
from packnet_tf.errors import FingerprintError

BATCH = 16
TASKS = ("one", "two")  # And one more that diverges.


def make_network(**conv):
    """Makes convolution, batch normalization, dropout and dense layers."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3, strides=2, name="conv", **conv),
            layers.BatchNormalization(momentum=0.5, name="norm"),
            layers.Dropout(0.2),
            layers.Flatten(),
            layers.Dense(10, activation="tanh", name="dense"),
            layers.Dense(4, activation="softmax", name="top"),
        ],
        name="network",
    )


def make_data():
    """Makes 40 images with labels; the last of three batches is smaller."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(40, 8, 8, 1)).astype("float32")
    return x, np.arange(40) % 4


def fit(model, x, y):
    """Trains as most do; a way to train takes model, inputs and labels."""
    model.fit(batches(x, y), shuffle=False, verbose=0)


def prune(model, x, y):
    """Prunes as in the paper; a way to prune takes model, inputs, labels."""
    model.prune(0.5)


def batches(*arrays):
    """Makes a data set of three batches."""
    return tf.data.Dataset.from_tensor_slices(arrays).batch(BATCH)


@contextlib.contextmanager
def dtype_policy(name):
    """Sets the global policy, and the default float with it."""
    floatx = keras.config.floatx()
    keras.config.set_dtype_policy(name)
    if name == "float64":
        keras.config.set_floatx(name)
    try:
        yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy("float32")


class Outputs:
    """What tasks compute for a fixed batch, by a call and by `predict`."""

    def __init__(self, x):
        self.x = x
        self.batches = batches(x)
        self.expected = {}

    def of(self, model, task):
        called = keras.ops.convert_to_numpy(model(self.x, task=task))
        predicted = model.predict(self.batches, verbose=0, task=task)
        return called.tobytes(), predicted.tobytes()

    def record(self, model, task):
        self.expected[task] = self.of(model, task)

    def check(self, model):
        for task, expected in self.expected.items():
            assert expected == self.of(model, task), f"task {task} changed"


def assert_wrapping_changes_nothing(network, model, x):
    """Asserts that the packed model computes as the network it was made of."""
    np.testing.assert_array_equal(network(x), model(x))
    np.testing.assert_array_equal(
        network.predict(x, BATCH, verbose=0),
        model.predict(x, BATCH, verbose=0),
    )


def learn_task(model, outputs, train, x, y, prune=prune):
    """Trains, prunes, retrains and freezes; older tasks compute the same."""
    task = model.task
    before = _kernels(model)
    train(model, x, y)
    assert _moved(before, _kernels(model)), "the training moved no weight"
    outputs.check(model)
    prune(model, x, y)
    outputs.check(model)
    train(model, x, y)
    outputs.check(model)
    model.freeze_task()
    outputs.record(model, task)


def assert_divergence_is_harmless(model, outputs, train, x, y, skips=False):
    """Trains the newest task on infinite inputs.

    `skips` tells that the optimizer leaves out steps that are not finite.
    """
    number = len(model.task_names)
    with np.errstate(all="ignore"):
        train(model, np.full_like(x, np.inf), y)
    finite = all(
        np.isfinite(entry.variable.numpy()[entry.owner.numpy() == number]).all()
        for entry in packed_entries(model)
    )
    assert finite == skips, "the test is to diverge"
    outputs.check(model)
    assert set(model.verify()) == set(outputs.expected)


def assert_loaded_is_the_same(model, outputs, folder):
    """Asserts that a copy from a file computes the same, and returns it."""
    model.save(folder / "packed.keras")
    loaded = packnet_tf.load_model(folder / "packed.keras")
    outputs.check(loaded)
    assert loaded.verify() == model.verify()
    return loaded


def assert_one_bit_is_noticed(model):
    """Flips the lowest bit of one frozen weight."""
    entry = packed_entries(model)[-1]
    value = entry.variable.numpy()
    bits = value.view(f"u{value.itemsize}")
    bits.flat[np.flatnonzero(entry.owner.numpy() == 1)[0]] ^= 1
    entry.variable.assign(value)
    with pytest.raises(FingerprintError, match="'one'"):
        model.verify()


def packed_entries(model):
    """Returns the entries of all packed weights."""
    entries = model.summary_protection(print_fn=len)
    return [entry for entry in entries if entry.owner is not None]


def run_cell(
    folder,
    make_optimizer,
    train=fit,
    network=make_network,
    skips=False,
    prune=prune,
    forms=("auto",),
    **how,
):
    """Takes a network through the matrix: the contract, for one cell.

    `forms` are what `jit_compile` is for one task after the other: `"auto"`
    for the update as one function, `False` for operation by operation.
    """
    x, y = make_data()
    plain = network()
    model = packnet_tf.wrap(plain, task="one")
    assert_wrapping_changes_nothing(plain, model, x)
    outputs = Outputs(x)
    for number, task in enumerate((*TASKS, "diverged")):
        if task != "one":
            model.add_task(task, units=4)
        if number < len(forms):
            form = {"jit_compile": forms[number], **how}
            compile_model(model, make_optimizer(), **form)
        if task in TASKS:
            learn_task(model, outputs, train, x, y, prune)
    assert_divergence_is_harmless(model, outputs, train, x, y, skips)
    loaded = assert_loaded_is_the_same(model, outputs, folder)
    assert_one_bit_is_noticed(loaded)


def _kernels(model):
    return [entry.variable.numpy() for entry in packed_entries(model)]


def _moved(before, after):
    return any((old != new).any() for old, new in zip(before, after))
