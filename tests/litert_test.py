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

import packnet_tf
from packnet_tf.errors import ArgumentError

NAMES = ["a", "b", "Löwe", "d e"]
# Runs where neither packnet_tf nor Keras can be imported.
CLIENT = """
import json, sys
import numpy as np
sys.modules["packnet_tf"] = None
sys.modules["keras"] = None
path, inputs, outputs = sys.argv[1:]
try:
    from ai_edge_litert.interpreter import Interpreter
except ImportError:
    import tensorflow as tf
    Interpreter = tf.lite.Interpreter
interpreter = Interpreter(model_path=path)
runner = interpreter.get_signature_runner("serving_default")
(name,) = runner.get_input_details()
(result,) = runner(**{name: np.load(inputs)}).values()
np.save(outputs, result)
dtypes = {np.dtype(t["dtype"]).name for t in interpreter.get_tensor_details()}
print(json.dumps(sorted(dtypes)))
"""


@pytest.fixture
def two_tasks(packed, images, finish_task):
    finish_task(packed, *images)
    packed.add_task("two", units=6)
    return packed


@pytest.fixture
def preprocessing():
    inputs = keras.Input((8, 8, 1), dtype="uint8")
    return keras.Model(inputs, keras.layers.Rescaling(1 / 255)(inputs))


def compute(path, x, tmp_path):
    """Returns what the file computes, and the dtypes of its tensors."""
    np.save(tmp_path / "x.npy", x)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            CLIENT,
            str(path),
            str(tmp_path / "x.npy"),
            str(tmp_path / "y.npy"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    dtypes = json.loads(done.stdout.splitlines()[-1])
    return np.load(tmp_path / "y.npy"), set(dtypes)


@pytest.mark.parametrize(
    ("quantize", "tolerance", "dtype"),
    [
        (None, 1e-6, "float32"),
        ("float16", 1e-3, "float16"),
        ("int8", 0.05, "int8"),
    ],
)
def test_the_interpreter_computes_the_task(
    quantize, tolerance, dtype, two_tasks, images, tmp_path
):
    x, _ = images
    path = tmp_path / "one.tflite"
    data = x if quantize == "int8" else None
    two_tasks.export_task(
        "one", path, quantize=quantize, representative_data=data
    )
    found, dtypes = compute(path, x, tmp_path)
    expected = two_tasks.predict(x, task="one", verbose=0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
    assert found.dtype == "float32"
    assert dtype in dtypes


def test_raw_images_go_in_and_class_names_are_inside(
    two_tasks, preprocessing, tmp_path
):
    x = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), "uint8")
    path = tmp_path / "one.tflite"
    two_tasks.export_task(
        "one",
        path,
        preprocessing=preprocessing,
        class_names=NAMES,
    )
    found, dtypes = compute(path, x, tmp_path)
    scaled = preprocessing(x).numpy()
    np.testing.assert_allclose(
        found, two_tasks.predict(scaled, task="one", verbose=0), atol=1e-6
    )
    assert "uint8" in dtypes
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["labels.txt"]
        assert archive.read("labels.txt").decode().splitlines() == NAMES
    content = path.read_bytes()
    again = tmp_path / "one.bin"  # The format decides, not the suffix.
    two_tasks.export_task(
        "one",
        again,
        format="litert",
        preprocessing=preprocessing,
        class_names=NAMES,
    )
    assert again.read_bytes()[-200:] == content[-200:]


@pytest.mark.parametrize("kind", ["dataset", "labels", "PyDataset"])
def test_batches_calibrate_as_arrays_do(
    kind, two_tasks, preprocessing, tmp_path
):
    x = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), "uint8")

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 8

        def __getitem__(self, index):
            return x[index : index + 1], np.zeros(1)

    data = {
        "dataset": tf.data.Dataset.from_tensor_slices(x).batch(1),
        "labels": tf.data.Dataset.from_tensor_slices((x, x)).batch(1),
        "PyDataset": Batches(),
    }[kind]
    results = []
    for given in (x, data):
        path = tmp_path / "one.tflite"
        two_tasks.export_task(
            "one",
            path,
            preprocessing=preprocessing,
            quantize="int8",
            representative_data=given,
        )
        results.append(compute(path, x, tmp_path)[0])
    np.testing.assert_array_equal(*results)


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
    path, arguments, match, packed, tmp_path
):
    with (
        Unchanged(packed),
        pytest.raises(ArgumentError, match=match) as caught,
    ):
        packed.export_task("one", tmp_path / path, **arguments)
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
def test_data_that_cannot_calibrate_are_refused(data, match, packed, tmp_path):
    with (
        Unchanged(packed),
        pytest.raises(ArgumentError, match=match) as caught,
    ):
        packed.export_task(
            "one",
            tmp_path / "one.tflite",
            quantize="int8",
            representative_data=data,
        )
    assert "Received:" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_floats_do_not_calibrate_inputs_of_integers(
    packed, preprocessing, tmp_path
):
    with pytest.raises(ArgumentError, match="uint8"):
        packed.export_task(
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
