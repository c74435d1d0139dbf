"""What `wrap` and the calls of a packed model refuse, case by case.

Refused moves of a model in the wrong stage are in
`conformance/illegal_moves.py`.
"""

import re

import keras
import numpy as np
import pytest
import tf_keras
from helpers import Unchanged
from helpers import all_values
from helpers import assert_same_values
from helpers import same_bits

import packnet_tf
from packnet_tf import cloning
from packnet_tf import fingerprint
from packnet_tf import inventory
from packnet_tf import ownership
from packnet_tf import planning
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import FileError
from packnet_tf.errors import PackNetError
from packnet_tf.errors import TaskError
from packnet_tf.errors import UnsupportedLayerError
from packnet_tf.tasks import Stage
from packnet_tf.tasks import Task

L = keras.layers


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = L.Dense(2)

    def call(self, inputs):
        return self.dense(inputs)


def classifier():
    return keras.Sequential(
        [
            keras.Input((4,)),
            L.Dense(5, "relu", name="hidden"),
            L.Dense(3, name="top"),
        ]
    )


def unbuilt():
    return keras.Sequential([L.Dense(3)])


def called_but_subclassed():
    model = Subclassed()
    model(np.ones((1, 4), "float32"))
    return model


def of_keras_2():
    return tf_keras.Sequential(
        [tf_keras.layers.Input((4,)), tf_keras.layers.Dense(3)]
    )


def head_alone():
    return keras.Sequential([keras.Input((4,)), L.Dense(3)])


def without_weights():
    return keras.Sequential([keras.Input((4,)), L.ReLU()])


def without_classifier():
    return keras.Sequential([keras.Input((4,)), L.Dense(3), L.Dense(3, "relu")])


def assert_refused(error, call, *args, **kwargs):
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    assert caught.type is error
    assert isinstance(caught.value, PackNetError)
    message = str(caught.value)
    assert re.search(r"Received: [^\n]+\Z", message), message


@pytest.mark.parametrize(
    ("make", "arguments", "error"),
    [
        (unbuilt, {}, ArgumentError),
        (Subclassed, {}, ArgumentError),
        (called_but_subclassed, {}, UnsupportedLayerError),
        (of_keras_2, {}, ArgumentError),
        (lambda: None, {}, ArgumentError),
        (lambda: "model", {}, ArgumentError),
        (lambda: keras.Sequential, {}, ArgumentError),
        (lambda: L.Dense(3), {}, ArgumentError),
        (lambda: [classifier()], {}, ArgumentError),
        (head_alone, {}, ArgumentError),
        (without_weights, {}, ArgumentError),
        (without_classifier, {"task": "one"}, ArgumentError),
        (classifier, {"task": "one", "head": None}, ArgumentError),
        (classifier, {"head": "nothing"}, ArgumentError),
        (classifier, {"head": "hidden"}, ArgumentError),
        (classifier, {"head": ""}, ArgumentError),
        (classifier, {"head": 3}, ArgumentError),
        (classifier, {"head": True}, ArgumentError),
        (classifier, {"head": ["top"]}, ArgumentError),
        (classifier, {"filters": "("}, ArgumentError),
        (classifier, {"filters": 3}, ArgumentError),
        (classifier, {"filters": b"hidden"}, ArgumentError),
        (classifier, {"filters": ["hidden"]}, ArgumentError),
        (classifier, {"filters": "nowhere"}, ArgumentError),
        (classifier, {"filters": "top"}, ArgumentError),
        (classifier, {"filters": lambda layer: False}, ArgumentError),
        (classifier, {"task": "../up"}, TaskError),
        (classifier, {"task": ""}, TaskError),
        (classifier, {"task": 3}, TaskError),
        (classifier, {"task": "signatures"}, TaskError),
    ],
)
def test_wrap_refuses_and_leaves_the_original_alone(make, arguments, error):
    model = make()
    values = all_values(model) if isinstance(model, keras.Model) else []
    assert_refused(error, packnet_tf.wrap, model, **arguments)
    if values:
        assert_same_values(values, all_values(model))
        assert packnet_tf.wrap(classifier()).task == "task_1"


def test_a_filter_that_fails_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        packnet_tf.wrap(classifier(), filters=lambda layer: 1 / 0)


@pytest.mark.parametrize("path", ["", ".", "..", "a\0b"])
@pytest.mark.parametrize(
    "call",
    [
        lambda model, path: model.export_task("one", path),
        lambda model, path: model.export(path),
    ],
    ids=["export_task", "export"],
)
def test_export_refuses_a_path_that_names_nothing(
    call, path, packed, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with Unchanged(packed):
        assert_refused(FileError, call, packed, path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", [None, 3, ["a"]], ids=repr)
@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda model, path: model.export_task("one", path), ArgumentError),
        (lambda model, path: model.export(path), ArgumentError),
        (lambda model, path: model.save(path), ArgumentError),
        (lambda model, path: packnet_tf.load_model(path), FileError),
    ],
    ids=["export_task", "export", "save", "load_model"],
)
def test_what_is_no_path_is_refused(call, error, path, packed):
    with Unchanged(packed):
        assert_refused(error, call, packed, path)


def test_weights_that_lack_a_task_are_refused_with_advice(
    packed, images, finish_task, tmp_path
):
    finish_task(packed, *images)
    path = tmp_path / "one.weights.h5"
    packed.save_weights(path)
    packed.add_task("two", units=4)
    packed.fit(*images, batch_size=16, verbose=0)
    with Unchanged(packed), pytest.warns(UserWarning, match="Skipping"):
        with pytest.raises(ArgumentError, match="load_model") as caught:
            packed.load_weights(path)
    assert str(caught.value).endswith(f"Received: {[path]}")


def test_weights_that_are_refused_verify_nothing(
    packed, images, finish_task, tmp_path
):
    finish_task(packed, *images)
    bias = packed.backbone.get_layer("dense").layer.bias
    packed.save(tmp_path / "packed.keras")
    loaded = keras.saving.load_model(tmp_path / "packed.keras")
    bias = loaded.backbone.get_layer("dense").layer.bias
    bias.assign(bias + 1.0)
    with pytest.raises(FileNotFoundError):
        loaded.load_weights(tmp_path / "none.weights.h5")
    with pytest.raises(packnet_tf.errors.FingerprintError, match="dense/bias"):
        loaded.predict(images[0], verbose=0)


@pytest.mark.parametrize(
    "arguments",
    [{"metrics": 3}, {"weighted_metrics": 3}, {"nonsense": 1}],
    ids=repr,
)
def test_compile_refused_by_keras_leaves_the_model_compiled_as_it_was(
    arguments, packed, images
):
    packed.fit(*images, batch_size=16, verbose=0)
    with Unchanged(packed), pytest.raises((ValueError, TypeError)):
        packed.compile("sgd", "mse", **arguments)
    packed.fit(*images, batch_size=16, verbose=0)


def test_the_256th_task_is_refused():
    """255 frozen tasks that share one weight matrix and own a part each."""
    network = keras.Sequential([keras.Input((4,)), L.Dense(64, name="dense")])
    names = [f"task_{number}" for number in range(1, ownership.MAX_TASKS)]
    backbone = cloning.pack(network, planning.make(network))
    (entry,) = [e for e in inventory.take(backbone) if e.owner is not None]
    owner = np.arange(1, 257).reshape(4, 64) % 255  # Task 1 owns two, as 0.
    entry.owner.assign(owner)
    entry.variable.assign(np.where(owner == 0, 0.0, entry.variable.numpy()))
    inputs = keras.Input((64,))
    heads = {
        name: keras.Model(inputs, L.Dense(1)(inputs), name=name)
        for name in names
    }
    measured = fingerprint.measure(inventory.take(backbone), [*heads.values()])
    model = packnet_tf.PackNetModel(
        backbone,
        heads,
        [
            Task(name, number, Stage.FROZEN, record=record)
            for number, (name, (record, _)) in enumerate(
                zip(names, measured), 1
            )
        ],
    )
    x = np.ones((2, 4), "float32")
    before = {name: model(x, task=name).numpy() for name in names[::50]}
    model.add_task("last", units=2)
    assert int((entry.owner.numpy() == 255).sum()) == int((owner == 0).sum())
    entry.variable.assign(
        np.where(entry.owner.numpy() == 255, np.nan, entry.variable.numpy())
    )
    model.freeze_task()
    with Unchanged(model):
        assert_refused(TaskError, model.add_task, "one_more", units=2)
    assert len(model.verify()) == 255
    for name, outputs in before.items():
        assert same_bits(outputs, model(x, task=name))
