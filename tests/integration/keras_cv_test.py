"""Networks of keras-cv, which are made of layers of its own."""

import itertools
import warnings

import keras
import numpy as np
import pytest

import packnet_tf  # Before keras-cv, which takes the Keras that it finds.
from packnet_tf import inventory


@pytest.fixture(scope="module")
def models():
    with warnings.catch_warnings():
        # It was written for older versions of what it imports.
        warnings.simplefilter("ignore")
        keras_cv = pytest.importorskip(
            "keras_cv",
            reason="keras-cv cannot be imported here",
            exc_type=Exception,
        )
    return keras_cv.models


def efficientnet(models):
    return models.EfficientNetV2Backbone(
        stackwise_kernel_sizes=[3, 3],
        stackwise_num_repeats=[1, 1],
        stackwise_input_filters=[8, 8],
        stackwise_output_filters=[8, 16],
        stackwise_expansion_ratios=[1, 4],
        stackwise_squeeze_and_excite_ratios=[0.0, 0.25],
        stackwise_strides=[1, 2],
        stackwise_conv_types=["fused", "unfused"],
        width_coefficient=1.0,
        depth_coefficient=1.0,
        include_rescaling=False,
        input_shape=(32, 32, 3),
    )


def densenet(models):
    return models.DenseNetBackbone(
        stackwise_num_repeats=[1, 1],
        include_rescaling=True,
        input_shape=(32, 32, 3),
    )


def classifier_of(make):
    def classifier(models):
        return models.ImageClassifier(backbone=make(models), num_classes=3)

    return classifier


CASES = {
    "EfficientNetV2Backbone": (efficientnet, None),
    "DenseNetBackbone": (densenet, None),
    "ImageClassifier_EfficientNetV2": (classifier_of(efficientnet), "one"),
    "ImageClassifier_DenseNet": (classifier_of(densenet), "one"),
}


def computed(model, x, **kwargs):
    return keras.ops.convert_to_numpy(model(x, **kwargs)).tobytes()


def train(model, x, y):
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9, weight_decay=0.01),
        "sparse_categorical_crossentropy",
        run_eagerly=True,
    )
    model.fit(x, y, batch_size=2, verbose=0)


OWN = {"biases": "per_task", "normalization": "per_task"}
# A classifier has all of its backbone; the slow suite has the rest.
QUICK = [("ImageClassifier_DenseNet", OWN), ("EfficientNetV2Backbone", {})]


@pytest.mark.parametrize(
    ("case", "options"),
    [
        pytest.param(*pair, marks=[] if pair in QUICK else [pytest.mark.slow])
        for pair in itertools.product(CASES, ({}, OWN))
    ],
)
def test_two_tasks_stay_apart(models, case, options, tmp_path):
    make, task = CASES[case]
    network = make(models)
    generator = np.random.default_rng(0)
    x = generator.normal(size=(4, 32, 32, 3)).astype("float32")
    y = np.arange(4) % 3

    packed = packnet_tf.wrap(network, task=task, **options)
    np.testing.assert_array_equal(network(x), packed(x))
    np.testing.assert_array_equal(
        network.predict(x, verbose=0), packed.predict(x, verbose=0)
    )
    how = {
        entry.key: entry.protection
        for entry in packed.summary_protection(print_fn=len)
    }
    assert inventory.PACKED in how.values()
    kernels = [key for key in how if key.endswith("kernel")]
    assert {how[key] for key in kernels} == {inventory.PACKED}

    if task is None:
        packed.add_task("one", units=3)
    train(packed, x, y)
    packed.prune(0.5)
    train(packed, x, y)
    packed.freeze_task()
    frozen = computed(packed, x)
    packed.add_task("two", units=3)
    train(packed, x + 1.0, y)
    assert computed(packed, x, task="one") == frozen
    assert computed(packed, x, task="two") != frozen
    packed.freeze_task()
    packed.verify()

    assert computed(packed.unwrap("one"), x) == frozen
    packed.save(tmp_path / "model.keras")
    loaded = packnet_tf.load_model(tmp_path / "model.keras")
    assert computed(loaded, x, task="one") == frozen
    assert loaded.verify() == packed.verify()
