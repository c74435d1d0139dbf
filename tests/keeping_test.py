import dataclasses

import datasets
import keeping
import keras
import numpy as np
import pipelines
import pytest

import packnet_tf
from packnet_tf.errors import ArgumentError


def make_network(seed=0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(16, 3, activation="relu", name="stem"),
            keras.layers.Conv2D(16, 3, activation="relu", name="second"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (200, 8, 8, 3), np.uint8)
    # All equal: whoever looked at the labels would learn nothing else.
    labels = np.zeros(200, np.int32)

    def part(start, end):
        return datasets.Part(images, labels, np.arange(start, end))

    return [
        datasets.Dataset(
            name,
            "npz:a.npz",
            ("a", "b"),
            part(start, start + 60),
            part(0, 1),
            part(start + 60, start + 100),
        )
        for name, start in (("one", 0), ("two", 100))
    ]


def test_loss_is_the_divergence_of_softened_probabilities():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(2, 5, 4))

    def softmax(x):
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    for temperature in (1.0, 2.0, 7.0):
        p, q = softmax(logits / temperature)
        expected = temperature**2 * np.sum(p * np.log(p / q), -1)
        loss = keeping.distillation_loss(temperature)
        found = loss(*softmax(logits).astype("float32"))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    certain = np.eye(4, dtype="float32")
    assert np.isfinite(loss(certain, certain[::-1])).all()


def test_imitating_keeps_what_pruning_at_once_loses(data):
    teacher = make_network()
    before = [variable.numpy() for variable in teacher.variables]
    pipeline = pipelines.Pipeline(8, 20)
    model = packnet_tf.wrap(teacher, task="kept", filters="^(?!stem)")
    model.prune(0.7)
    at_once = keeping.agreement(model, teacher, data, pipeline)
    model = packnet_tf.wrap(teacher, task="kept", filters="^(?!stem)")
    history = keeping.imitate(
        model,
        teacher,
        data,
        pipeline,
        sparsity=0.7,
        epochs=8,
        learning_rate=1e-2,
        temperature=2.0,
        steps_per_epoch=10,
        verbose=0,
    )
    assert len(history) == 8
    assert model.sparsity == 0.7
    packed = [e for e in model.summary_protection(len) if e.owner is not None]
    assert [e.key.split("/")[0] for e in packed] == ["second"]
    assert np.mean(packed[0].owner.numpy() == 0) == pytest.approx(0.7, abs=1e-3)
    model.freeze_task()
    imitated = keeping.agreement(model, teacher, data, pipeline, task="kept")
    assert imitated > at_once
    for value, variable in zip(before, teacher.variables):
        np.testing.assert_array_equal(value, variable.numpy())


def test_accuracy_counts_the_largest():
    outputs = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    assert keeping.accuracy(outputs, np.array([1, 0, 0])) == pytest.approx(
        2 / 3
    )


@pytest.fixture(scope="module")
def labelled():
    """Ten classes that a network can tell apart: by color."""
    generator = np.random.default_rng(1)
    labels = (np.arange(400) % 10).astype(np.int32)
    colors = generator.integers(30, 226, (10, 1, 1, 3))
    noise = generator.integers(-20, 21, (400, 8, 8, 3))
    images = (colors[labels] + noise).astype(np.uint8)

    def part(start, end):
        return datasets.Part(images, labels, np.arange(start, end))

    return datasets.Dataset(
        "all",
        "npz:a.npz",
        tuple("abcdefghij"),
        part(0, 300),
        part(300, 340),
        part(340, 400),
    )


def test_retraining_mends_what_pruning_at_once_breaks(labelled):
    network = make_network()
    pipeline = pipelines.Pipeline(8, 20)
    network.compile("adam", "sparse_categorical_crossentropy")
    network.optimizer.learning_rate = 1e-2
    network.fit(
        pipeline.training(labelled),
        steps_per_epoch=15,
        epochs=20,
        shuffle=False,
        verbose=0,
    )
    test = pipeline.evaluation(labelled, labelled.test)

    def accuracy(model, **kwargs):
        outputs = model.predict(test, verbose=0, **kwargs)
        return keeping.accuracy(outputs, labelled.test.labels[340:])

    def prune_at_once():
        model = packnet_tf.wrap(network, task="kept")
        model.prune(0.9)
        return model

    broken = accuracy(prune_at_once())
    model = packnet_tf.wrap(network, task="kept")
    history = keeping.retrain(
        model,
        labelled,
        pipeline,
        sparsity=0.9,
        epochs=6,
        learning_rate=0.01,
        verbose=0,
    )
    assert model.sparsity == 0.9
    assert len(history) == 6
    assert {"accuracy", "loss", "val_accuracy", "val_loss"} <= set(history[0])
    # A pass over 300 images, 20 at once; a tenth of the rate after 5 epochs.
    assert model.optimizer.iterations == 6 * 15
    rates = [float(model.optimizer._learning_rate(step)) for step in (74, 75)]
    assert rates == pytest.approx([0.01, 0.001])
    assert model.optimizer.momentum == 0.9
    # What it was pruned to is what one shot leaves.
    for one, other in zip(
        prune_at_once().summary_protection(len), model.summary_protection(len)
    ):
        if one.owner is not None:
            np.testing.assert_array_equal(one.owner, other.owner)
    model.freeze_task()
    assert accuracy(model, task="kept") > broken


def test_labels_of_other_classes_are_refused_before_pruning(labelled):
    model = packnet_tf.wrap(make_network(), task="kept")
    other = dataclasses.replace(labelled, class_names=("a", "b"))
    with pytest.raises(ArgumentError, match="2 classes for 10 outputs"):
        keeping.retrain(model, other, pipelines.Pipeline(8, 20), 0.5, 1, 0.1)
    assert model.sparsity == 0.0


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
    assert keeping.check(make_network(), (8, 8, 3), 10) == 10
