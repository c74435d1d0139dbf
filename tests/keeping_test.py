import datasets
import keeping
import keras
import numpy as np
import pipelines
import pytest

import packnet_tf


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
