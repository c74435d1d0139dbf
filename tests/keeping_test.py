import dataclasses

import experiments
import keeping
import keras
import numpy as np
import packing
import pytest

from packnet_tf.errors import ArgumentError


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_loss_is_the_divergence_of_softened_probabilities():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(2, 5, 4))
    for temperature in (1.0, 2.0, 7.0):
        p, q = softmax(logits / temperature)
        expected = temperature**2 * np.sum(p * np.log(p / q), -1)
        loss = keeping.Distillation(temperature)
        found = loss.call(*softmax(logits).astype("float32"))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
        again = keras.losses.deserialize(keras.losses.serialize(loss))
        assert again.temperature == temperature
    certain = np.eye(4, dtype="float32")
    assert np.isfinite(loss.call(certain, certain[::-1])).all()
    np.testing.assert_allclose(loss.call(certain, certain), 0.0, atol=1e-6)


def test_a_classifier_without_probabilities_is_refused():
    inputs = keras.Input((8, 8, 3))
    flat = keras.layers.Flatten()(inputs)
    for outputs in (
        keras.layers.Dense(10)(flat),
        keras.layers.Dense(1, activation="sigmoid")(flat),
        keras.layers.ReLU()(inputs),
    ):
        with pytest.raises(ArgumentError, match="a probability for each"):
            keeping.check(keras.Model(inputs, outputs), (8, 8, 3))
    network = experiments.build_network(0, 10)
    assert keeping.check(network, (8, 8, 3), 10) == 10
    assert keeping.check(network, (8, 8, 3)) == 10


def test_labels_of_other_classes_are_refused():
    network = experiments.build_network(0, 10)
    with pytest.raises(ArgumentError, match="2 classes for 10 outputs"):
        keeping.check(network, (8, 8, 3), 2)


@pytest.mark.parametrize("steps", [1, 2, 7, 100, 1234])
def test_pruning_grows_over_the_first_half(steps):
    schedule = keeping.gradual(0.6, steps)
    found = [schedule(step) for step in range(steps + 1)]
    sparsities = [float(sparsity) for prunes, sparsity in found if prunes]
    assert sparsities == sorted(sparsities)
    assert sparsities[-1] == pytest.approx(0.6)
    last = max(step for step, (prunes, _) in enumerate(found) if prunes)
    assert last <= max(steps // 2, 1)
    assert len(sparsities) <= 52


def learn(folder, keep, network, **changed):
    """Keeps a classifier in a packed network, and learns no other task."""
    setting = experiments.make(folder, keep=keep, network=network, **changed)
    setting = dataclasses.replace(setting, plans=[])
    model, plans = packing.begin(setting, {})
    return setting, model, plans


def train(setting, model, plan):
    model.add_task(plan.name, head=plan.head)
    setting.keep.compile(model, plan.steps_per_epoch, run_eagerly=True)
    return model


def test_imitating_looks_at_no_labels(tmp_path):
    network = experiments.make_network(4)
    setting = experiments.make(
        tmp_path, keep=experiments.make_keeping(), network=network
    )
    plan = keeping.make_plan(setting, network.build_parts()[1])
    assert plan.steps_per_epoch == 2 * experiments.STEPS
    assert (plan.epochs, plan.retrain_epochs) == (2, 0)
    teacher = network.build_whole()
    first = [batch for batch in plan.train(0).take(8).as_numpy_iterator()]
    for x, y in first:
        np.testing.assert_allclose(
            y, teacher(x, training=False), rtol=1e-5, atol=1e-6
        )
    # The second epoch is where the first ends.
    for (x, _), (after, _) in zip(
        first[6:], plan.train(1).take(2).as_numpy_iterator()
    ):
        np.testing.assert_array_equal(x, after)
