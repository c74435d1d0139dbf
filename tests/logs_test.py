"""Logs of a run: lines, seconds and curves, over restarts."""

import json
import resource

import keras
import numpy as np
import pytest
import tensorflow as tf
from experiments import Killed
from methods import logs

import packnet_tf
from packnet_tf.errors import FileError


def make_model():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile("sgd", "mse", run_eagerly=True)
    return model


def fit(
    model,
    folder,
    epochs,
    initial=0,
    before=0,
    method="lwf",
    task="one",
    extra=(),
):
    x = np.ones((4, 3), np.float32)
    return model.fit(
        x,
        np.ones((4, 2), np.float32),
        epochs=epochs,
        initial_epoch=initial,
        verbose=0,
        callbacks=[
            *logs.callbacks(folder, method, task, "train", before),
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


@pytest.mark.parametrize("saved", [1, 2])
def test_an_epoch_has_one_line_wherever_a_kill_was(saved, tmp_path):
    """Killed after the line of epoch 2, before or after it was saved."""
    fit(make_model(), tmp_path, 2, method="ewc")
    with pytest.raises(Killed):
        fit(make_model(), tmp_path, 4, extra=[KillAfter(1)])
    first = logs.seconds(tmp_path, "lwf")
    fit(make_model(), tmp_path, 1, method="finetune")
    kept = read_lines(tmp_path)[: 2 + saved]
    fit(make_model(), tmp_path, 4, initial=saved)
    lines = read_lines(tmp_path)
    assert lines[: 2 + saved] == kept
    assert [line["epoch"] for line in lines if line["method"] == "lwf"] == [
        *range(1, 5)
    ]
    assert [line["method"] for line in lines] == [
        *["ewc"] * 2,
        *["lwf"] * saved,
        "finetune",
        *["lwf"] * (4 - saved),
    ]
    assert first > 0
    assert logs.seconds(tmp_path, "lwf") == pytest.approx(
        sum(line["seconds"] for line in lines if line["method"] == "lwf")
    )


def test_a_method_that_begins_again_loses_all_its_lines(tmp_path):
    for task in ("one", "two"):
        fit(make_model(), tmp_path, 2, task=task)
    fit(make_model(), tmp_path, 1, method="ewc", task="two")
    fit(make_model(), tmp_path, 1, task="one")
    lines = [(line["method"], line["task"]) for line in read_lines(tmp_path)]
    assert lines == [("ewc", "two"), ("lwf", "one")]


def test_a_later_phase_leaves_the_lines_of_those_before(tmp_path):
    fit(make_model(), tmp_path, 2)
    fit(make_model(), tmp_path, 2, before=2)
    fit(make_model(), tmp_path, 2, initial=1, before=2)
    assert [line["epoch"] for line in read_lines(tmp_path)] == [1, 2, 3, 4]


def test_half_a_line_goes(tmp_path):
    fit(make_model(), tmp_path, 2)
    log = tmp_path / "log.jsonl"
    for size in (1, log.stat().st_size // 2 + 1, log.stat().st_size - 1):
        whole = log.read_bytes()
        log.write_bytes(whole[:size])
        done = whole[:size].count(b"\n")
        assert logs.seconds(tmp_path, "lwf") >= 0
        fit(make_model(), tmp_path, 2, initial=done)
        assert [line["epoch"] for line in read_lines(tmp_path)] == [1, 2]


def test_a_full_disk_is_told_and_the_run_goes_on(tmp_path):
    fit(make_model(), tmp_path, 1)
    size = (tmp_path / "log.jsonl").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, hard))
    try:
        journal = logs.callbacks(tmp_path, "lwf", "one", "train")[0]
        with pytest.raises(FileError, match=r"Make room.*log\.jsonl"):
            journal.on_epoch_end(1, {"loss": 0.5})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "log.jsonl").read_bytes().endswith(b"\n")
    fit(make_model(), tmp_path, 2, initial=1)
    assert [line["epoch"] for line in read_lines(tmp_path)] == [1, 2]


def test_lines_of_others_stay(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_bytes(b"mine\n[1]\n\xff\n" + b'{"method": "lwf"}\n')
    before = log.read_bytes()
    fit(make_model(), tmp_path, 2)
    fit(make_model(), tmp_path, 1)
    assert log.read_bytes().startswith(before)
    assert log.read_bytes().count(b"\n") == 5


def test_every_method_has_its_own_seconds(tmp_path):
    assert logs.seconds(tmp_path, "individual/one") == 0.0
    fit(make_model(), tmp_path, 1, method="individual/one")
    assert logs.seconds(tmp_path, "individual/one") > 0
    assert logs.seconds(tmp_path, "individual/two") == 0.0


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
