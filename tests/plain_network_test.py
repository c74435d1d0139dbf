"""Plain networks with a classifier per task."""

import experiments
import keras
import numpy as np
import pytest
from methods import networks
from methods import plain_network

X = np.random.default_rng(0).random((4, 8, 8, 3), np.float32)


def frozen_network():
    """Its normalization stays as it was loaded; some of it is nested."""
    made = experiments.build_network(1)
    inputs = keras.Input((6,))
    inner = keras.Model(
        inputs,
        keras.layers.BatchNormalization(name="inner_norm")(
            keras.layers.Dense(5, name="inner_dense")(inputs)
        ),
        name="inner",
    )
    whole = keras.Model(made.inputs[0], inner(made.outputs[0]))
    networks.freeze_normalization(whole)
    return whole


def make(*tasks, network=None, keep=None):
    network = network or experiments.make_network(4 if keep else None)
    made = plain_network.PlainNetwork(network, keep)
    for task in tasks:
        made.add_head(task, 3)
    return made


def same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other):
        assert a.tobytes() == b.tobytes()


def test_what_is_frozen_stays_frozen():
    made = make("one", network=networks.Network(frozen_network))

    def learning():
        return [v.path for v in made.trunk.trainable_variables]

    before = learning()
    assert before
    assert not any("norm" in path for path in before)
    made.let_learn(False)
    assert learning() == []
    made.let_learn(True)
    assert learning() == before


def test_a_fit_leaves_what_is_frozen():
    made = make("one", network=networks.Network(frozen_network))
    norms = [
        layer
        for layer in made.trunk._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    assert len(norms) == 2
    before = [value for norm in norms for value in norm.get_weights()]
    made.let_learn(False)
    made.let_learn(True)
    model = made.model(["one"])
    model.compile("adam", "sparse_categorical_crossentropy", run_eagerly=True)
    rest = made.trunk.get_layer("conv").get_weights()
    model.fit(X, np.arange(4) % 3, verbose=0)
    same(before, [value for norm in norms for value in norm.get_weights()])
    assert (rest[0] != made.trunk.get_layer("conv").get_weights()[0]).any()


def test_a_task_s_classifier_learns_where_the_rest_stands_still():
    made = make("one", "two", keep="kept")
    made.let_learn(False, ["two"])
    model = made.model(["kept", "one", "two"])
    head = made.heads["two"].trainable_variables
    assert [id(v) for v in model.trainable_variables] == [id(v) for v in head]
    made.let_learn(True)
    assert made.heads["kept"].trainable_variables
    assert made.heads["one"].trainable_variables


def test_a_model_has_the_outputs_of_its_tasks():
    made = make("one", "two")
    alone, both = made.model(["two"]), made.model(["one", "two"])
    assert alone.output_shape == (None, 3)
    assert both.output_names == ["one", "two"]
    np.testing.assert_allclose(alone(X), both(X)[1], rtol=1e-6)
    np.testing.assert_allclose(np.sum(alone(X), -1), 1.0, rtol=1e-5)
    # The weights are shared.
    made.heads["two"].kernel.assign(np.zeros((6, 3)))
    np.testing.assert_allclose(alone(X), np.full((4, 3), 1 / 3), rtol=1e-6)


@pytest.mark.parametrize("name", ["conv", "features", "classifier", "small"])
def test_a_task_may_have_the_name_of_a_layer(name):
    made = make(name, keep="kept")
    model = made.model(["kept", name])
    assert [output.shape[-1] for output in model.outputs] == [4, 3]


def test_a_copy_has_weights_of_its_own():
    made = make("one", keep="kept")
    made.trunk.get_layer("norm").moving_mean.assign(np.arange(4.0))
    copy = made.copy()
    tasks = ["kept", "one"]
    before = [y.numpy() for y in made.model(tasks)(X)]
    same(before, [y.numpy() for y in copy.model(tasks)(X)])
    for variable in (*made.trunk.variables, *made.heads["kept"].variables):
        variable.assign(variable + 1)
    made.heads["one"].kernel.assign_add(np.ones((6, 3)))
    same(before, [y.numpy() for y in copy.model(tasks)(X)])
    assert (made.model(tasks)(X)[0].numpy() != before[0]).any()


def test_arrays_bring_all_back():
    made = make("one", "two", keep="kept")
    made.model(["one"])(X, training=True)  # Draws from dropout's state.
    arrays = made.to_arrays()
    other = make("one", "two", keep="kept")
    assert any(
        value.tobytes() != arrays[name].tobytes()
        for name, value in other.to_arrays().items()
    )
    other.assign(arrays)
    assert list(other.to_arrays()) == list(arrays)
    same(arrays.values(), other.to_arrays().values())
    one, two = (
        network.model(["one"])(X, training=True).numpy()
        for network in (made, other)
    )
    np.testing.assert_array_equal(one, two)


def test_the_kept_classifier_computes_what_it_did():
    network = experiments.make_network(4)
    whole = network.build_whole()
    made = make("one", network=network, keep="kept")
    np.testing.assert_array_equal(made.model(["kept"])(X), whole(X))
