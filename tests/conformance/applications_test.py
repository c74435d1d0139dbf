"""All of `keras.applications`: equal to the original, two tasks kept apart."""

import gc

import keras
import numpy as np
import pytest

import packnet_tf

QUICK = {
    "MobileNet",
    "MobileNetV2",
}
ALL = [
    name
    for name in dir(keras.applications)
    if name[0].isupper() and callable(getattr(keras.applications, name))
]


def mark(name):
    marks = [] if name in QUICK else [pytest.mark.slow]
    return pytest.param(name, marks=marks)


@pytest.fixture(autouse=True)
def _free():
    yield
    gc.collect()


def same(model, packed, x, **kwargs):
    np.testing.assert_array_equal(model(x), packed(x, **kwargs))
    np.testing.assert_array_equal(
        model.predict(x, verbose=0), packed.predict(x, verbose=0, **kwargs)
    )


def test_quick_applications_exist():
    assert set(ALL) >= QUICK


@pytest.mark.parametrize("name", [mark(name) for name in ALL])
def test_applications_equal_the_original_and_keep_tasks_apart(name):
    size = 96 if name.startswith(("Inception", "Xception")) else 64
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(size, size, 3), classes=10
    )
    packed = packnet_tf.wrap(model, task="first")
    x = np.random.default_rng(1).normal(size=(2, size, size, 3))
    x = x.astype("float32")
    same(model, packed, x)
    del model
    packed.prune(0.5)
    packed.freeze_task()
    plain = packed.unwrap("first")
    packed.add_task("second", units=3)
    for entry in packed.summary_protection(print_fn=len):
        if entry.owner is not None:
            later = entry.owner.numpy() == 2
            entry.variable.assign(np.where(later, np.nan, entry.variable))
    same(plain, packed, x, task="first")
    assert np.isnan(packed(x)).all()


@pytest.mark.slow
def test_vgg16_as_published():
    model = keras.applications.VGG16(weights=None)
    packed = packnet_tf.wrap(model, task="imagenet")
    capacity = packed.summary_capacity(print_fn=len)
    # Its 14,710,464 convolution and 119,537,664 dense weights.
    assert capacity.total == 134_248_128
    assert capacity.owned == {"imagenet": 134_248_128}
    x = np.random.default_rng(1).normal(size=(1, 224, 224, 3))
    same(model, packed, x.astype("float32"))
