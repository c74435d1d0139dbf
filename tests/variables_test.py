import keras
import numpy as np
import pytest

from packnet_tf import variables

L = keras.layers


class Unnamed(L.Layer):
    """Variables without names, in attributes, a list and a dict."""

    def build(self, input_shape):
        size = input_shape[-1]
        self.table = self.add_weight(shape=(size, 2))
        self._shift = self.add_weight(shape=(2,))
        self.scales = [self.add_weight(shape=()) for _ in range(2)]
        self.by_name = {"low": self.add_weight(shape=(1,))}

    def call(self, inputs):
        x = inputs @ self.table + self._shift
        return x * self.scales[0] * self.scales[1] + self.by_name["low"]


class Named(L.Layer):
    """Two variables of the same given name."""

    def build(self, input_shape):
        self.first = self.add_weight(shape=(1,), name="scale")
        self.second = self.add_weight(shape=(1,), name="scale")

    def call(self, inputs):
        return inputs * self.first + self.second


class Composite(L.Layer):
    """Sublayers in attributes, a list, a dict and a list of lists."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = L.BatchNormalization()
        self.alias = self.norm
        self._hidden = L.Dense(4)
        self.blocks = [L.Dense(4), Unnamed()]
        self.branches = {"left": L.Dense(2), "right": L.Dense(2)}
        self.grid = [[L.Dense(2)], [L.Dense(2), L.Dropout(0.5)]]
        self.inner = keras.Sequential([L.Dense(2), L.Dense(2, name="last")])

    def call(self, inputs):
        x = self.norm(self._hidden(inputs))
        for block in self.blocks:
            x = block(x)
        x = self.branches["left"](x) + self.branches["right"](x)
        x = self.grid[1][1](self.grid[1][0](self.grid[0][0](x)))
        return self.inner(x)


class Own(keras.Model):
    """A subclassed model around all of the above."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.composite = Composite()
        self.top = Unnamed()

    def call(self, inputs):
        return self.top(self.composite(inputs))


class OwnGraph(keras.Model):
    """A Functional model with a call of its own."""

    def __init__(self, **kwargs):
        inputs = keras.Input((3,))
        x = L.Dense(4)(inputs)
        super().__init__(inputs, L.Dense(2, name="top")(x), **kwargs)

    def call(self, inputs):
        return super().call(inputs) * 2.0


OF_UNNAMED = ["table", "shift", "scales/0", "scales/1", "by_name/low"]
OF_DENSE = ["kernel", "bias"]
OF_COMPOSITE = [
    *(f"norm/{n}" for n in ("gamma", "beta", "moving_mean", "moving_variance")),
    *(f"hidden/{n}" for n in OF_DENSE),
    *(f"blocks/0/{n}" for n in OF_DENSE),
    *(f"blocks/1/{n}" for n in OF_UNNAMED),
    *(f"branches/left/{n}" for n in OF_DENSE),
    *(f"branches/right/{n}" for n in OF_DENSE),
    *(f"grid/0/0/{n}" for n in OF_DENSE),
    *(f"grid/1/0/{n}" for n in OF_DENSE),
    "grid/1/1/seed_generator_state",
    *(f"inner/dense/{n}" for n in OF_DENSE),
    *(f"inner/last/{n}" for n in OF_DENSE),
]
CASES = {
    "unnamed": (Unnamed, OF_UNNAMED),
    "named": (Named, ["scale", "scale_1"]),
    "composite": (Composite, OF_COMPOSITE),
    "own_model": (
        Own,
        [
            *(f"composite/{name}" for name in OF_COMPOSITE),
            *(f"top/{name}" for name in OF_UNNAMED),
        ],
    ),
    "own_graph": (
        OwnGraph,
        [*(f"dense/{n}" for n in OF_DENSE), *(f"top/{n}" for n in OF_DENSE)],
    ),
    "lstm": (
        lambda: L.LSTM(2),
        [
            "cell/kernel",
            "cell/recurrent_kernel",
            "cell/bias",
            "cell/seed_generator_state",
        ],
    ),
    "time_distributed": (
        lambda: L.TimeDistributed(L.Dense(2)),
        ["layer/kernel", "layer/bias"],
    ),
}


def _built(make):
    layer = make()
    is_series = isinstance(layer, (L.LSTM, L.TimeDistributed))
    layer(np.ones((2, 4, 3) if is_series else (2, 3), "float32"))
    return layer


def _names(layer):
    return [name for name, _ in variables.walk(layer)]


@pytest.mark.parametrize("case", CASES)
def test_walk_names_by_attribute(case):
    make, expected = CASES[case]
    layer = _built(make)
    assert sorted(_names(layer)) == sorted(expected)


@pytest.mark.parametrize("case", CASES)
def test_walk_names_every_instance_alike(case):
    make, _ = CASES[case]
    first = _built(make)
    for _ in range(3):  # Moves all of Keras' counters on.
        _built(CASES["composite"][0])
    second = _built(make)
    assert _names(first) == _names(second)
    for (name, one), (_, other) in zip(
        variables.walk(first), variables.walk(second)
    ):
        assert one.shape == other.shape, name
        assert one is not other


@pytest.mark.parametrize("case", CASES)
def test_walk_yields_every_variable_once(case):
    layer = _built(CASES[case][0])
    found = list(variables.walk(layer))
    assert {id(v) for _, v in found} == {id(v) for v in layer.variables}
    assert len(found) == len(layer.variables)
    assert len(set(_names(layer))) == len(found)


def test_names_are_those_after_loading(tmp_path):
    inputs = keras.Input((3,))
    model = keras.Model(inputs, L.Dense(2)(L.Dense(4)(inputs)))
    wrapped = keras.Sequential([keras.Input((5, 3)), L.TimeDistributed(model)])
    wrapped.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert _names(wrapped.layers[0]) == _names(loaded.layers[0])


def test_walk_names_a_layer_under_two_attributes_by_the_first():
    layer = _built(Composite)
    names = [name for name, v in variables.walk(layer) if v is layer.norm.gamma]
    assert layer.alias is layer.norm
    assert names == ["norm/gamma"]


def test_walk_names_a_layer_that_two_sublayers_hold_once():
    shared = L.Dense(3)

    class Holder(L.Layer):
        def __init__(self):
            super().__init__()
            self.inner = shared

        def call(self, inputs):
            return self.inner(inputs)

    class Both(L.Layer):
        def __init__(self):
            super().__init__()
            self.first, self.second = Holder(), Holder()

        def call(self, inputs):
            return self.second(self.first(inputs))

    assert _names(_built(Both)) == ["first/inner/kernel", "first/inner/bias"]


def test_walk_adds_the_prefix():
    layer = _built(lambda: L.Dense(2))
    names = [name for name, _ in variables.walk(layer, "stem/dense/")]
    assert names == ["stem/dense/kernel", "stem/dense/bias"]


def test_own_leaves_sublayers_out():
    layer = _built(Composite)
    assert variables.own(layer) == []
    assert [name for name, _ in variables.own(layer.norm)] == [
        "gamma",
        "beta",
        "moving_mean",
        "moving_variance",
    ]


def test_sublayers_are_those_directly_held():
    layer = _built(Composite)
    named = dict(variables.sublayers(layer))
    assert list(named) == [
        "norm",
        "hidden",
        "blocks/0",
        "blocks/1",
        "branches/left",
        "branches/right",
        "grid/0/0",
        "grid/1/0",
        "grid/1/1",
        "inner",
    ]
    assert named["norm"] is layer.norm
    assert named["grid/1/0"] is layer.grid[1][0]


def test_sublayers_of_a_graph_bear_their_own_names():
    model = keras.Sequential(
        [
            keras.Input((3,)),
            L.Dense(3, name="stem_1"),
            L.Dense(3),
            L.Dense(3),
        ]
    )
    assert [
        name for name, layer in variables.sublayers(model) if layer.variables
    ] == ["stem_1", "dense", "dense_1"]


def test_is_seed_tells_random_state_from_the_rest():
    layer = _built(Composite)
    seeds = [n for n, v in variables.walk(layer) if variables.is_seed(v)]
    assert seeds == ["grid/1/1/seed_generator_state"]


def test_is_seed_is_not_fooled_by_a_trainable_variable():
    class Odd(L.Layer):
        def build(self, input_shape):
            self.weight = self.add_weight(
                shape=(1,), name="seed_generator_state"
            )

        def call(self, inputs):
            return inputs * self.weight

    assert not variables.is_seed(_built(Odd).weight)
