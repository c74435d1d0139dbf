import keras
import numpy as np
import pytest
from keras import layers

from packnet_tf import registry
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import PackNetError
from packnet_tf.errors import UnsupportedLayerError
from packnet_tf.registry import Kind

W, B, N, S = Kind.WEIGHT, Kind.BIAS, Kind.NORMALIZATION, Kind.STATE
SEED = Kind.SEED


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """Registers into a copy, so that no test sees the layers of another."""
    monkeypatch.setattr(registry, "_REGISTERED", {})


class Table(layers.Layer):
    """An unknown layer with a matrix, a vector, a scalar and a state."""

    def build(self, input_shape):
        size = input_shape[-1]
        self.table = self.add_weight(shape=(size, 3))
        self.shift = self.add_weight(shape=(3,), name="shift")
        self.gain = self.add_weight(shape=())
        self.seen = self.add_weight(shape=(2, 2), trainable=False)

    def call(self, inputs):
        return inputs @ self.table * self.gain + self.shift


class Scale(layers.Layer):
    """An unknown layer with a vector."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(input_shape[-1],), name="scale")

    def call(self, inputs):
        return inputs * self.scale


class Nested(layers.Layer):
    """An unknown layer around others, with a matrix of its own."""

    def __init__(self, *inner, **kwargs):
        super().__init__(**kwargs)
        self.inner = list(inner)

    def build(self, input_shape):
        size = input_shape[-1]
        self.mixing = self.add_weight(shape=(size, size))
        for layer in self.inner:
            if not layer.built:
                layer.build(input_shape)

    def call(self, inputs):
        x = inputs @ self.mixing
        for layer in self.inner:
            x = layer(x)
        return x


class OwnDense(layers.Dense):
    """A subclass of a known layer, with a matrix more."""

    def build(self, input_shape):
        super().build(input_shape)
        self.extra = self.add_weight(shape=(2, 2), name="extra")


class OwnNorm(layers.LayerNormalization):
    """A subclass of a normalization layer, with a matrix more."""

    def build(self, input_shape):
        super().build(input_shape)
        self.extra = self.add_weight(shape=(2, 2), name="extra")


def _built(layer, *shape):
    layer.build((None, *shape))
    return layer


def _kinds(layer):
    return {part.name: part.kind for part in registry.classify(layer)}


def _reasons(layer):
    return {part.name: part.reason for part in registry.classify(layer)}


def _error(layer):
    with pytest.raises(UnsupportedLayerError) as info:
        registry.classify(layer)
    assert isinstance(info.value, PackNetError)
    assert isinstance(info.value, TypeError)
    message = str(info.value)
    assert "Received: " in message
    return message


DENSE = {"kernel": W, "bias": B}
SEPARABLE = {"depthwise_kernel": W, "pointwise_kernel": W, "bias": B}
CELL = {
    "cell/kernel": W,
    "cell/recurrent_kernel": W,
    "cell/bias": B,
    "cell/seed_generator_state": SEED,
}
PAIR = [(None, 4, 6), (None, 4, 6)]
KNOWN = {
    "Dense": (lambda: layers.Dense(4), (3,), DENSE),
    "Dense_without_bias": (
        lambda: layers.Dense(4, use_bias=False),
        (3,),
        {"kernel": W},
    ),
    "EinsumDense": (
        lambda: layers.EinsumDense(
            "abc,cde->abde", (None, 2, 3), bias_axes="de"
        ),
        (4, 3),
        DENSE,
    ),
    "Embedding": (lambda: layers.Embedding(7, 2), (5,), {"embeddings": W}),
    "ReversibleEmbedding": (
        lambda: layers.ReversibleEmbedding(7, 4, tie_weights=False),
        (5,),
        {"embeddings": W, "reverse_embeddings": W},
    ),
    "Conv1D": (lambda: layers.Conv1D(2, 3), (8, 3), DENSE),
    "Conv2D": (lambda: layers.Conv2D(2, 3), (8, 8, 3), DENSE),
    "Conv3D": (lambda: layers.Conv3D(2, 3), (8, 8, 8, 3), DENSE),
    "Conv1DTranspose": (lambda: layers.Conv1DTranspose(2, 3), (8, 3), DENSE),
    "Conv2DTranspose": (lambda: layers.Conv2DTranspose(2, 3), (8, 8, 3), DENSE),
    "Conv3DTranspose": (
        lambda: layers.Conv3DTranspose(2, 3),
        (8, 8, 8, 3),
        DENSE,
    ),
    "DepthwiseConv1D": (lambda: layers.DepthwiseConv1D(3), (8, 3), DENSE),
    "DepthwiseConv2D": (lambda: layers.DepthwiseConv2D(3), (8, 8, 3), DENSE),
    "SeparableConv1D": (
        lambda: layers.SeparableConv1D(2, 3),
        (8, 3),
        SEPARABLE,
    ),
    "SeparableConv2D": (
        lambda: layers.SeparableConv2D(2, 3),
        (8, 8, 3),
        SEPARABLE,
    ),
    "SimpleRNN": (lambda: layers.SimpleRNN(3), (4, 2), CELL),
    "GRU": (lambda: layers.GRU(3), (4, 2), CELL),
    "LSTM": (lambda: layers.LSTM(3), (4, 2), CELL),
    "ConvLSTM2D": (lambda: layers.ConvLSTM2D(2, 2), (3, 5, 5, 2), CELL),
    "Bidirectional": (
        lambda: layers.Bidirectional(layers.GRU(3)),
        (4, 2),
        {
            f"{way}_layer/{name}": kind
            for way in ("forward", "backward")
            for name, kind in CELL.items()
        },
    ),
    "TimeDistributed": (
        lambda: layers.TimeDistributed(layers.Dense(2)),
        (3, 2),
        {"layer/kernel": W, "layer/bias": B},
    ),
    "BatchNormalization": (
        lambda: layers.BatchNormalization(),
        (3,),
        dict.fromkeys(("gamma", "beta", "moving_mean", "moving_variance"), N),
    ),
    "LayerNormalization_of_matrices": (
        lambda: layers.LayerNormalization(axis=(1, 2)),
        (8, 3),
        {"gamma": N, "beta": N},
    ),
    "GroupNormalization": (
        lambda: layers.GroupNormalization(1),
        (8, 3),
        {"gamma": N, "beta": N},
    ),
    "RMSNormalization": (lambda: layers.RMSNormalization(), (3,), {"scale": N}),
    "Normalization": (
        lambda: layers.Normalization(),
        (3,),
        {"mean": S, "variance": S, "count": S},
    ),
    "SpectralNormalization": (
        lambda: layers.SpectralNormalization(layers.Conv2D(2, 3)),
        (8, 8, 3),
        {"vector_u": S, "layer/kernel": S, "layer/bias": S},
    ),
    "PReLU": (lambda: layers.PReLU(), (4,), {"alpha": B}),
    "Dropout": (
        lambda: layers.Dropout(0.5),
        (3,),
        {"seed_generator_state": SEED},
    ),
}
NEWER = {"ReversibleEmbedding"}  # Since Keras 3.13.


@pytest.mark.parametrize("name", KNOWN)
def test_classify_knows_the_layers_of_keras(name):
    make, shape, expected = KNOWN[name]
    if name in NEWER and not hasattr(layers, name):
        pytest.skip("this Keras has no such layer")
    assert _kinds(_built(make(), *shape)) == expected


@pytest.mark.parametrize(
    "layer",
    [
        layers.MultiHeadAttention(2, 3),
        layers.GroupQueryAttention(3, 4, 2),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_classify_takes_attention_biases_of_rank_2_for_biases(layer):
    layer.build(*PAIR)
    parts = {part.name: part for part in registry.classify(layer)}
    assert len(parts["query_dense/bias"].variable.shape) == 2
    for name, part in parts.items():
        assert part.kind is (W if name.endswith("kernel") else B), name


def test_classify_takes_the_bias_of_a_gru_for_a_bias():
    parts = registry.classify(_built(layers.GRU(3), 4, 2))
    bias = next(part for part in parts if part.name == "cell/bias")
    assert len(bias.variable.shape) == 2
    assert bias.kind is B
    assert bias.reason == "bias of GRUCell"
    assert isinstance(bias.layer, layers.GRUCell)


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (layers.Dense(2), (3,), {"bias": "bias of Dense"}),
        (OwnDense(2), (3,), {"kernel": "kernel of Dense"}),
        (
            layers.BatchNormalization(),
            (3,),
            {"moving_mean": "moving_mean of BatchNormalization"},
        ),
        (
            layers.Normalization(),
            (3,),
            {"mean": "state that no gradient trains"},
        ),
        (
            layers.SpectralNormalization(layers.Dense(2)),
            (3,),
            {"layer/kernel": "its layer rescales it in every training step"},
        ),
        (
            layers.Dropout(0.5),
            (3,),
            {"seed_generator_state": "draws random numbers"},
        ),
        (
            Table(),
            (3,),
            {
                "table": "trainable, of rank 2 or more",
                "shift": "trainable, of rank 0 or 1",
                "gain": "trainable, of rank 0 or 1",
                "seen": "state that no gradient trains",
            },
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_classify_says_why(layer, shape, expected):
    reasons = _reasons(_built(layer, *shape))
    assert {name: reasons[name] for name in expected} == expected


@pytest.mark.parametrize(
    "layer",
    [
        layers.ReLU(),
        layers.Activation("tanh"),
        layers.Flatten(),
        layers.MaxPooling2D(),
        layers.ZeroPadding2D(),
        layers.Concatenate(),
        layers.Lambda(lambda x: x + 1),
        layers.StringLookup(vocabulary=["a", "b"]),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_classify_finds_nothing_in_layers_without_variables(layer):
    assert registry.classify(layer) == []


def test_classify_goes_by_rank_where_a_layer_is_unknown():
    layer = _built(Table(), 3)
    assert _kinds(layer) == {"table": W, "shift": B, "gain": B, "seen": S}
    assert all(part.layer is layer for part in registry.classify(layer))


def test_classify_gives_the_same_for_a_layer_that_is_frozen():
    layer = _built(Nested(layers.Dense(2), layers.BatchNormalization()), 3)
    before = _kinds(layer)
    layer.trainable = False
    assert _kinds(layer) == before
    for variable in layer.variables:
        variable.trainable = False
    assert _kinds(layer) == before


def test_classify_takes_sublayers_by_their_class():
    inner = layers.Dense(3), layers.BatchNormalization(), layers.Dropout(0.5)
    layer = _built(Nested(*inner, Scale()), 3)
    assert _kinds(layer) == {
        "mixing": W,
        "inner/0/kernel": W,
        "inner/0/bias": B,
        "inner/1/gamma": N,
        "inner/1/beta": N,
        "inner/1/moving_mean": N,
        "inner/1/moving_variance": N,
        "inner/2/seed_generator_state": SEED,
        "inner/3/scale": B,
    }
    holders = {part.name: part.layer for part in registry.classify(layer)}
    assert holders["inner/1/gamma"] is inner[1]
    assert holders["mixing"] is layer


def test_classify_lists_a_variable_of_two_sublayers_once():
    shared = layers.Dense(3)
    layer = _built(Nested(Nested(shared), Nested(shared)), 3)
    assert list(_kinds(layer)) == [
        "mixing",
        "inner/0/mixing",
        "inner/0/inner/0/kernel",
        "inner/0/inner/0/bias",
        "inner/1/mixing",
    ]


def _alter(layer, how):
    if how == "LoRA":
        layer.enable_lora(1)
    else:
        layer.quantize("int8")


@pytest.mark.parametrize("how", ["LoRA", "quantized"])
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: layers.Dense(4, name="changed"), (3,)),
        (lambda: layers.Embedding(7, 4, name="changed"), (5,)),
        (lambda: layers.EinsumDense("ab,bc->ac", 4, name="changed"), (3,)),
    ],
)
def test_classify_refuses_lora_and_quantized_layers(make, shape, how):
    layer = _built(make(), *shape)
    _alter(layer, how)
    message = _error(layer)
    assert "Layer 'changed' cannot be protected" in message
    assert how in message
    assert f"of type {type(layer).__name__}" in message


def test_classify_refuses_lora_on_a_subclass():
    layer = _built(OwnDense(4, name="changed"), 3)
    layer.enable_lora(1)
    assert "of type OwnDense" in _error(layer)


@pytest.mark.parametrize("how", ["LoRA", "quantized"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: Nested(Nested(inner)),
        layers.TimeDistributed,
        layers.SpectralNormalization,
    ],
)
def test_classify_refuses_altered_sublayers(wrap, how):
    inner = layers.Dense(3, name="changed")
    layer = wrap(inner)
    is_series = isinstance(layer, layers.TimeDistributed)
    layer = _built(layer, *((2, 3) if is_series else (3,)))
    _alter(inner, how)
    assert "Layer 'changed' cannot be protected" in _error(layer)


@pytest.mark.parametrize(
    ("layer", "data"),
    [
        (layers.StringLookup(name="words"), ["a", "b"]),
        (layers.TextVectorization(name="words"), ["a b", "c"]),
        (layers.IntegerLookup(name="words"), [1, 2]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_classify_refuses_an_adapted_vocabulary(layer, data):
    layer.adapt(np.array(data))
    message = _error(layer)
    assert "Layer 'words' cannot be protected" in message
    assert "vocabulary" in message


@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.LSTM(3, stateful=True, name="memory"),
        lambda: layers.GRU(3, stateful=True, name="memory"),
        lambda: layers.ConvLSTM1D(3, 1, stateful=True, name="memory"),
        lambda: layers.RNN(layers.LSTMCell(3), stateful=True, name="memory"),
        lambda: layers.Bidirectional(
            layers.LSTM(3, stateful=True, name="memory")
        ),
        lambda: Nested(layers.LSTM(3, stateful=True, name="memory")),
    ],
)
def test_classify_refuses_stateful_layers_wherever_they_are(make):
    layer = make()
    is_grid = isinstance(layer, layers.ConvLSTM1D)
    layer.build((2, 4, 3, 3) if is_grid else (2, 4, 3))
    message = _error(layer)
    assert "memory' cannot be protected" in message
    assert "stateful=False" in message


def test_subclasses_inherit_what_is_packed():
    class Grandchild(OwnDense):
        pass

    # What they add is no weight that the class of Keras is known for.
    assert _kinds(_built(Grandchild(2), 3)) == {**DENSE, "extra": B}


def test_subclasses_of_normalization_are_normalization():
    assert set(_kinds(_built(OwnNorm(), 3)).values()) == {N}


def test_register_layer_decides_for_the_whole_layer():
    registry.register_layer(Nested, packed=("inner/0/kernel",))
    layer = _built(Nested(layers.Dense(3), layers.Dropout(0.5)), 3)
    assert _kinds(layer) == {
        "mixing": S,
        "inner/0/kernel": W,
        "inner/0/bias": S,
        "inner/1/seed_generator_state": SEED,
    }
    reasons = _reasons(layer)
    assert reasons["inner/0/kernel"] == (
        "named by `register_layer(Nested, ...)`"
    )
    assert reasons["mixing"] == "not named by `register_layer(Nested, ...)`"


def test_register_layer_takes_names_that_are_attributes():
    registry.register_layer(layers.RNN, packed=("cell/recurrent_kernel",))
    assert _kinds(_built(layers.LSTM(3), 4, 2)) == {
        "cell/kernel": S,
        "cell/recurrent_kernel": W,
        "cell/bias": S,
        "cell/seed_generator_state": SEED,
    }
    registry.register_layer(Table, packed=["gain"])
    assert _kinds(_built(Table(), 3)) == {
        "table": S,
        "shift": S,
        "gain": W,
        "seen": S,
    }


def test_register_layer_may_pack_nothing():
    registry.register_layer(Nested, packed=iter(()))
    layer = _built(Nested(layers.Dense(3)), 3)
    assert set(_kinds(layer).values()) == {S}
    assert set(_kinds(layer).values()) == {S}


def test_register_layer_holds_for_sublayers_too():
    registry.register_layer(Scale, packed=("scale",))
    layer = _built(Nested(Scale(), layers.Dense(3)), 3)
    kinds = _kinds(layer)
    assert kinds["inner/0/scale"] is W
    assert kinds["mixing"] is W
    assert kinds["inner/1/bias"] is B


def test_register_layer_does_not_admit_altered_layers():
    registry.register_layer(Nested, packed=("mixing",))
    inner = layers.Dense(3, name="changed")
    layer = _built(Nested(inner), 3)
    inner.enable_lora(1)
    assert "Layer 'changed' cannot be protected" in _error(layer)


@pytest.mark.parametrize("name", ["tabel", "inner/kernel", "call"])
def test_classify_refuses_a_registered_name_that_is_not_there(name):
    registry.register_layer(Table, packed=(name,))
    message = _error(_built(Table(name="odd_one"), 3))
    assert "Layer 'odd_one' cannot be protected" in message
    assert repr(name) in message
    assert "'table'" in message


def test_register_layer_of_a_parent_covers_subclasses():
    class Child(Table):
        pass

    registry.register_layer(Table, packed=("gain",))
    assert _kinds(_built(Child(), 3))["gain"] is W
    registry.register_layer(Child, packed=("table",))
    assert _kinds(_built(Child(), 3))["gain"] is S
    assert _kinds(_built(Table(), 3))["gain"] is W


def test_subclasses_may_be_registered_themselves():
    registry.register_layer(OwnDense, packed=("extra",))
    assert _kinds(_built(OwnDense(2), 3)) == {
        "kernel": S,
        "bias": S,
        "extra": W,
    }
    assert _kinds(_built(layers.Dense(2), 3)) == DENSE


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
    with pytest.raises(ArgumentError, match="subclass") as info:
        registry.register_layer(cls, packed=("kernel",))
    assert f"Received: cls={cls!r}" in str(info.value)
    assert registry._REGISTERED == {}


def test_register_layer_refuses_a_string():
    with pytest.raises(ArgumentError, match="tuple") as info:
        registry.register_layer(Table, packed="table")
    assert "Received: packed='table'" in str(info.value)
    assert Table not in registry._REGISTERED


def test_register_layer_refuses_a_second_registration():
    registry.register_layer(Table, packed=("table",))
    with pytest.raises(ArgumentError, match="registered once") as info:
        registry.register_layer(Table, packed=())
    message = str(info.value)
    assert "Received: cls=Table" in message
    assert "packed=('table',)" in message
    assert registry._REGISTERED[Table] == ("table",)


@pytest.mark.parametrize(
    "cls", [layers.Dense, layers.LSTMCell, layers.BatchNormalization]
)
def test_register_layer_refuses_layers_known_from_the_start(cls):
    with pytest.raises(ArgumentError, match=f"Received: cls={cls.__name__}"):
        registry.register_layer(cls, packed=())


@pytest.mark.parametrize("packed", [None, 3, (1,), (None,)])
def test_register_layer_refuses_what_are_no_names(packed):
    with pytest.raises(ArgumentError, match="Received: packed="):
        registry.register_layer(Table, packed=packed)
