import keras
import numpy as np
import pytest

from packnet_tf import planning
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import UnsupportedLayerError

L = keras.layers


class Moving(L.Layer):
    """Keeps a moving average of its inputs."""

    def build(self, input_shape):
        size = input_shape[-1]
        self.kernel = self.add_weight(shape=(size, size), name="kernel")
        self.average = self.add_weight(
            shape=(size,), trainable=False, name="average"
        )

    def call(self, inputs, training=False):
        if training:
            self.average.assign(keras.ops.mean(inputs, axis=0))
        return (inputs - self.average) @ self.kernel


class Clipping(L.Layer):
    """Has no variable of its own; clips that of a sublayer in training."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = L.Dense(4)

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, inputs, training=False):
        if training:
            kernel = self.dense.kernel
            kernel.assign(keras.ops.clip(kernel, -1.0, 1.0))
        return self.dense(inputs)


class Gate(L.Layer):
    """Does nothing but draw random numbers in training."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dropout = L.Dropout(0.5)

    def call(self, inputs, training=False):
        return self.dropout(inputs, training=training)


class Counter(L.Layer):
    def build(self, input_shape):
        self.count = self.add_weight(shape=(), trainable=False, name="count")

    def call(self, inputs):
        self.count.assign_add(1.0)
        return inputs


def network(*layers):
    return keras.Sequential([keras.Input((4,)), *layers])


@pytest.fixture
def model():
    return network(
        L.Dense(4, name="first"),
        L.BatchNormalization(name="norm"),
        L.ReLU(name="relu"),
        L.Dropout(0.5, name="dropout"),
        Moving(name="moving"),
        L.SpectralNormalization(L.Dense(4), name="spectral"),
        network(L.Dense(4, name="deep")),
    )


def of_layer(model, name, plan):
    return plan.layers[id(model.get_layer(name))]


def by_name(model, plan):
    return {
        layer.name: plan.layers[id(layer)]
        for layer in model.layers
        if id(layer) in plan.layers
    }


def test_make_plans_every_layer_of_every_graph(model):
    plan = planning.make(model)
    deep = model.layers[-1].get_layer("deep")
    ids = {id(layer) for layer in [*model.layers[:-1], deep]}
    assert ids <= set(plan.layers)
    assert plan.layers[id(deep)].packed == ("kernel",)


def test_make_packs_weights_and_guards_what_may_assign(model):
    plans = by_name(model, planning.make(model))
    assert plans["first"] == planning.LayerPlan(("kernel",), (), False)
    assert plans["norm"] == planning.LayerPlan((), (), False)
    assert plans["moving"] == planning.LayerPlan(("kernel",), (), True)
    assert plans["spectral"] == planning.LayerPlan((), (), True)
    for name in ("relu", "dropout"):
        assert plans[name] == planning.LayerPlan((), (), False)


def test_make_wraps_only_where_there_is_something_to_do(model):
    plans = by_name(model, planning.make(model))
    wrapped = {name for name, of_layer in plans.items() if of_layer.is_wrapped}
    assert wrapped == {"first", "moving", "spectral"}
    plans = by_name(model, planning.make(model, normalization="per_task"))
    wrapped = {name for name, of_layer in plans.items() if of_layer.is_wrapped}
    assert wrapped == {"first", "norm", "moving", "spectral"}


def test_make_takes_each_choice_alone(model):
    plans = by_name(model, planning.make(model, biases="per_task"))
    assert plans["first"].per_task == ("bias",)
    assert plans["norm"].per_task == ()
    plans = by_name(model, planning.make(model, normalization="per_task"))
    assert plans["first"].per_task == ()
    assert plans["norm"].per_task == (
        "gamma",
        "beta",
        "moving_mean",
        "moving_variance",
    )
    assert plans["moving"].per_task == ()  # Its state is no normalization.
    assert plans["spectral"].per_task == ()


@pytest.mark.parametrize(
    ("filters", "packed"),
    [
        (None, {"first", "moving", "deep"}),
        ("^first$", {"first"}),
        ("first|dee", {"first", "deep"}),
        (lambda layer: isinstance(layer, L.Dense), {"first", "deep"}),
        (lambda layer: np.bool_(layer.name == "moving"), {"moving"}),
        (lambda layer: False, set()),
    ],
)
def test_filters_leave_weights_out(model, filters, packed):
    plan = planning.make(model, filters)
    plans = by_name(model, plan)
    plans["deep"] = plan.layers[id(model.layers[-1].get_layer("deep"))]
    assert {name for name, p in plans.items() if p.packed} == packed
    assert len(plan.left_out) == 3 - len(packed)
    assert set(plan.left_out.values()) <= {"left out by `filters`"}


def test_filters_see_sublayers_by_name():
    model = keras.Sequential(
        [
            keras.Input((3, 4)),
            L.Bidirectional(L.LSTM(2), name="both"),
            L.Dense(2, name="top"),
        ]
    )
    plan = planning.make(model, "both/forward")
    assert of_layer(model, "both", plan).packed == (
        "forward_layer/cell/kernel",
        "forward_layer/cell/recurrent_kernel",
    )
    assert sorted(plan.left_out) == [
        "both/backward_layer/cell/kernel",
        "both/backward_layer/cell/recurrent_kernel",
        "top/kernel",
    ]


def test_a_weight_that_is_assigned_in_training_is_left_out():
    model = network(Clipping(name="clipping"), L.Dense(4, name="top"))
    plan = planning.make(model, biases="per_task")
    assert plan.left_out == {
        "clipping/dense/kernel": "its layer assigns to it while it trains"
    }
    assert of_layer(model, "clipping", plan) == planning.LayerPlan(
        (), ("dense/bias",), True
    )


def test_random_state_alone_needs_no_guard():
    model = network(L.Dense(4), Gate(name="gate"))
    plan = planning.make(model)
    assert not of_layer(model, "gate", plan).is_wrapped


def test_what_is_not_trainable_is_left_out(model):
    model.get_layer("first").trainable = False
    model.get_layer("norm").trainable = False
    model.get_layer("moving").kernel.trainable = False
    plan = planning.make(model, None, "per_task", "per_task")
    assert plan.left_out == dict.fromkeys(
        [
            "first/kernel",
            "first/bias",
            "norm/gamma",
            "norm/beta",
            "norm/moving_mean",
            "norm/moving_variance",
            "moving/kernel",
        ],
        "it is not trainable",
    )


def test_a_model_that_is_not_trainable_has_nothing_to_pack(model):
    model.trainable = False
    plan = planning.make(model)
    assert not any(p.packed for p in plan.layers.values())


def test_make_changes_nothing(model):
    before = [v.numpy().tobytes() for v in model.variables]
    flags = [v.trainable for v in model.variables]
    planning.make(model, None, "per_task", "per_task")
    assert [v.numpy().tobytes() for v in model.variables] == before
    assert [v.trainable for v in model.variables] == flags


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"filters": "("}, "not a regular expression"),
        ({"filters": 3}, "Received: filters=3"),
        ({"biases": "shared"}, "Received: biases='shared'"),
        ({"normalization": None}, "Received: normalization=None"),
    ],
)
def test_make_refuses_other_arguments(model, arguments, said):
    with pytest.raises(ArgumentError, match=said):
        planning.make(model, **arguments)


def test_check_inference_names_the_layer_and_its_variable():
    model = network(L.Dense(4), Counter(name="counts"))
    with pytest.raises(UnsupportedLayerError, match="'counts'") as info:
        planning.check_inference(model)
    assert "assigns to its variable 'count' at inference" in str(info.value)
    planning.check_inference(network(L.Dense(4), Moving()))


def test_assigned_in_training_looks_into_layers():
    layer = Clipping()
    model = network(L.Dense(4), layer, Moving())
    names = [
        v.name
        for v in model.variables
        if id(v) in planning.assigned_in_training(model)
    ]
    assert sorted(names) == ["average", "kernel"]
    assert id(layer.dense.kernel) in planning.assigned_in_training(model)
    of_keras = network(L.Dense(4), L.BatchNormalization())
    assert planning.assigned_in_training(of_keras) == set()


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: L.Dense(2), True),
        (lambda: L.TimeDistributed(L.Dense(2)), True),
        (lambda: L.TimeDistributed(Gate()), False),
        (Gate, False),
        (lambda: keras.Sequential([L.Dense(2)]), True),
        (lambda: keras.Sequential([L.Dense(2), Gate()]), False),
    ],
)
def test_is_all_of_keras(make, expected):
    assert planning.is_all_of_keras(make()) is expected
