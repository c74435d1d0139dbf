"""What goes around an exported task: preprocessing and class names."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import Unchanged
from helpers import make_images
from helpers import pack_network

import packnet_tf
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import TaskError
from packnet_tf.errors import UnsupportedLayerError

NAMES = ["red deer", "Löwe", "[UNK]", "d"]


@pytest.fixture
def raw_images():
    generator = np.random.default_rng(1)
    return generator.integers(0, 256, (5, 12, 9, 1), "uint8")


@pytest.fixture
def preprocessing():
    """Takes 8-bit images of any size."""
    inputs = keras.Input((None, None, 1), dtype="uint8", name="raw image")
    x = keras.layers.Resizing(8, 8)(inputs)
    return keras.Model(inputs, keras.layers.Rescaling(1 / 255)(x))


@pytest.fixture(scope="module")
def trained(network, finish_task):
    """A model of two tasks, which no test changes."""
    keras.utils.set_random_seed(7)
    model = pack_network(network)
    finish_task(model, *make_images())
    model.add_task("two", units=6)
    return model


def expected_scores(model, preprocessing, x, task):
    @tf.function
    def compute(x):
        inputs = preprocessing(x, training=False)
        return model(inputs, training=False, task=task)

    return compute(x).numpy()


def expected_labels(scores):
    return [NAMES[n].encode() for n in scores.argmax(-1)]


def test_a_saved_model_takes_raw_images_and_returns_labels(
    trained, preprocessing, raw_images, tmp_path
):
    trained.export_task(
        "one",
        tmp_path / "one",
        preprocessing=preprocessing,
        class_names=NAMES,
    )
    scores = expected_scores(trained, preprocessing, raw_images, "one")
    loaded = tf.saved_model.load(str(tmp_path / "one"))
    served = loaded.serve(raw_images)
    assert set(served) == {"scores", "labels"}
    np.testing.assert_array_equal(served["scores"], scores)
    assert list(served["labels"].numpy()) == expected_labels(scores)
    signature = loaded.signatures["serving_default"]
    (spec,) = signature.structured_input_signature[1].values()
    assert spec == tf.TensorSpec((None, None, None, 1), "uint8", "raw_image")


def test_a_keras_file_takes_raw_images_and_returns_labels(
    trained, preprocessing, raw_images, tmp_path
):
    path = tmp_path / "one.keras"
    trained.export_task(
        "one", path, preprocessing=preprocessing, class_names=NAMES
    )
    scores = expected_scores(trained, preprocessing, raw_images, "one")
    plain = keras.saving.load_model(path, custom_objects={})
    found = plain.predict(raw_images, verbose=0)
    np.testing.assert_array_equal(found["scores"], scores)
    assert list(found["labels"]) == expected_labels(scores)


def test_the_one_saved_model_has_both_per_task(
    trained, preprocessing, images, raw_images, tmp_path
):
    trained.export(
        tmp_path / "all",
        preprocessing={"one": preprocessing},
        class_names={"one": NAMES},
    )
    loaded = tf.saved_model.load(str(tmp_path / "all"))
    scores = expected_scores(trained, preprocessing, raw_images, "one")
    served = loaded.signatures["one"](tf.constant(raw_images))
    np.testing.assert_array_equal(served["scores"], scores)
    assert list(served["labels"].numpy()) == expected_labels(scores)
    (served,) = loaded.signatures["two"](tf.constant(images[0])).values()
    assert served.shape == (32, 6)


@pytest.mark.parametrize("kind", ["task", "all"])
@pytest.mark.parametrize("suffix", ["", ".keras"])
def test_lookup_tables_are_exported_with_the_preprocessing(
    kind, suffix, tmp_path
):
    if kind == "all" and suffix:
        pytest.skip("all tasks are a SavedModel")
    network = keras.Sequential(
        [
            keras.Input((3,), dtype="int64"),
            keras.layers.Embedding(9, 4),
            keras.layers.Flatten(),
        ]
    )
    model = packnet_tf.wrap(network, head=None)
    model.add_task("one", units=2)
    words = keras.Input((), dtype="string")
    vectors = keras.layers.TextVectorization(
        output_sequence_length=3, vocabulary=["a", "b"]
    )
    preprocessing = keras.Model(words, vectors(words))
    path = tmp_path / f"one{suffix}"
    if kind == "all":
        model.export(path, preprocessing={"one": preprocessing})
    else:
        model.export_task("one", path, preprocessing=preprocessing)
    x = tf.constant(["a b", "b zebra a"])
    if suffix:
        found = keras.saving.load_model(path)(x, training=False)
    else:
        loaded = tf.saved_model.load(str(path))
        (found,) = loaded.signatures["serving_default"](x).values()
    np.testing.assert_array_equal(found, model(vectors(x), training=False))


def test_a_layer_without_declared_inputs_takes_those_of_the_backbone(
    trained, images, tmp_path
):
    x, _ = images
    layer = keras.layers.Rescaling(2.0)
    trained.export_task("one", tmp_path / "one", preprocessing=layer)
    loaded = tf.saved_model.load(str(tmp_path / "one"))
    np.testing.assert_array_equal(
        loaded.serve(x), expected_scores(trained, layer, x, "one")
    )


@pytest.mark.parametrize("count", [1, 3])
def test_inputs_without_names_are_called_the_same_each_time(
    count, trained, tmp_path
):
    expected = {"inputs", "inputs_1", "images"} if count > 1 else {"inputs"}
    for path in (tmp_path / "one", tmp_path / "two"):
        # The second one is made later in the process.
        inputs = [keras.Input((8, 8, 1)) for _ in range(min(count, 2))]
        if count > 1:
            inputs.append(keras.Input((8, 8, 1), name="images"))
        mean = sum(inputs) / count
        trained.export_task(
            "one", path, preprocessing=keras.Model(inputs, mean)
        )
        signature = tf.saved_model.load(str(path)).signatures["serving_default"]
        assert set(signature.structured_input_signature[1]) == expected


def test_augmentation_does_nothing_once_exported(trained, images, tmp_path):
    x, _ = images
    layer = keras.layers.RandomFlip()
    trained.export_task("one", tmp_path / "one", preprocessing=layer)
    loaded = tf.saved_model.load(str(tmp_path / "one"))
    np.testing.assert_array_equal(
        loaded.serve(x), expected_scores(trained, layer, x, "one")
    )


def test_a_tie_is_the_first_label(network, tmp_path):
    model = packnet_tf.wrap(network(classes=None), head=None)
    model.add_task(
        "one", head=keras.layers.Dense(4, kernel_initializer="zeros")
    )
    x = np.ones((1, 8, 8, 1), "float32")
    for path in (tmp_path / "one", tmp_path / "one.keras"):
        model.export_task("one", path, class_names=NAMES)
    plain = keras.saving.load_model(tmp_path / "one.keras")
    loaded = tf.saved_model.load(str(tmp_path / "one"))
    for found in (plain.predict(x, verbose=0), loaded.serve(x)):
        assert np.array(found["labels"]).tolist() == [b"red deer"]


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["a", "b", "c"], "3 names"),
        ([], "0 names"),
        (["a", "b", "c", "a"], "'a' more than once"),
        ("abcd", "sequence of strings"),
        (7, "sequence of strings"),
        (dict.fromkeys("abcd", 1), "sequence of strings"),
        (dict.fromkeys("abcd").keys(), "sequence of strings"),
        (frozenset("abcd"), "sequence of strings"),
        (["a", "b", "c", 4], "sequence of strings"),
        (["a", "b", "c", ""], "none empty"),
        (["a", "b", "c", "d\ne"], "one line"),
    ],
)
@pytest.mark.parametrize("path", ["one", "one.keras", "one.tflite"])
def test_class_names_that_do_not_fit_are_refused(
    path, names, match, trained, tmp_path
):
    with (
        Unchanged(trained),
        pytest.raises(ArgumentError, match=match) as caught,
    ):
        trained.export_task("one", tmp_path / path, class_names=names)
    assert "Received:" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("heads", ["dict", "one output"])
def test_heads_whose_outputs_name_no_class_are_refused(
    heads, network, tmp_path
):
    model = packnet_tf.wrap(network(classes=None), head=None)
    if heads == "dict":
        features = keras.Input((12,))
        outputs = {
            "a": keras.layers.Dense(2)(features),
            "b": keras.layers.Dense(2)(features),
        }
        model.add_task("one", head=keras.Model(features, outputs))
    else:
        model.add_task("one", units=1, activation="sigmoid")
    with pytest.raises(ArgumentError, match="Leave them out"):
        model.export_task("one", tmp_path / "one", class_names=["a", "b"])
    model.export_task("one", tmp_path / "one")


def noise(x):
    return x + tf.random.normal((1,))


def in_python(x):
    return tf.ensure_shape(
        tf.numpy_function(lambda x: x, [x], "float32"), (None, 8, 8, 1)
    )


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: keras.layers.Resizing(9, 9), r"float32 \(None, 9, 9, 1\)"),
        (lambda: keras.layers.Flatten(), r"float32 \(None, 64\)"),
        (lambda: keras.layers.Lambda(noise), "no random numbers"),
        (lambda: keras.layers.Lambda(in_python), "no Python code"),
        (lambda: keras.layers.Conv1D(1, 99), "cannot be called"),
        (lambda: lambda x: x, "a Keras layer or model"),
    ],
)
def test_preprocessing_that_does_not_fit_is_refused(
    make, match, trained, tmp_path
):
    with (
        Unchanged(trained),
        pytest.raises(ArgumentError, match=match) as caught,
    ):
        trained.export_task("one", tmp_path / "one", preprocessing=make())
    assert "Received:" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_keras_file_refuses_a_lambda_and_a_saved_model_takes_it(
    trained, images, tmp_path
):
    layer = keras.layers.Lambda(lambda x: x * 2)
    with pytest.raises(UnsupportedLayerError, match="lambda"):
        trained.export_task("one", tmp_path / "one.keras", preprocessing=layer)
    assert list(tmp_path.iterdir()) == []
    trained.export_task("one", tmp_path / "one", preprocessing=layer)
    loaded = tf.saved_model.load(str(tmp_path / "one"))
    np.testing.assert_array_equal(
        loaded.serve(images[0]),
        expected_scores(trained, layer, images[0], "one"),
    )


@pytest.mark.parametrize("argument", ["preprocessing", "class_names"])
def test_all_tasks_are_told_apart_by_name(argument, trained, tmp_path):
    with pytest.raises(ArgumentError, match="by the names of tasks"):
        trained.export(tmp_path / "all", **{argument: NAMES})
    with pytest.raises(TaskError, match="nine"):
        trained.export(tmp_path / "all", **{argument: {"nine": NAMES}})
    assert list(tmp_path.iterdir()) == []
