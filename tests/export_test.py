import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import make_images
from helpers import pack_network

from packnet_tf.errors import ArgumentError
from packnet_tf.errors import FileError
from packnet_tf.errors import FingerprintError

# Runs where packnet_tf cannot be imported, and computes with what it loads.
LOADER = """
import pathlib, sys
sys.modules["packnet_tf"] = None
import keras
import numpy as np
import tensorflow as tf
folder = pathlib.Path(sys.argv[1])
x = np.load(folder / "x.npy")
found = {}
for path in folder.glob("*.keras"):
    found[path.name] = keras.saving.load_model(path).predict(x, verbose=0)
whole = tf.saved_model.load(folder / "all")
for task in ("one", "two"):
    loaded = tf.saved_model.load(folder / task)
    found[task] = loaded.serve(x).numpy()
    (result,) = whole.signatures[task](tf.constant(x)).values()
    found[f"all/{task}"] = result.numpy()
np.savez(folder / "found.npz", **found)
"""


@pytest.fixture(scope="module")
def two_tasks(network, finish_task):
    """A model of two frozen tasks, which every test leaves as it was."""
    keras.utils.set_random_seed(7)
    model = pack_network(network)
    finish_task(model, *make_images())
    model.add_task("two", units=6)
    finish_task(model, *make_images())
    return model


@pytest.fixture(scope="module")
def elsewhere(two_tasks, tmp_path_factory):
    """What exports compute in a process of its own, by their names."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for task in two_tasks.task_names:
        two_tasks.export_task(task, folder / f"{task}.keras")
        two_tasks.export_task(task, folder / task)
    two_tasks.export(folder / "all")
    np.save(folder / "x.npy", make_images()[0])
    done = subprocess.run(
        [sys.executable, "-c", LOADER, str(folder)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return np.load(folder / "found.npz")


def graph_outputs(model, x, task):
    return np.array(
        tf.function(lambda x: model(x, training=False, task=task))(x)
    )


@pytest.mark.parametrize("task", ["one", "two"])
def test_export_to_keras_needs_no_packnet_tf(
    task, two_tasks, images, elsewhere
):
    np.testing.assert_array_equal(
        elsewhere[f"{task}.keras"],
        two_tasks.predict(images[0], verbose=0, task=task),
    )


@pytest.mark.parametrize("task", ["one", "two"])
def test_export_to_saved_model_needs_no_packnet_tf(
    task, two_tasks, images, elsewhere
):
    np.testing.assert_array_equal(
        elsewhere[task], graph_outputs(two_tasks, images[0], task)
    )


def test_export_of_all_tasks_has_a_signature_each(
    two_tasks, images, elsewhere, tmp_path
):
    two_tasks.export(tmp_path / "all")
    loaded = tf.saved_model.load(str(tmp_path / "all"))
    assert set(loaded.signatures) == {"one", "two", "serving_default"}
    for task in ("one", "two"):
        np.testing.assert_array_equal(
            elsewhere[f"all/{task}"], graph_outputs(two_tasks, images[0], task)
        )


def test_export_keeps_only_the_weights_of_its_task(two_tasks, tmp_path):
    two_tasks.export_task("one", tmp_path / "one.keras")
    plain = keras.saving.load_model(tmp_path / "one.keras")
    owner = two_tasks.backbone.get_layer("dense").owners[0].numpy()
    kernel = plain.get_layer("dense").kernel.numpy()
    assert (kernel[owner != 1] == 0).all()
    assert (kernel[owner == 1] != 0).any()
    assert "uint8" not in {variable.dtype for variable in plain.variables}


def test_exported_graph_has_no_selection(two_tasks, tmp_path):
    two_tasks.export_task("one", tmp_path / "one")
    loaded = tf.saved_model.load(str(tmp_path / "one"))
    graph = loaded.signatures["serving_default"].graph
    names = {op.type for op in graph.get_operations()}
    for function in graph.as_graph_def().library.function:
        names |= {node.op for node in function.node_def}
    assert not names & {"Select", "SelectV2", "Where"}
    assert "Conv2D" in names


def test_exported_model_trains_as_any_other(two_tasks, images, tmp_path):
    x, y = images
    two_tasks.export_task("one", tmp_path / "one.keras")
    plain = keras.saving.load_model(tmp_path / "one.keras")
    plain.compile("adam", "sparse_categorical_crossentropy")
    plain.fit(x, y, verbose=0)


def test_a_task_can_be_exported_before_it_is_frozen(packed, images, tmp_path):
    x, y = images
    packed.fit(x, y, verbose=0)
    packed.export_task("one", tmp_path / "one.keras")
    plain = keras.saving.load_model(tmp_path / "one.keras")
    np.testing.assert_array_equal(
        packed.predict(x, verbose=0), plain.predict(x, verbose=0)
    )


@pytest.mark.parametrize("suffix", [".h5", ".pb", ".onnx", ".H5"])
def test_other_formats_are_refused(suffix, packed, tmp_path):
    with pytest.raises(ArgumentError, match="Received:"):
        packed.export_task("one", tmp_path / f"one{suffix}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".keras", ".tflite", ".h5"])
def test_all_tasks_are_no_file(suffix, packed, tmp_path):
    with pytest.raises(ArgumentError, match="Received:"):
        packed.export(tmp_path / f"all{suffix}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["out", "out.bin"])
def test_the_format_decides_where_the_suffix_says_nothing(
    name, packed, images, tmp_path
):
    x, _ = images
    packed.export_task("one", tmp_path / name, format="keras")
    (path,) = tmp_path.iterdir()
    plain = keras.saving.load_model(path.rename(tmp_path / "one.keras"))
    np.testing.assert_array_equal(plain(x), packed(x))
    packed.export_task("one", tmp_path / name, format="tf_saved_model")
    loaded = tf.saved_model.load(str(tmp_path / name))
    np.testing.assert_array_equal(
        loaded.serve(x), graph_outputs(packed, x, "one")
    )


def test_suffixes_may_be_in_capitals(packed, images, tmp_path):
    x, _ = images
    packed.export_task("one", tmp_path / "one.Keras")
    path = (tmp_path / "one.Keras").rename(tmp_path / "one.keras")
    np.testing.assert_array_equal(keras.saving.load_model(path)(x), packed(x))
    packed.export_task("one", tmp_path / "one.TFLITE")
    assert (tmp_path / "one.TFLITE").read_bytes()[4:8] == b"TFL3"


@pytest.mark.parametrize("suffix", ["", ".keras", ".tflite"])
def test_a_name_that_is_too_long_is_told(suffix, packed, tmp_path):
    path = tmp_path / ("a" * 256 + suffix)
    with pytest.raises(FileError, match=r"too long.*Received: path="):
        packed.export_task("one", path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_task_is_not_exported(two_tasks, tmp_path):
    bias = two_tasks.backbone.get_layer("dense").layer.bias
    before = bias.numpy()
    bias.assign(before + 1.0)
    for export in (
        lambda: two_tasks.export_task("one", tmp_path / "one"),
        lambda: two_tasks.export(tmp_path / "all"),
    ):
        with pytest.raises(FingerprintError, match="dense/bias"):
            export()
    assert list(tmp_path.iterdir()) == []
    bias.assign(before)
    two_tasks.verify()


def test_an_unwritable_place_is_one_clear_error(two_tasks, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FileError, match="Received:"):
        two_tasks.export_task("one", tmp_path / "file" / "one")


def test_export_replaces_an_earlier_export(two_tasks, images, tmp_path):
    x, _ = images
    two_tasks.export_task("two", tmp_path / "task")
    two_tasks.export_task("one", tmp_path / "task")
    loaded = tf.saved_model.load(str(tmp_path / "task"))
    assert loaded.serve(x).shape == (32, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["task"]


@pytest.mark.parametrize("call", ["export", "export_task"])
def test_export_keeps_a_folder_of_other_things(call, two_tasks, tmp_path):
    arguments = [] if call == "export" else ["one"]
    (tmp_path / "mine").mkdir()
    export = getattr(two_tasks, call)
    export(*arguments, tmp_path / "mine")  # An empty folder may go.
    export(*arguments, tmp_path / "mine")
    (tmp_path / "mine" / "saved_model.pb").unlink()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileError, match="Received: path="):
        export(*arguments, tmp_path / "mine")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("call", ["export", "export_task"])
def test_export_keeps_what_it_does_not_write(call, two_tasks, tmp_path):
    arguments = [] if call == "export" else ["one"]
    export = getattr(two_tasks, call)
    export(*arguments, tmp_path / "served")
    requests = tmp_path / "served" / "assets.extra" / "requests"
    requests.parent.mkdir()
    requests.write_text("mine")
    written = (tmp_path / "served" / "saved_model.pb").stat().st_ino
    export(*arguments, tmp_path / "served")
    assert (tmp_path / "served" / "saved_model.pb").stat().st_ino != written
    assert requests.read_text() == "mine"
    (tmp_path / "served" / "README.md").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileError, match=r"which has 'README\.md'"):
        export(*arguments, tmp_path / "served")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["served", "one.keras", "one.tflite"])
def test_exports_are_to_local_paths(two_tasks, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileError, match="local path"):
        two_tasks.export_task("one", f"gs://bucket/{name}")
    if name == "served":
        with pytest.raises(FileError, match="local path"):
            two_tasks.export(f"gs://bucket/{name}")
    assert list(tmp_path.iterdir()) == []


def test_config_of_an_export_names_only_keras(two_tasks, tmp_path):
    two_tasks.export_task("one", tmp_path / "one.keras")
    plain = keras.saving.load_model(tmp_path / "one.keras")
    assert "packnet_tf" not in json.dumps(plain.get_config())
