import keras
import numpy as np
import pytest
from keras import layers

from packnet_tf import registry
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import PackNetError
from packnet_tf.errors import UnsupportedLayerError


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """Registers into a copy, so that no test sees the layers of another."""
    monkeypatch.setattr(registry, "_PACKED", dict(registry._PACKED))


class Table(layers.Layer):
    """An unregistered layer with a matrix."""

    def build(self, input_shape):
        self.table = self.add_weight(shape=(input_shape[-1], 3), name="lookup")

    def call(self, inputs):
        return inputs @ self.table


class Scale(layers.Layer):
    """An unregistered layer with a vector."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(input_shape[-1],), name="scale")

    def call(self, inputs):
        return inputs * self.scale


class Nested(layers.Layer):
    """An unregistered layer around another."""

    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner

    def build(self, input_shape):
        self.inner.build(input_shape)

    def call(self, inputs):
        return self.inner(inputs)


class OwnDense(layers.Dense):
    """A subclass of a registered layer."""


def _built(layer, *shape):
    layer.build((None, *shape))
    return layer


def _error(layer):
    with pytest.raises(UnsupportedLayerError) as info:
        registry.packed_names(layer)
    assert isinstance(info.value, PackNetError)
    assert isinstance(info.value, TypeError)
    message = str(info.value)
    assert f"Layer '{layer.name}' cannot be protected" in message
    assert "Received: " in message
    return message


@pytest.mark.parametrize(
    ("layer", "shape", "packed"),
    [
        (layers.Dense(4), (3,), ("kernel",)),
        (layers.Dense(4, use_bias=False), (3,), ("kernel",)),
        (layers.EinsumDense("ab,bc->ac", 4), (3,), ("kernel",)),
        (layers.Embedding(7, 2), (5,), ("embeddings",)),
        (layers.Conv1D(2, 3), (8, 3), ("kernel",)),
        (layers.Conv2D(2, 3), (8, 8, 3), ("kernel",)),
        (layers.Conv3D(2, 3), (8, 8, 8, 3), ("kernel",)),
        (layers.Conv2DTranspose(2, 3), (8, 8, 3), ("kernel",)),
        (layers.DepthwiseConv2D(3), (8, 8, 3), ("kernel",)),
        (
            layers.SeparableConv2D(2, 3),
            (8, 8, 3),
            ("depthwise_kernel", "pointwise_kernel"),
        ),
        (layers.BatchNormalization(), (8, 8, 3), ()),
        (layers.LayerNormalization(), (8, 3), ()),
        (layers.Normalization(), (3,), ()),
        (layers.PReLU(), (8, 3), ()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_packed_names_are_trainable_variables(layer, shape, packed):
    layer = _built(layer, *shape)
    assert registry.packed_names(layer) == packed
    for name in packed:
        variable = getattr(layer, name)
        assert any(variable is v for v in layer.trainable_variables)


@pytest.mark.parametrize(
    "layer",
    [
        layers.ReLU(),
        layers.Activation("tanh"),
        layers.Flatten(),
        layers.Dropout(0.5, seed=1),
        layers.GaussianNoise(0.5, seed=1),
        layers.MaxPooling2D(),
        layers.GlobalAveragePooling2D(),
        layers.ZeroPadding2D(),
        layers.Concatenate(),
        layers.Lambda(lambda x: x + 1),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_packed_names_of_layers_without_weights_are_empty(layer):
    assert registry.packed_names(layer) == ()


def test_packed_names_of_unknown_layer_with_vectors_are_empty():
    assert registry.packed_names(_built(Scale(), 3)) == ()


def test_packed_names_refuse_unknown_layer_with_state():
    # Not trainable, so its call may assign to it.
    message = _error(_built(Table(name="odd_one", trainable=False), 3))
    assert "'odd_one'" in message


def test_packed_names_of_unknown_layer_around_nothing_are_empty():
    assert registry.packed_names(_built(Nested(layers.ReLU()), 3)) == ()


def test_packed_names_refuse_unknown_layer_with_a_matrix():
    message = _error(_built(Table(name="odd_one"), 3))
    assert "'odd_one'" in message
    assert "register_layer(Table" in message
    assert "['lookup']" in message


@pytest.mark.parametrize("inner", [layers.Dense(2), Scale()])
def test_packed_names_refuse_unknown_layer_around_weights(inner):
    message = _error(_built(Nested(inner, name="outer"), 3))
    assert "register_layer(Nested" in message


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.Dense(4, name="adapted"), (3,)),
        (OwnDense(4, name="adapted"), (3,)),
        (layers.Embedding(7, 4, name="adapted"), (5,)),
        (layers.EinsumDense("ab,bc->ac", 4, name="adapted"), (3,)),
    ],
)
def test_packed_names_refuse_layers_with_lora(layer, shape):
    layer = _built(layer, *shape)
    layer.enable_lora(1)
    message = _error(layer)
    assert "LoRA" in message
    assert f"of type {type(layer).__name__}" in message


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.Dense(4, name="small"), (3,)),
        (layers.Embedding(7, 4, name="small"), (5,)),
        (layers.EinsumDense("ab,bc->ac", 4, name="small"), (3,)),
    ],
)
def test_packed_names_refuse_quantized_layers(layer, shape):
    layer = _built(layer, *shape)
    layer.quantize("int8")
    message = _error(layer)
    assert "quantized" in message
    assert f"of type {type(layer).__name__}" in message


def test_subclasses_inherit_what_is_packed():
    class Grandchild(OwnDense):
        pass

    assert registry.packed_names(_built(Grandchild(2), 3)) == ("kernel",)


def test_subclasses_may_be_registered_themselves():
    registry.register_layer(OwnDense, packed=())
    assert registry.packed_names(_built(OwnDense(2), 3)) == ()
    assert registry.packed_names(_built(layers.Dense(2), 3)) == ("kernel",)


def test_register_layer_makes_a_layer_known():
    layer = _built(Table(), 3)
    _error(layer)
    registry.register_layer(Table, packed=["table"])
    assert registry.packed_names(layer) == ("table",)


def test_register_layer_makes_a_layer_around_others_known():
    registry.register_layer(Nested, packed=iter(()))
    layer = _built(Nested(layers.Dense(2)), 3)
    assert registry.packed_names(layer) == ()
    assert registry.packed_names(layer) == ()


@pytest.mark.parametrize(
    "cls",
    [
        layers.Dense(2),
        "Dense",
        None,
        int,
        np.ndarray,
        keras.initializers.Initializer,
        lambda inputs: inputs,
    ],
)
def test_register_layer_refuses_what_is_no_layer_class(cls):
    before = dict(registry._PACKED)
    with pytest.raises(ArgumentError, match="subclass") as info:
        registry.register_layer(cls, packed=("kernel",))
    assert f"Received: cls={cls!r}" in str(info.value)
    assert registry._PACKED == before


def test_register_layer_refuses_a_string():
    with pytest.raises(ArgumentError, match="tuple") as info:
        registry.register_layer(Table, packed="table")
    assert "Received: packed='table'" in str(info.value)
    assert Table not in registry._PACKED


def test_register_layer_refuses_a_second_registration():
    registry.register_layer(Table, packed=("table",))
    with pytest.raises(ArgumentError, match="registered once") as info:
        registry.register_layer(Table, packed=())
    message = str(info.value)
    assert "Received: cls=Table" in message
    assert "packed=('table',)" in message
    assert registry._PACKED[Table] == ("table",)


def test_register_layer_refuses_layers_known_from_the_start():
    with pytest.raises(ArgumentError, match="Received: cls=Dense"):
        registry.register_layer(layers.Dense, packed=())


@pytest.mark.parametrize("packed", [None, 3, (1,), (None,)])
def test_register_layer_refuses_what_are_no_names(packed):
    with pytest.raises(ArgumentError, match="Received: packed="):
        registry.register_layer(Table, packed=packed)
