"""What tests call: compiling, and comparing all values bit for bit."""

import contextlib
import functools
import hashlib
import json

import numpy as np
import tensorflow as tf

import packnet_tf


def compile_model(model, optimizer="adam", jit_compile=False, **kwargs):
    """Compiles for classification.

    By default with the update in its plain form, which is faster to begin
    with. Tests of the update, and the conformance tests, ask for the other.
    """
    model.compile(
        optimizer,
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=jit_compile,
        **kwargs,
    )


@contextlib.contextmanager
def eagerly(model):
    """Trains eagerly: a few steps take less time than to trace one.

    For what comes before a test. What it is about is trained in graphs.
    """
    was_eager = model.run_eagerly
    model.run_eagerly, model.train_function = True, None
    try:
        yield
    finally:
        model.run_eagerly, model.train_function = was_eager, None


def make_images():
    """Returns a batch of 32 gray images and labels of four classes."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(32, 8, 8, 1)).astype("float32")
    return x, np.arange(32) % 4


def pack_network(network):
    """Returns a packed, compiled model in its first task, named "one"."""
    model = packnet_tf.wrap(network(), task="one")
    compile_model(model)
    return model


def all_values(model):
    """Returns the value of every variable of a model."""
    return [variable.numpy() for variable in model.variables]


def assert_same_values(before, after):
    """Asserts that no variable changed, bit for bit."""
    assert len(before) == len(after)
    for index, (old, new) in enumerate(zip(before, after)):
        assert old.tobytes() == new.tobytes(), f"variable {index} changed"


def same_bits(one, other):
    """Compares bit for bit; which of the NaNs it is does not matter."""
    one, other = np.asarray(one), np.asarray(other)
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and np.where(np.isnan(one), np.nan, one).tobytes()
        == np.where(np.isnan(other), np.nan, other).tobytes()
    )


def optimizer_variables(model):
    optimizer = getattr(model, "optimizer", None)
    return optimizer.variables if optimizer is not None else []


def hash_values(model):
    hasher = hashlib.sha256()
    for variable in [*model.variables, *optimizer_variables(model)]:
        value = variable.numpy()
        hasher.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
    return hasher.hexdigest()


def hash_state(model):
    """Hashes all that a refused call must leave as it was."""
    state = (
        hash_values(model),
        model.get_config(),
        model.task_names,
        model.task,
        str(model.stage),
        sorted(model.heads),
        [variable.trainable for variable in model.variables],
        [id(variable) for variable in optimizer_variables(model)],
        [id(getattr(model, "optimizer", None)), id(model.recipe)],
        [id(getattr(model, "_compile_loss", None))],
        [id(getattr(model, "_compile_metrics", None))],
        [model.compiled, model.run_eagerly, model.get_compile_config()],
    )
    return hashlib.sha256(json.dumps(state, default=repr).encode()).hexdigest()


class Unchanged:
    """Checks that a model is after a block what it was before it."""

    def __init__(self, model):
        self.model = model

    def __enter__(self):
        self.before = hash_state(self.model)

    def __exit__(self, kind, *rest):
        if kind is None:
            assert hash_state(self.model) == self.before


@functools.cache
def two_devices():
    """Returns a strategy of two replicas, one for the whole process.

    Every strategy numbers its collective operations from the same start, so
    two of them in a process can take each other's for their own.
    """
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def tree(path):
    """Returns the content of every file below a folder, hidden ones too."""
    return {
        str(p.relative_to(path)): p.read_text() if p.is_file() else None
        for p in path.rglob("*")
    }
