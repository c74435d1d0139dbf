"""Logs of a run: lines, clocks and curves, over restarts."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from experiments import Killed
from methods import logs

import packnet_tf


def make_model():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile("sgd", "mse", run_eagerly=True)
    return model


def fit(model, folder, epochs, initial=0, before=0, method="lwf", extra=()):
    x = np.ones((4, 3), np.float32)
    return model.fit(
        x,
        np.ones((4, 2), np.float32),
        epochs=epochs,
        initial_epoch=initial,
        verbose=0,
        callbacks=[
            *logs.callbacks(folder, method, "one", "train", before),
            *extra,
        ],
    )


class KillAfter(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.last = epoch

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.last:
            raise Killed


def read_lines(folder):
    return [
        json.loads(line)
        for line in (folder / "log.jsonl").read_text().splitlines()
    ]


def read_scalars(folder):
    found = {}
    for path in folder.rglob("events*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                found.setdefault(value.tag, set()).add(event.step)
    return found


def test_each_epoch_has_a_line(tmp_path):
    history = fit(make_model(), tmp_path, 3, before=2).history
    lines = read_lines(tmp_path)
    assert [line["epoch"] for line in lines] == [3, 4, 5]
    assert [line["loss"] for line in lines] == history["loss"]
    for line in lines:
        assert (line["method"], line["task"]) == ("lwf", "one")
        assert line["phase"] == "train"
        assert line["seconds"] >= 0


def test_lines_are_added_after_a_restart_and_the_clock_goes_on(tmp_path):
    with pytest.raises(Killed):
        fit(make_model(), tmp_path, 4, extra=[KillAfter(1)])
    first = logs.seconds(tmp_path, "lwf")
    fit(make_model(), tmp_path, 4, initial=2)
    lines = read_lines(tmp_path)
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    total = logs.seconds(tmp_path, "lwf")
    assert 0 < first < total
    spent = sum(line["seconds"] for line in lines)
    assert total == pytest.approx(spent, abs=0.02)


def test_every_method_has_a_clock(tmp_path):
    assert logs.seconds(tmp_path, "individual/one") == 0.0
    fit(make_model(), tmp_path, 1, method="individual/one")
    assert logs.seconds(tmp_path, "individual/one") > 0
    assert logs.seconds(tmp_path, "individual/two") == 0.0
    (tmp_path / "clock" / "individual" / "one").write_text("damaged")
    assert logs.seconds(tmp_path, "individual/one") == 0.0


def test_curves_go_on_after_a_restart(tmp_path):
    with pytest.raises(Killed):
        fit(make_model(), tmp_path, 3, extra=[KillAfter(0)])
    fit(make_model(), tmp_path, 3, initial=1)
    fit(make_model(), tmp_path, 1, before=3)
    found = read_scalars(tmp_path / "tensorboard" / "lwf" / "one")
    assert found == {"epoch/loss": {1, 2, 3, 4}}


def test_curves_of_a_packed_model_have_its_capacity(tmp_path):
    model = packnet_tf.wrap(
        keras.Sequential(
            [
                keras.Input((3,)),
                keras.layers.Dense(8, name="first"),
                keras.layers.Dense(2, name="top"),
            ]
        ),
        task="one",
    )
    model.compile("sgd", "mse", run_eagerly=True)
    model.prune(0.75)
    fit(model, tmp_path, 1)
    values = {}
    for path in tmp_path.rglob("events*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                values[value.tag] = float(tf.make_ndarray(value.tensor))
    shares = {tag: values[tag] for tag in values if "first" in tag}
    assert {tag.partition("/")[0]: x for tag, x in shares.items()} == {
        "sparsity": 0.75,
        "owned": 0.25,
        "free": 0.75,
    }
