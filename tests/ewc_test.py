"""Elastic weight consolidation: its sums, and what it adds to the loss."""

import dataclasses

import experiments
import keras
import numpy as np
import pytest
import tensorflow as tf
from methods import ewc
from methods import networks


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def make_linear():
    """A network whose weights' derivatives can be written down."""
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(4, name="features"),
        ]
    )


def make_method(folder, **changed):
    setting = experiments.make(
        folder, network=networks.Network(make_linear), **changed
    )
    method = ewc.ElasticWeightConsolidation(setting, "ewc")
    method.network = ewc.baselines.PlainNetwork(setting.network)
    for plan in setting.plans:
        method.network.add_head(plan.name, plan.units)
    return method


def draw(logs, seed, index):
    """Draws a class as is documented: by the seed and the image's place."""
    return int(
        tf.random.stateless_categorical(
            logs[None].astype("float32"), 1, [seed, index]
        )[0, 0]
    )


def test_importance_is_the_mean_of_squared_derivatives(tmp_path):
    method = make_method(tmp_path, ewc_samples=10)
    data = method.setting.find("two")
    found = method._measure("two", data)
    w, b = method.network.trunk.get_weights()
    v, c = method.network.heads["two"].get_weights()
    places = np.random.default_rng(method.setting.seed).permutation(24)
    images, _ = data.train.take(np.sort(places[:10]))
    means = (images / np.float32(255)).mean((1, 2))
    expected = [np.zeros_like(w), np.zeros_like(b)]
    for index, x in enumerate(means):
        p = softmax((x @ w + b) @ v + c)
        y = draw(np.log(p), method.setting.seed, index)
        # Of the log probability by the features, then by the weights.
        g = (np.eye(3)[y] - p) @ v.T
        expected[0] += np.outer(x, g) ** 2 / 10
        expected[1] += g**2 / 10
    for one, other in zip(found, expected):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-8)


def test_more_images_than_there_are_is_all_of_them(tmp_path):
    many = make_method(tmp_path, ewc_samples=1000)
    all_of_them = make_method(tmp_path, ewc_samples=24)
    for arrays in zip(
        *(m._measure("one", m.setting.find("one")) for m in (many, all_of_them))
    ):
        np.testing.assert_allclose(*arrays, rtol=1e-5)


def penalty_at(importance, anchors, where):
    return sum(
        float(np.sum(f * (w - a) ** 2))
        for f, a, w in zip(importance, anchors, where)
    )


def test_two_penalties_are_their_sum_but_for_a_constant(tmp_path):
    method = make_method(tmp_path)
    generator = np.random.default_rng(0)
    shapes = [w.shape for w in method.network.trunk.get_weights()]

    def values():
        return [generator.random(shape, np.float32) for shape in shapes]

    parts = [(values(), values()), (values(), values())]
    for importance, _ in parts:
        importance[0][0] = 0.0  # Important for no task.
    for importance, anchors in parts:
        method.network.trunk.set_weights(anchors)
        method._measure = lambda task, data, found=importance: [*found]
        method._consolidate("one", None)
    assert all(np.isfinite(anchor).all() for anchor in method.anchors)
    differences = []
    for _ in range(3):
        where = values()
        total = sum(penalty_at(*part, where) for part in parts)
        found = penalty_at(method.importance, method.anchors, where)
        differences.append(total - found)
    assert differences == pytest.approx([differences[0]] * 3, abs=1e-4)


@pytest.fixture
def held(tmp_path):
    """A method, its model that is held, and where it is held."""
    method = make_method(tmp_path, ewc_strength=10.0)
    generator = np.random.default_rng(0)
    now = method.network.trunk.get_weights()
    method.importance = [generator.random(w.shape, np.float32) for w in now]
    method.anchors = [w + np.float32(0.5) for w in now]
    model = method.make_model(["one"])
    model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
    return method, model, now


def test_the_penalty_has_the_gradient_of_a_spring(held):
    method, model, now = held
    x = np.random.default_rng(1).random((4, 8, 8, 3), np.float32)
    y = np.array([0, 1, 1, 0])
    variables = [v.value for v in method._held_variables()]

    def gradients(training):
        with tf.GradientTape() as tape:
            loss = model.compute_loss(
                x, y, model(x, training=True), training=training
            )
        return float(loss), tape.gradient(loss, variables)

    with_it, pulled = gradients(True)
    without, free = gradients(False)
    expected = 5.0 * penalty_at(method.importance, method.anchors, now)
    assert with_it - without == pytest.approx(expected, rel=1e-4)
    for index, (one, other) in enumerate(zip(pulled, free)):
        np.testing.assert_allclose(
            one - other,
            10.0
            * method.importance[index]
            * (now[index] - method.anchors[index]),
            rtol=1e-3,
            atol=1e-5,
        )


def test_validation_is_without_the_penalty(held):
    _, model, _ = held
    x = np.random.default_rng(1).random((4, 8, 8, 3), np.float32)
    y = np.array([0, 1, 1, 0])
    p = model.predict(x, verbose=0)
    expected = -np.mean(np.log(p[np.arange(4), y]))
    assert model.evaluate(x, y, verbose=0) == pytest.approx(expected, rel=1e-4)
    logs = model.fit(x, y, validation_data=(x, y), epochs=1, verbose=0).history
    assert logs["loss"][0] > expected + 1.0
    assert logs["val_loss"][0] < logs["loss"][0] - 1.0


def test_a_strong_penalty_holds_the_network(tmp_path):
    moved = {}
    for strength in (0.0, 1e9):
        setting = experiments.make(
            tmp_path / str(strength),
            network=networks.Network(make_linear),
            ewc_strength=strength,
            # Not more than 1 / (strength * importance), or it would swing.
            learning_rate=1e-9,
            momentum=0.0,
            schedule="constant",
            epochs=1,
            sparsity=0.0,
            warmup_epochs=0,
        )
        data = setting.find("one")
        method = ewc.ElasticWeightConsolidation(setting, "ewc")
        method.network = ewc.baselines.PlainNetwork(setting.network)
        method.network.add_head("one", 2)
        method._consolidate("one", data)
        before = [anchor.copy() for anchor in method.anchors]
        trunk = method.network.trunk
        trunk.set_weights([w + np.float32(0.1) for w in before])
        model = method.make_model(["one"])
        setting.compile(model, "train", 1, 3)
        model.fit(
            setting.pipeline.training(data),
            steps_per_epoch=20,
            shuffle=False,
            verbose=0,
        )
        moved[strength] = penalty_at(
            method.importance, before, trunk.get_weights()
        )
    assert moved[1e9] < 0.9 * moved[0.0]


def test_what_is_held_comes_back_from_a_checkpoint(tmp_path):
    method = make_method(tmp_path)
    method._consolidate("one", method.setting.find("one"))
    again = make_method(tmp_path)
    again.take_extra_arrays(method.extra_arrays())
    for name in ("importance", "anchors"):
        for one, other in zip(getattr(method, name), getattr(again, name)):
            assert one.tobytes() == other.tobytes()
    fresh = make_method(tmp_path)
    fresh.take_extra_arrays(fresh.extra_arrays())
    assert fresh.importance is None


def test_what_a_network_came_with_is_held_from_the_start(tmp_path):
    setting = experiments.make(tmp_path, keep=experiments.make_keeping())
    setting = dataclasses.replace(setting, plans=[])
    method = ewc.ElasticWeightConsolidation(setting, "ewc")
    method.learn()
    weights = method.network.trunk.trainable_variables
    assert len(method.importance) == len(weights)
    assert any(values.any() for values in method.importance)
    for anchor, variable in zip(method.anchors, weights):
        assert anchor.tobytes() == variable.numpy().tobytes()
