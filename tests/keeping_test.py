import experiments
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import two_devices
from methods import keeping
from methods import networks
from methods import packing

import packnet_tf
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


def test_depthwise_layers_and_the_first_of_a_network_that_has_them_stay_dense():
    network = keras.applications.MobileNetV2(
        weights=None, input_shape=(32, 32, 3), alpha=0.35
    )
    found = keeping.sensitive_layers(network)
    expected = {
        layer.name
        for layer in network.layers
        if layer.name == "Conv1" or layer.name.endswith("depthwise")
    }
    assert found == expected
    assert len(expected) == 18
    assert keeping.default_sparsity(network) == 0.3
    inputs = keras.Input((8, 8, 4))
    x = keras.layers.Conv2D(6, 3, name="first")(inputs)
    x = keras.layers.Conv2D(6, 3, groups=6, name="each")(x)
    x = keras.layers.Conv2D(6, 3, groups=2, name="two")(x)
    nested = keras.Sequential([keras.Model(inputs, x)])
    assert keeping.sensitive_layers(nested) == {"first", "each"}


def test_a_network_without_depthwise_layers_has_none_to_spare():
    network = experiments.build_network(0, 10)
    assert not keeping.sensitive_layers(network)
    assert keeping.default_sparsity(network) == 0.5


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


def test_imitating_looks_at_no_labels(tmp_path):
    network = experiments.make_network(4)
    setting = experiments.make(
        tmp_path, keep=experiments.make_keeping(), network=network
    )
    plan = keeping.make_plan(setting, network.build_parts()[1])
    assert plan.steps_per_epoch == 2 * experiments.STEPS
    assert (plan.epochs, plan.retrain_epochs) == (2, 0)
    teacher = network.build_whole()
    first = list(plan.train(0).take(8).as_numpy_iterator())
    for x, y in first:
        np.testing.assert_allclose(
            y, teacher(x, training=False), rtol=1e-5, atol=1e-6
        )
    # The second epoch is where the first ends.
    for (x, _), (after, _) in zip(
        first[6:], plan.train(1).take(2).as_numpy_iterator()
    ):
        np.testing.assert_array_equal(x, after)


@pytest.fixture(scope="module")
def labelled():
    """Four classes that a network can tell apart: by color."""
    return experiments.make_data("all", 4, seed=1)


@pytest.fixture(scope="module")
def skilled(labelled):
    """Makes a network that has learned them."""
    network = experiments.make_network(4)
    whole = network.build_whole()
    whole.compile(
        keras.optimizers.Adam(0.01),
        "sparse_categorical_crossentropy",
        jit_compile=False,
    )
    x, y = labelled.train.take(np.arange(24))
    whole.fit(x / np.float32(255), y, epochs=40, batch_size=8, verbose=0)

    def build_whole():
        made = experiments.build_network(None, 4)
        made.set_weights(whole.get_weights())
        return made

    def build():
        made = build_whole()
        return keras.Model(made.inputs[0], made.layers[-2].output)

    return networks.Network(build, build_whole)


def pack(folder, keep, network, data):
    """Learns what is kept, and one task, in a packed network."""
    setting = experiments.make(
        folder,
        keep=keep,
        network=network,
        data=data,
        epochs=1,
        warmup_epochs=0,
        sparsity=0.0,
    )
    return setting, packing.learn(setting, {})


@pytest.mark.slow
def test_two_devices_imitate_as_one_does(skilled, labelled, tmp_path):
    # The network that is imitated is no matter of the strategy.
    def learn(folder):
        keep = experiments.make_keeping(test=labelled)
        data = [experiments.make_data("two", 3, seed=2)]
        _, result = pack(folder, keep, skilled, data)
        return result

    alone = learn(tmp_path / "alone")
    with two_devices().scope():
        shared = learn(tmp_path / "shared")
    for name in ("accuracy_before", "agreement", "agreement_on_test"):
        assert shared["kept"][name] == pytest.approx(alone["kept"][name])
    assert shared["owned"] == alone["owned"]


def agreement_of_pruned_at_once(setting, sparsity):
    network, classifier = setting.network.build_parts()
    model = packnet_tf.wrap(network, head=None)
    model.add_task("kept", head=classifier)
    model.prune(sparsity)
    return keeping.test(setting, model)


def test_imitating_keeps_what_pruning_at_once_loses(
    skilled, labelled, tmp_path
):
    keep = experiments.make_keeping(sparsity=0.9, epochs=30, test=labelled)
    setting, result = pack(
        tmp_path, keep, skilled, [experiments.make_data("two", 3, seed=2)]
    )
    kept = result["kept"]
    at_once = agreement_of_pruned_at_once(setting, 0.9)
    assert kept["agreement"] > at_once["agreement"]
    assert kept["agreement_on_test"] > at_once["agreement_on_test"]
    assert (kept["name"], kept["sparsity"]) == ("kept", 0.9)
    # Of the labels, what the network could do before.
    predicted = setting.predict(skilled.build_whole(), labelled)
    assert kept["accuracy_before"] == setting.accuracy(predicted, labelled)
    assert list(result["fingerprints"]) == ["kept", "two"]
    assert list(result["phases"]) == ["two"]
    assert result["shares"]["two"] == pytest.approx(0.9, abs=0.01)
    assert sum(result["shares"].values()) == pytest.approx(1.0)
    assert list(result["sparsities"]) == ["kept", "two"]
    # It is exported with the names of its classes, which the data has.
    exported = tf.saved_model.load(str(tmp_path / "export" / "kept"))
    images, _ = labelled.test.take(np.arange(8))
    served = exported.serve(images)
    chosen = np.argmax(served["scores"], axis=-1)
    labels = [labelled.class_names[label].encode() for label in chosen]
    assert served["labels"].numpy().tolist() == labels
    np.testing.assert_array_equal(served["scores"].shape, (8, 4))
    assert result["export_bytes"]["kept"] > 0


def test_retraining_on_labels_is_the_papers(skilled, labelled, tmp_path):
    keep = experiments.make_keeping(
        sparsity=0.9, epochs=6, train=labelled, test=labelled
    )
    setting = experiments.make(tmp_path, keep=keep, network=skilled)
    model, plans = packing.begin(setting, {})
    plan = plans[0]
    assert (plan.epochs, plan.retrain_epochs) == (0, 6)
    assert (plan.steps_per_epoch, plan.sparsity) == (3, 0.9)
    model.add_task(plan.name, head=plan.head)
    model.prune(plan.sparsity)
    broken = keeping.test(setting, model)
    keep.compile(model, plan.steps_per_epoch, jit_compile=False)
    # A tenth of the rate after 5 epochs.
    rates = [float(model.optimizer._learning_rate(step)) for step in (14, 15)]
    assert rates == pytest.approx([0.01, 0.001])
    assert model.optimizer.momentum == 0.9
    before = model.evaluate(plan.validation, verbose=0, return_dict=True)
    history = model.fit(
        plan.train(0),
        validation_data=plan.validation,
        steps_per_epoch=3,
        epochs=6,
        shuffle=False,
        verbose=0,
    ).history
    assert {"accuracy", "loss", "val_accuracy", "val_loss"} == set(history)
    assert history["val_loss"][-1] < before["loss"]
    assert keeping.test(setting, model)["accuracy"] > broken["accuracy"]


@pytest.mark.slow
def test_a_kill_changes_nothing_of_what_is_kept(skilled, tmp_path):
    data = [experiments.make_data("two", 3, seed=2)]
    keep = experiments.make_keeping(epochs=2)
    results = []
    # Where it is killed, and whether it is at all.
    for name, kills in (("whole", []), ("killed", [2, 3, 4])):
        killed = 0
        for left in [*kills, None]:
            keras.backend.clear_session()
            setting = experiments.make(
                tmp_path / name,
                keep=keep,
                network=skilled,
                data=data,
                epochs=2,
                kill=None if left is None else experiments.KillAt(left),
            )
            try:
                found = packing.learn(setting, {})
            except experiments.Killed:
                killed += 1
        assert killed == len(kills)
        results.append(
            {
                name: found[name]
                for name in set(found) - {"seconds", "bytes", "export_bytes"}
            }
        )
    assert results[0] == results[1]
