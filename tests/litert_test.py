"""LiteRT files, computed by the interpreter in a process of its own."""

import json
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import Unchanged
from helpers import make_images
from helpers import pack_network

import packnet_tf
from packnet_tf.errors import ArgumentError

NAMES = ["a", "b", "Löwe", "d e"]
# Runs where neither packnet_tf nor Keras can be imported.
CLIENT = """
import json, pathlib, sys
import numpy as np
sys.modules["packnet_tf"] = None
sys.modules["keras"] = None
try:
    from ai_edge_litert.interpreter import Interpreter
except ImportError:
    import tensorflow as tf
    Interpreter = tf.lite.Interpreter
found = {}
for path in pathlib.Path(sys.argv[1]).glob("*.tflite"):
    interpreter = Interpreter(model_path=str(path))
    runner = interpreter.get_signature_runner("serving_default")
    (details,) = runner.get_input_details().items()
    name, inputs = details[0], f"{np.dtype(details[1]['dtype']).name}.npy"
    results = runner(**{name: np.load(path.with_name(inputs))})
    if "labels" in results:
        results["labels"] = results["labels"].astype(bytes)
    np.savez(path.with_suffix(".npz"), **results)
    tensors = interpreter.get_tensor_details()
    found[path.stem] = sorted({np.dtype(t["dtype"]).name for t in tensors})
print(json.dumps(found))
"""
RAW = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), "uint8")


@pytest.fixture(scope="module")
def preprocessing():
    inputs = keras.Input((8, 8, 1), dtype="uint8")
    return keras.Model(inputs, keras.layers.Rescaling(1 / 255)(inputs))


@pytest.fixture(scope="module")
def two_tasks(network, finish_task):
    """A model of two tasks, which no test changes."""
    keras.utils.set_random_seed(7)
    model = pack_network(network)
    finish_task(model, *make_images())
    model.add_task("two", units=6)
    return model


@pytest.fixture(scope="module")
def computed(two_tasks, preprocessing, tmp_path_factory):
    """What files compute, by their names, and the dtypes of their tensors."""
    folder = tmp_path_factory.mktemp("litert")
    x, _ = make_images()
    np.save(folder / "float32.npy", x)
    np.save(folder / "uint8.npy", RAW)
    for quantize in (None, "float16", "int8"):
        for suffix, names in (("", None), ("_named", NAMES)):
            two_tasks.export_task(
                "one",
                folder / f"{quantize}{suffix}.tflite",
                class_names=names,
                quantize=quantize,
                representative_data=x if quantize == "int8" else None,
            )
    two_tasks.export_task(
        "one",
        folder / "raw.tflite",
        preprocessing=preprocessing,
        class_names=NAMES,
    )
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, str(folder)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    dtypes = json.loads(done.stdout.splitlines()[-1])
    return {
        name: (
            folder / f"{name}.tflite",
            dict(np.load(folder / f"{name}.npz")),
            kinds,
        )
        for name, kinds in dtypes.items()
    }


@pytest.mark.parametrize(
    ("quantize", "tolerance", "dtype"),
    [
        (None, 1e-6, "float32"),
        ("float16", 1e-3, "float16"),
        ("int8", 0.05, "int8"),
    ],
)
def test_the_interpreter_computes_the_task(
    quantize, tolerance, dtype, two_tasks, images, computed
):
    _, results, dtypes = computed[str(quantize)]
    (found,) = results.values()
    expected = two_tasks.predict(images[0], task="one", verbose=0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
    assert found.dtype == "float32"
    assert dtype in dtypes


@pytest.mark.parametrize("quantize", [None, "float16", "int8"])
def test_the_interpreter_returns_labels(quantize, computed):
    _, found, _ = computed[f"{quantize}_named"]
    (scores,) = computed[str(quantize)][1].values()
    assert set(found) == {"scores", "labels"}
    np.testing.assert_array_equal(found["scores"], scores)
    expected = [NAMES[n] for n in scores.argmax(-1)]
    assert len(set(expected)) > 1
    assert [label.decode() for label in found["labels"]] == expected


def test_raw_images_go_in_and_class_names_are_inside(
    two_tasks, preprocessing, computed, tmp_path
):
    path, found, dtypes = computed["raw"]
    scaled = preprocessing(RAW).numpy()
    np.testing.assert_allclose(
        found["scores"],
        two_tasks.predict(scaled, task="one", verbose=0),
        atol=1e-6,
    )
    expected = [NAMES[n] for n in found["scores"].argmax(-1)]
    assert [label.decode() for label in found["labels"]] == expected
    assert "uint8" in dtypes
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["labels.txt"]
        assert archive.read("labels.txt").decode().splitlines() == NAMES
    again = tmp_path / "one.bin"  # The format decides, not the suffix.
    two_tasks.export_task(
        "one",
        again,
        format="litert",
        preprocessing=preprocessing,
        class_names=NAMES,
    )
    assert again.read_bytes() == path.read_bytes()


def test_batches_calibrate_as_arrays_do(two_tasks, preprocessing, tmp_path):
    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 8

        def __getitem__(self, index):
            return RAW[index : index + 1], np.zeros(1)

    sources = {
        "arrays": RAW,
        "dataset": tf.data.Dataset.from_tensor_slices(RAW).batch(1),
        "labels": tf.data.Dataset.from_tensor_slices((RAW, RAW)).batch(1),
        "PyDataset": Batches(),
        "others": RAW // 2,
    }
    found = {}
    for name, data in sources.items():
        path = tmp_path / "one.tflite"
        two_tasks.export_task(
            "one",
            path,
            preprocessing=preprocessing,
            quantize="int8",
            representative_data=data,
        )
        found[name] = path.read_bytes()
    others = found.pop("others")
    assert set(found.values()) == {found["arrays"]}
    assert others != found["arrays"]


@pytest.mark.parametrize(
    ("path", "arguments", "match"),
    [
        ("one", {"quantize": "float16"}, "Only LiteRT"),
        ("one.keras", {"quantize": "int8"}, "Only LiteRT"),
        ("one", {"representative_data": [1]}, "Only LiteRT"),
        ("one.tflite", {"quantize": "int4"}, "int4"),
        ("one.tflite", {"quantize": "int8"}, "representative_data="),
        ("one.tflite", {"representative_data": [1]}, "used by"),
        ("one.tflite", {"format": "keras"}, "of the format"),
        ("one.tflite", {"format": "tf_saved_model"}, "of the format"),
        ("one.keras", {"format": "litert"}, "of the format"),
        ("one.keras", {"format": "tf_saved_model"}, "of the format"),
        ("one.h5", {"format": "keras"}, "of the format"),
        ("one", {"format": "onnx"}, "onnx"),
    ],
)
def test_options_that_contradict_are_refused(
    path, arguments, match, two_tasks, tmp_path
):
    with (
        Unchanged(two_tasks),
        pytest.raises(ArgumentError, match=match) as caught,
    ):
        two_tasks.export_task("one", tmp_path / path, **arguments)
    assert "Received:" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (np.zeros((4, 8, 8), "float32"), "float32"),
        (np.zeros((4, 9, 8, 1), "float32"), "9"),
        (np.zeros((0, 8, 8, 1), "float32"), "at least one"),
        (np.full((4, 8, 8, 1), "a"), "arrays"),
        (["a"], "arrays"),
        (3, "arrays"),
        (tf.data.Dataset.from_tensors(np.zeros((4, 8))), "float64"),
        (
            tf.data.Dataset.from_tensors(np.zeros((4, 8, 8, 1))).repeat(),
            "endless",
        ),
    ],
)
def test_data_that_cannot_calibrate_are_refused(
    data, match, two_tasks, tmp_path
):
    with (
        Unchanged(two_tasks),
        pytest.raises(ArgumentError, match=match) as caught,
    ):
        two_tasks.export_task(
            "one",
            tmp_path / "one.tflite",
            quantize="int8",
            representative_data=data,
        )
    assert "Received:" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_floats_do_not_calibrate_inputs_of_integers(
    two_tasks, preprocessing, tmp_path
):
    with pytest.raises(ArgumentError, match="uint8"):
        two_tasks.export_task(
            "one",
            tmp_path / "one.tflite",
            preprocessing=preprocessing,
            quantize="int8",
            representative_data=np.zeros((4, 8, 8, 1), "float32"),
        )
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_needs_more_than_litert_says_so(tmp_path):
    network = keras.Sequential([keras.Input((5, 3)), keras.layers.LSTM(4)])
    model = packnet_tf.wrap(network, head=None)
    model.add_task("one", units=2)
    with pytest.warns(UserWarning, match="Flex delegate"):
        model.export_task("one", tmp_path / "one.tflite")
    assert (tmp_path / "one.tflite").stat().st_size > 0
