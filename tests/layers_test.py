import keras
import numpy as np
import pytest
import tensorflow as tf

import packnet_tf
from packnet_tf import visibility
from packnet_tf.errors import ArgumentError
from packnet_tf.layers import PackedLayer

L = keras.layers

INNER = {
    "dense": (lambda: L.Dense(5), (6,)),
    "einsum_dense": (lambda: L.EinsumDense("ab,bc->ac", (5,)), (6,)),
    "conv1d": (lambda: L.Conv1D(4, 3), (9, 3)),
    "conv2d": (lambda: L.Conv2D(4, 3), (7, 7, 3)),
    "conv3d": (lambda: L.Conv3D(3, 2), (4, 4, 4, 2)),
    "conv2d_transpose": (lambda: L.Conv2DTranspose(4, 3), (5, 5, 3)),
    "depthwise": (lambda: L.DepthwiseConv2D(3), (7, 7, 3)),
    "separable": (lambda: L.SeparableConv2D(4, 3), (7, 7, 3)),
}


def make_owned(name):
    """Returns a packed layer whose weights tasks 0 to 3 own at random."""
    make, shape = INNER[name]
    layer = PackedLayer(make())
    layer.build((None, *shape))
    generator = np.random.default_rng(3)
    for variable, owner in zip(layer.packed_variables(), layer.owners):
        variable.assign(generator.normal(size=variable.shape))
        owner.assign(generator.integers(0, 4, variable.shape))
    x = generator.normal(size=(2, *shape)).astype("float32")
    return layer, x


@pytest.mark.parametrize("name", INNER)
def test_packed_layer_carries_an_owner_map_per_packed_weight(name):
    layer, _ = make_owned(name)
    assert len(layer.owners) == len(layer.packed) >= 1
    for variable, owner in zip(layer.packed_variables(), layer.owners):
        assert owner.shape == variable.shape
        assert owner.dtype == "uint8"
        assert not owner.trainable
        assert any(owner is v for v in layer.non_trainable_variables)


@pytest.mark.parametrize("name", INNER)
@pytest.mark.parametrize("task", [1, 2])
def test_visible_task_computes_with_the_weights_of_that_task(name, task):
    layer, x = make_owned(name)
    with visibility.visible_task(task):
        scoped = layer(x)
    kernels = [variable.numpy() for variable in layer.packed_variables()]
    for variable, owner in zip(layer.packed_variables(), layer.owners):
        owned = owner.numpy()
        visible = (owned >= 1) & (owned <= task)
        variable.assign(np.where(visible, variable.numpy(), 0))
    np.testing.assert_array_equal(scoped, layer(x))
    assert any(
        (kernel != variable.numpy()).any()
        for kernel, variable in zip(kernels, layer.packed_variables())
    )


def test_visible_task_changes_no_weight():
    layer, x = make_owned("conv2d")
    before = [variable.numpy() for variable in layer.variables]
    with visibility.visible_task(1):
        layer(x)
    for old, variable in zip(before, layer.variables):
        np.testing.assert_array_equal(old, variable.numpy())


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_visible_task_is_untouched_by_a_later_task_that_diverged(poison):
    layer, x = make_owned("dense")
    with visibility.visible_task(2):
        before = layer(x).numpy()
    kernel, owner = layer.layer.kernel, layer.owners[0].numpy()
    kernel.assign(np.where(owner == 3, poison, kernel.numpy()))
    with visibility.visible_task(2):
        after = layer(x).numpy()
    assert np.isfinite(after).all()
    np.testing.assert_array_equal(before, after)


def test_visible_task_ends_with_its_block():
    layer, x = make_owned("dense")
    raw = layer(x)
    with pytest.raises(ZeroDivisionError), visibility.visible_task(1):
        raise ZeroDivisionError
    np.testing.assert_array_equal(raw, layer(x))


def test_packed_layer_keeps_added_losses_of_an_older_task():
    layer = PackedLayer(L.Dense(3, activity_regularizer="l2"))
    layer.build((None, 4))
    layer.owners[0].assign(np.ones((4, 3)))
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layer(inputs))
    x = np.ones((2, 4), "float32")
    model(x)
    raw = [float(loss) for loss in model.losses]
    with visibility.visible_task(1):
        model(x)
    assert len(raw) == 1
    assert [float(loss) for loss in model.losses] == raw


def test_packed_layer_bears_the_name_of_its_layer():
    assert PackedLayer(L.Dense(2, name="fc")).name == "fc"


def test_packed_layer_survives_serialization():
    layer, x = make_owned("separable")
    config = keras.saving.serialize_keras_object(layer)
    copy = keras.saving.deserialize_keras_object(config)
    assert isinstance(copy, packnet_tf.PackedLayer)
    assert copy.packed == ("depthwise_kernel", "pointwise_kernel")
    for old, new in zip(layer.variables, copy.variables, strict=True):
        assert old.dtype == new.dtype
        new.assign(old)
    np.testing.assert_array_equal(layer(x), copy(x))


def test_packed_layer_casts_as_its_layer_does():
    layer = PackedLayer(L.Dense(3, dtype="mixed_bfloat16"))
    x = np.ones((2, 4), "float32")
    assert layer(x).dtype == "bfloat16"
    assert layer.layer.kernel.dtype == "float32"
    layer.owners[0].assign(np.ones((4, 3)))
    with visibility.visible_task(1):
        scoped = layer(x)
    np.testing.assert_array_equal(scoped, layer(x))


def test_packed_layer_passes_masks_on():
    layer = PackedLayer(L.Embedding(5, 2, mask_zero=True))
    mask = layer(np.array([[1, 0]]))._keras_mask
    np.testing.assert_array_equal(mask, [[True, False]])


def test_compiled_selection_computes_the_same_from_large_weights():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(3, 600)).astype("float32")
    layer = packnet_tf.layers.PackedLayer(keras.layers.Dense(500))
    layer(x)
    (kernel,) = layer.packed_variables()
    owner = generator.integers(0, 4, kernel.shape)
    layer.owners[0].assign(owner)
    values = generator.normal(size=kernel.shape).astype("float32")
    values[owner == 3] = np.nan  # A later task that diverged.
    kernel.assign(values)

    def compute(compiled):
        @tf.function
        def call(x):
            with (
                visibility.visible_task(2),
                visibility.compiled_selection(compiled),
            ):
                return layer(x)

        graph = call.get_concrete_function(x).graph.as_graph_def()
        assert ("_XlaMustCompile" in str(graph.library)) == compiled
        return call(x).numpy()

    assert np.isfinite(compute(True)).all()
    np.testing.assert_array_equal(compute(True), compute(False))


def test_views_compile_what_exports_do_not(tmp_path):
    model = packnet_tf.wrap(
        keras.Sequential(
            [keras.Input((600,)), keras.layers.Dense(500), _top()]
        ),
        task="one",
    )
    model.prune(0.5)
    model.freeze_task()
    model.add_task("two", units=3)
    model.freeze_task()
    x = np.random.default_rng(1).normal(size=(4, 600)).astype("float32")
    expected = model.predict(x, task="one", verbose=0)
    model.export(tmp_path / "all")
    exported = tf.saved_model.load(tmp_path / "all")
    served = exported.signatures["one"](tf.constant(x))
    (found,) = served.values()
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    content = (tmp_path / "all" / "saved_model.pb").read_bytes()
    assert b"_XlaMustCompile" not in content


def _top():
    return keras.layers.Dense(3, "softmax")


@pytest.mark.parametrize(
    "change",
    [
        {"tasks": 256},
        {"tasks": 10**12},
        {"tasks": -1},
        {"tasks": 1.0},
        {"tasks": None},
        {"packed": ["kernel", "kernel"]},
        {"per_task": ["bias", "bias"]},
    ],
    ids=str,
)
def test_packed_layer_refuses_what_no_file_has(change):
    with pytest.raises(ArgumentError, match="Received: "):
        PackedLayer(keras.layers.Dense(2), **change)
