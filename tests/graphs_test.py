import keras
import numpy as np
import pytest

from packnet_tf import graphs

L = keras.layers


class OwnSequential(keras.Sequential):
    """A Sequential model under another name."""


class OwnCall(keras.Sequential):
    """A Sequential model with a call of its own."""

    def call(self, inputs, training=None, mask=None):
        return super().call(inputs, training=training) + 1.0


class OwnGraph(keras.Model):
    """A Functional model under another name."""

    def __init__(self):
        inputs = keras.Input((3,))
        super().__init__(inputs, L.Dense(2)(inputs))


class OwnGraphAndCall(OwnGraph):
    """A Functional model with a call of its own."""

    def call(self, inputs, training=None, mask=None):
        return super().call(inputs) + 1.0


class Subclassed(keras.Model):
    def call(self, inputs):
        return inputs


def functional():
    inputs = keras.Input((3,), name="x")
    return keras.Model(inputs, L.Dense(2, name="d")(inputs), name="graph")


def sequential(*layers, **kwargs):
    return keras.Sequential([keras.Input((3,)), *layers], **kwargs)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (functional, True),
        (lambda: sequential(L.Dense(2)), True),
        (keras.Sequential, True),
        (OwnSequential, True),
        (OwnGraph, True),
        (OwnCall, False),
        (OwnGraphAndCall, False),
        (Subclassed, False),
        (lambda: L.Dense(2), False),
        (lambda: L.TimeDistributed(L.Dense(2)), False),
        (lambda: keras.ops.add, False),
        (lambda: None, False),
    ],
)
def test_is_graph(make, expected):
    assert graphs.is_graph(make()) is expected


@pytest.mark.parametrize(
    "make",
    [
        functional,
        OwnGraph,
        lambda: sequential(L.Dense(2), L.ReLU()),
        lambda: sequential(sequential(L.Dense(2)), L.ReLU()),
    ],
)
def test_as_graph_shares_layers_and_computes_the_same(make):
    model = make()
    model.compile("sgd", "mse")
    graph = graphs.as_graph(model)
    assert type(graph) is type(functional())
    assert not graph.compiled
    assert graph.name == model.name
    assert graphs.as_graph(model, "other").name == "other"
    assert {id(v) for v in graph.variables} == {id(v) for v in model.variables}
    x = np.random.default_rng(0).normal(size=(2, 3)).astype("float32")
    np.testing.assert_array_equal(graph(x), model(x))


def test_as_graph_of_a_sequential_model_ignores_where_it_is_nested():
    inner = sequential(L.Dense(3), name="inner")
    inputs = keras.Input((3,))
    keras.Model(inputs, inner(L.Dense(3)(inputs)))
    names = [layer.name for layer in graphs.as_graph(inner).layers[1:]]
    assert names == [layer.name for layer in inner.layers]


def test_as_graph_keeps_the_structure_of_inputs_and_outputs():
    inputs = {name: keras.Input((3,), name=name) for name in "ab"}
    outputs = [inputs["a"] + 1.0, L.Dense(2)(inputs["b"])]
    graph = graphs.as_graph(keras.Model(inputs, outputs))
    assert set(graph.input) == {"a", "b"}
    assert len(graph.output) == 2


def test_walk_layers_names_by_nesting_and_yields_once():
    shared = L.Dense(3, name="shared")
    norm = L.BatchNormalization(name="norm")
    deep = sequential(L.ReLU(name="relu"), norm, name="deep")
    inner = sequential(L.Dense(3, name="d"), deep, name="inner")
    time = OwnCall([L.Dense(3, name="hidden")], name="opaque")
    inputs = keras.Input((3,), name="x")
    x = shared(inner(shared(inputs)))
    x = inner(x) + time(x)
    model = keras.Model(inputs, x)
    walked = list(graphs.walk_layers(model))
    names = [name for name, _ in walked if "input" not in name]
    assert sorted(names) == sorted(
        [
            "x",
            "shared",
            "inner/d",
            "inner/deep/relu",
            "inner/deep/norm",
            "opaque",
        ]
    )
    layers = dict(walked)
    assert layers["inner/deep/norm"] is norm
    assert layers["opaque"] is time
    assert len({id(layer) for _, layer in walked}) == len(walked)


def test_walk_layers_yields_a_layer_of_two_models_once():
    shared = L.Dense(3, name="shared")
    inner = sequential(shared, name="inner")
    inputs = keras.Input((3,), name="x")
    model = keras.Model(inputs, inner(shared(inputs)))
    found = [n for n, layer in graphs.walk_layers(model) if layer is shared]
    assert found == ["shared"]


def test_walk_layers_adds_the_prefix():
    names = [name for name, _ in graphs.walk_layers(functional(), "stem/")]
    assert names == ["stem/x", "stem/d"]
