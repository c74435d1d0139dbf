"""SavedModels, as those who serve them see them."""

import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import compile_model
from helpers import make_images

import packnet_tf

CLI = pathlib.Path(sys.executable).with_name("saved_model_cli")


@pytest.fixture(scope="module")
def three_tasks(network):
    """A model of three tasks, the newest in training; no test changes it."""
    keras.utils.set_random_seed(7)
    model = packnet_tf.wrap(network(), task="one")
    x, y = make_images()
    for name, units in (("one", 4), ("two", 6), ("v-3.0", 3)):
        if name != "one":
            model.add_task(name, units=units)
        # So that nothing is at its initial value.
        compile_model(model, run_eagerly=True)
        model.fit(x, y % units, batch_size=32, verbose=0)
        if name != "v-3.0":
            model.prune(0.5)
            model.freeze_task()
    return model


@pytest.fixture(scope="module")
def exported(three_tasks, tmp_path_factory):
    """A folder with all tasks, by whether weights are kept; once each."""
    folder = tmp_path_factory.mktemp("exported")
    for keep in (True, False):
        three_tasks.export(folder / str(keep), keep=keep)
    return folder


def in_graph(model, x, task):
    return np.array(
        tf.function(lambda x: model(x, training=False, task=task))(x)
    )


def call(loaded, task, x):
    (found,) = loaded.signatures[task](tf.constant(x)).values()
    return found.numpy()


def stored_bytes(path):
    """Returns the bytes of all arrays on disk, without their names."""
    reader = tf.train.load_checkpoint(str(path / "variables" / "variables"))
    return sum(
        reader.get_tensor(name).nbytes
        for name in reader.get_variable_to_shape_map()
        if not name.startswith("_CHECKPOINTABLE")
    )


def operations(graph):
    found = {op.type for op in graph.get_operations()}
    for function in graph.as_graph_def().library.function:
        found |= {node.op for node in function.node_def}
    return found


@pytest.mark.parametrize("keep", [True, False])
def test_every_call_of_every_signature_is_exact(
    keep, three_tasks, images, exported
):
    x, _ = images
    loaded = tf.saved_model.load(str(exported / str(keep)))
    again = tf.saved_model.load(str(exported / str(keep)))
    for _ in range(2):
        for task in three_tasks.task_names:
            expected = in_graph(three_tasks, x, task)
            np.testing.assert_array_equal(call(loaded, task, x), expected)
    np.testing.assert_array_equal(
        call(again, "one", x[:3]), in_graph(three_tasks, x[:3], "one")
    )


def test_a_task_can_be_a_keras_layer(three_tasks, images, exported):
    x, _ = images
    for task in three_tasks.task_names:
        layer = keras.layers.TFSMLayer(
            str(exported / "False"), call_endpoint=task
        )
        found = layer(tf.constant(x))
        np.testing.assert_array_equal(found, in_graph(three_tasks, x, task))


def test_calls_at_the_same_time_are_exact(tmp_path):
    # Large enough that calls come while the first one selects.
    network = keras.Sequential(
        [
            keras.Input((2000,)),
            keras.layers.Dense(1500),
            keras.layers.Dense(1500),
        ]
    )
    model = packnet_tf.wrap(network, head=None)
    for task in ("one", "two"):
        model.add_task(task, units=3)
        model.prune(0.5)
        model.freeze_task()
    x = np.random.default_rng(0).normal(size=(2, 2000)).astype("float32")
    model.export(tmp_path / "all")
    expected = in_graph(model, x, "one")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            loaded = tf.saved_model.load(str(tmp_path / "all"))
            call(loaded, "two", x)
            calls = [pool.submit(call, loaded, "one", x) for _ in range(30)]
            for started in calls:
                np.testing.assert_array_equal(started.result(), expected)


def test_weights_are_on_disk_once(three_tasks, exported, tmp_path):
    needed = sum(
        variable.numpy().nbytes
        for part in (three_tasks.backbone, *three_tasks.heads.values())
        for variable in part.variables
        if "seed" not in variable.path
    )
    flags = len(three_tasks.task_names) - 1  # A byte for each older task.
    assert stored_bytes(exported / "True") == needed + flags
    three_tasks.export_task("one", tmp_path / "one")
    plain = three_tasks.unwrap("one")
    needed = sum(v.numpy().nbytes for v in plain.weights)
    assert stored_bytes(tmp_path / "one") == needed


def test_the_newest_task_selects_nothing(exported):
    loaded = tf.saved_model.load(str(exported / "True"))
    selecting = {"Select", "SelectV2"}
    assert not selecting & operations(loaded.signatures["v-3.0"].graph)
    assert selecting & operations(loaded.signatures["one"].graph)


def test_images_are_served_as_at_inference(packed, images, tmp_path):
    """Keras' layers for images switch a call that says nothing to training."""
    x, _ = images
    layer = keras.layers.Resizing(8, 8)
    expected = in_graph(packed, x, "one")
    packed.export_task("one", tmp_path / "one", preprocessing=layer)
    packed.export(tmp_path / "all", preprocessing={"one": layer})
    for name in ("one", "all"):
        loaded = tf.saved_model.load(str(tmp_path / name))
        for _ in range(2):
            found = call(loaded, "serving_default", x)
            np.testing.assert_array_equal(found, expected)


# Runs several commands in one process, as importing TensorFlow takes long.
CLIENT = """
import json, runpy, sys
for sys.argv in json.loads(sys.argv[1]):
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as ended:
        if ended.code:
            raise
"""


def run_cli(*commands):
    commands = [[str(CLI), *map(str, command)] for command in commands]
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, json.dumps(commands)],
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.skipif(not CLI.exists(), reason="needs TensorFlow's scripts")
def test_the_command_line_of_tensorflow_shows_and_runs_each_task(
    three_tasks, images, tmp_path
):
    x, _ = images
    three_tasks.export(
        tmp_path / "all", class_names={"two": ["a", "b", "c", "d", "e", "f"]}
    )
    loaded = tf.saved_model.load(str(tmp_path / "all"))
    (name,) = loaded.signatures["two"].structured_input_signature[1]
    np.save(tmp_path / "x.npy", x)
    shown = run_cli(
        ["show", "--dir", tmp_path / "all", "--all"],
        [
            *("run", "--dir", tmp_path / "all", "--tag_set", "serve"),
            *("--signature_def", "two"),
            *("--inputs", f"{name}={tmp_path / 'x.npy'}"),
            *("--outdir", tmp_path / "out"),
        ],
    )
    for task in three_tasks.task_names:
        assert f"signature_def['{task}']" in shown
    expected = in_graph(three_tasks, x, "two")
    np.testing.assert_array_equal(
        np.load(tmp_path / "out" / "scores.npy"), expected
    )
    labels = np.load(tmp_path / "out" / "labels.npy", allow_pickle=True)
    best = [b"abcdef"[n : n + 1] for n in expected.argmax(-1)]
    assert labels.tolist() == best
