"""A small network around each layer class, for the conformance matrix."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np

L = keras.layers


@dataclasses.dataclass(frozen=True)
class Case:
    """How to make a network around a layer, and what goes in.

    Attributes:
        make: Returns the layers that follow the input, or takes the symbolic
            input and returns the symbolic output.
        shape: Shape of one input, without the batch.
        packed: Names of the packed weights, by suffix.
        vocabulary: Number of tokens, if the input is of integers.
    """

    make: Callable
    shape: tuple
    packed: tuple
    vocabulary: int = 0


def attend(layer):
    return lambda x: layer(x, x)


def mixed_attention(x):
    queries = L.Dense(6, name="queries")(x)
    return L.MultiHeadAttention(2, 3, name="mha")(
        query=queries, value=x, use_causal_mask=True
    )


def embedded_lstm(x):
    x = L.Embedding(7, 4, mask_zero=True, name="embedding")(x)
    return L.LSTM(5, name="lstm")(x)


def reversible(x):
    layer = L.ReversibleEmbedding(7, 4, name="embedding")
    return layer(layer(x), reverse=True)


def with_initial_state(x):
    state = L.Dense(4, name="state")(L.GlobalAveragePooling1D()(x))
    return L.GRU(4, name="gru")(x, initial_state=state)


def follow(*layers):
    def call(x):
        for layer in layers:
            x = layer(x)
        return x

    return call


KERNEL = ("kernel",)
SEPARABLE = ("depthwise_kernel", "pointwise_kernel")
CELL = ("cell/kernel", "cell/recurrent_kernel")
ATTENTION = tuple(
    f"{name}_dense/kernel" for name in ("query", "key", "value", "output")
)
FLAT, SERIES, IMAGE, VOLUME = (6,), (5, 4), (6, 6, 3), (4, 4, 4, 2)


def dense_then(layer, shape=FLAT):
    return Case(
        lambda: follow(L.Dense(6, name="first"), layer()), shape, KERNEL
    )


CASES = {
    "Dense": Case(lambda: L.Dense(5), FLAT, KERNEL),
    "EinsumDense": Case(
        lambda: L.EinsumDense("abc,cd->abd", (None, 5), bias_axes="d"),
        SERIES,
        KERNEL,
    ),
    "Embedding": Case(lambda: L.Embedding(7, 4), (5,), ("embeddings",), 7),
    "ReversibleEmbedding": Case(lambda: reversible, (5,), ("embeddings",), 7),
    "Conv1D": Case(lambda: L.Conv1D(4, 3), SERIES, KERNEL),
    "Conv2D": Case(lambda: L.Conv2D(4, 3), IMAGE, KERNEL),
    "Conv2D_in_groups": Case(
        lambda: follow(L.Conv2D(4, 1, name="first"), L.Conv2D(4, 3, groups=2)),
        IMAGE,
        ("first/kernel", "kernel"),
    ),
    "Conv3D": Case(lambda: L.Conv3D(3, 2), VOLUME, KERNEL),
    "Conv1DTranspose": Case(lambda: L.Conv1DTranspose(4, 3), SERIES, KERNEL),
    "Conv2DTranspose": Case(
        lambda: L.Conv2DTranspose(4, 3, strides=2), IMAGE, KERNEL
    ),
    "Conv3DTranspose": Case(lambda: L.Conv3DTranspose(3, 2), VOLUME, KERNEL),
    "DepthwiseConv1D": Case(lambda: L.DepthwiseConv1D(3), SERIES, KERNEL),
    "DepthwiseConv2D": Case(lambda: L.DepthwiseConv2D(3), IMAGE, KERNEL),
    "SeparableConv1D": Case(lambda: L.SeparableConv1D(4, 3), SERIES, SEPARABLE),
    "SeparableConv2D": Case(lambda: L.SeparableConv2D(4, 3), IMAGE, SEPARABLE),
    "SimpleRNN": Case(lambda: L.SimpleRNN(4), SERIES, CELL),
    "GRU": Case(lambda: L.GRU(4), SERIES, CELL),
    "GRU_with_initial_state": Case(
        lambda: with_initial_state, SERIES, (*CELL, "state/kernel")
    ),
    "LSTM": Case(lambda: L.LSTM(4, return_sequences=True), SERIES, CELL),
    "LSTM_with_mask": Case(
        lambda: embedded_lstm, (5,), (*CELL, "embeddings"), 7
    ),
    "RNN": Case(
        lambda: L.RNN(L.StackedRNNCells([L.LSTMCell(3), L.GRUCell(4)])),
        SERIES,
        (
            "cell/cells/0/kernel",
            "cell/cells/0/recurrent_kernel",
            "cell/cells/1/kernel",
            "cell/cells/1/recurrent_kernel",
        ),
    ),
    "SimpleRNNCell": Case(lambda: L.RNN(L.SimpleRNNCell(3)), SERIES, CELL),
    "ConvLSTM1D": Case(lambda: L.ConvLSTM1D(3, 2), (3, 5, 2), CELL),
    "ConvLSTM2D": Case(lambda: L.ConvLSTM2D(3, 2), (3, 5, 5, 2), CELL),
    "ConvLSTM3D": Case(lambda: L.ConvLSTM3D(2, 2), (2, 4, 4, 4, 2), CELL),
    "Bidirectional": Case(
        lambda: L.Bidirectional(L.LSTM(3)),
        SERIES,
        tuple(
            f"{way}_layer/{n}" for way in ("forward", "backward") for n in CELL
        ),
    ),
    "TimeDistributed": Case(
        lambda: L.TimeDistributed(L.Conv1D(4, 2)), (3, 5, 2), ("layer/kernel",)
    ),
    "MultiHeadAttention": Case(
        lambda: mixed_attention, SERIES, (*ATTENTION, "queries/kernel")
    ),
    "GroupQueryAttention": Case(
        lambda: attend(L.GroupQueryAttention(3, 4, 2)), SERIES, ATTENTION
    ),
    "Attention": Case(
        lambda: follow(L.Dense(6), attend_pair(L.Attention(use_scale=True))),
        SERIES,
        KERNEL,
    ),
    "AdditiveAttention": Case(
        lambda: follow(L.Dense(6), attend_pair(L.AdditiveAttention())),
        SERIES,
        KERNEL,
    ),
    "BatchNormalization": dense_then(
        lambda: L.BatchNormalization(momentum=0.5)
    ),
    "LayerNormalization": dense_then(lambda: L.LayerNormalization()),
    "GroupNormalization": dense_then(lambda: L.GroupNormalization(3), IMAGE),
    "RMSNormalization": dense_then(lambda: L.RMSNormalization()),
    "UnitNormalization": dense_then(lambda: L.UnitNormalization()),
    "SpectralNormalization": dense_then(
        lambda: L.SpectralNormalization(L.Conv2D(4, 3)), IMAGE
    ),
    "PReLU": dense_then(lambda: L.PReLU()),
    "Normalization": Case(
        lambda: follow(
            L.Normalization(mean=[1.0] * 6, variance=[2.0] * 6), L.Dense(5)
        ),
        FLAT,
        KERNEL,
    ),
}

if not hasattr(L, "ReversibleEmbedding"):  # Before Keras 3.13.
    del CASES["ReversibleEmbedding"]


def attend_pair(layer):
    return lambda x: layer([x, x])


def build(name):
    """Returns the network of a case, its weights random."""
    case = CASES[name]
    inputs = keras.Input(
        case.shape, dtype="int32" if case.vocabulary else None, name="x"
    )
    x = case.make()(inputs)
    if len(x.shape) > 2:
        x = L.Flatten()(x)
    model = keras.Model(inputs, x, name=name.lower())
    generator = np.random.default_rng(2)
    for variable in model.trainable_variables:
        variable.assign(generator.normal(size=variable.shape) / 2)
    return model


def batch(name, size=6):
    """Returns inputs of a case and labels of three classes."""
    case = CASES[name]
    generator = np.random.default_rng(1)
    if case.vocabulary:
        x = generator.integers(0, case.vocabulary, (size, *case.shape))
        x = x.astype("int32")
    else:
        x = generator.normal(size=(size, *case.shape)).astype("float32")
    return x, np.arange(size) % 3
