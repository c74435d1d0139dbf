"""Biases and normalization of which each task has its own."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import packnet_tf
from packnet_tf import fingerprint
from packnet_tf import inventory
from packnet_tf import visibility
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import FingerprintError
from packnet_tf.errors import StageError

L = keras.layers
BOTH = {"biases": "per_task", "normalization": "per_task"}


def make_network(momentum=0.5):
    inputs = keras.Input((6,), name="x")
    x = L.Dense(5, name="first")(inputs)
    x = L.BatchNormalization(momentum=momentum, name="norm")(x)
    x = L.Dense(5, activation="relu", name="second")(x)
    x = L.LayerNormalization(name="layer_norm")(x)
    network = keras.Model(inputs, x, name="network")
    generator = np.random.default_rng(5)
    for variable in network.trainable_variables:
        variable.assign(generator.normal(size=variable.shape))
    return network


@pytest.fixture
def data():
    generator = np.random.default_rng(6)
    x = generator.normal(size=(8, 6)).astype("float32")
    return x, np.arange(8) % 3


@pytest.fixture
def make(data):
    """Makes a packed model with some frozen tasks, and their outputs."""

    def make(tasks, **options):
        packed = packnet_tf.wrap(make_network(), head=None, **options)
        frozen = {}
        for number in range(1, tasks + 1):
            begin(packed, f"task_{number}")
            train(packed, data, shift=number)
            packed.prune(0.5)
            train(packed, data, shift=number)
            packed.freeze_task()
            frozen[packed.task] = computed(packed, data[0])
        return packed, frozen

    return make


def begin(packed, task):
    packed.add_task(task, units=3)
    packed.compile(
        keras.optimizers.SGD(0.1),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        run_eagerly=True,
    )


def train(packed, data, shift=0.0):
    """Trains on inputs whose statistics are those of the task alone."""
    x, y = data
    packed.fit(x * (1.0 + shift) + shift, y, batch_size=4, verbose=0)


def computed(model, x, **kwargs):
    return keras.ops.convert_to_numpy(model(x, **kwargs)).tobytes()


def entries(packed):
    return {e.key: e for e in packed.summary_protection(print_fn=len)}


def values(variables):
    return [v.numpy().tobytes() for v in variables]


def packed_layers(packed):
    return [
        layer
        for layer in packed.backbone.layers
        if isinstance(layer, packnet_tf.PackedLayer)
    ]


OWN = {
    "biases": {"first/bias", "second/bias"},
    "normalization": {
        "norm/gamma",
        "norm/beta",
        "norm/moving_mean",
        "norm/moving_variance",
        "layer_norm/gamma",
        "layer_norm/beta",
    },
}


@pytest.mark.parametrize("option", OWN)
def test_each_option_makes_its_variables_per_task(option):
    packed = packnet_tf.wrap(make_network(), head=None, **{option: "per_task"})
    how = {key: entry.protection for key, entry in entries(packed).items()}
    own = {key for key, value in how.items() if value == inventory.PER_TASK}
    assert own == OWN[option]
    (other,) = set(OWN) - {option}
    assert {how[key] for key in OWN[other]} == {inventory.FROZEN}
    assert how["first/kernel"] == inventory.PACKED


def test_nothing_is_per_task_unless_asked_for():
    packed = packnet_tf.wrap(make_network(), head=None)
    assert inventory.PER_TASK not in {
        entry.protection for entry in entries(packed).values()
    }
    packed.add_task("one", units=3)
    before = len(packed.backbone.variables)
    packed.freeze_task()
    assert len(packed.backbone.variables) == before


def test_each_task_adds_a_copy_of_its_own(make):
    packed, _ = make(3, **BOTH)
    for layer in packed_layers(packed):
        assert len(layer.copies) == 3 * len(layer.per_task)
        assert not any(copy.trainable for copy in layer.copies)
        for task in (1, 2, 3):
            for copy, variable in zip(
                layer.copies_of(task), layer.per_task_variables(), strict=True
            ):
                assert copy.shape == variable.shape
                assert copy.dtype == variable.dtype


def test_copies_start_from_the_values_of_the_task_before(make, data):
    packed, _ = make(1, **BOTH)
    own = [e for e in entries(packed).values() if e.wrapper is not None]
    kept = values([e.of_task(1) for e in own])
    assert values([e.variable for e in own]) == kept
    begin(packed, "task_2")
    assert values([e.variable for e in own]) == kept
    train(packed, data, shift=3.0)
    assert all(
        now != before
        for now, before in zip(values([e.variable for e in own]), kept)
    )
    assert values([e.of_task(1) for e in own]) == kept
    packed.prune(0.5)
    packed.freeze_task()
    begin(packed, "task_3")
    assert values([e.variable for e in own]) == values(
        [e.of_task(2) for e in own]
    )


@pytest.mark.parametrize(
    "options", [{"biases": "per_task"}, {"normalization": "per_task"}, BOTH]
)
def test_older_outputs_stay_while_the_newest_task_moves(make, data, options):
    packed, frozen = make(2, **options)
    begin(packed, "task_3")
    before = computed(packed, data[0])
    for _ in range(3):
        train(packed, data, shift=9.0)
        for task, value in frozen.items():
            assert computed(packed, data[0], task=task) == value
    assert computed(packed, data[0]) != before
    packed.freeze_task()
    packed.verify()


def test_statistics_of_the_newest_task_move(make, data):
    packed, _ = make(1, normalization="per_task")
    begin(packed, "task_2")
    norm = packed.backbone.get_layer("norm")
    mean = norm.layer.moving_mean.numpy()
    packed(data[0] + 100.0, training=True)
    assert (norm.layer.moving_mean.numpy() != mean).all()


def test_all_ways_to_compute_an_older_task_agree(make, data, tmp_path):
    packed, frozen = make(3, **BOTH)
    begin(packed, "task_4")
    train(packed, data, shift=9.0)
    x, y = data
    packed.export(tmp_path / "all")
    served = tf.saved_model.load(tmp_path / "all")
    for task, value in frozen.items():
        plain = packed.unwrap(task)
        assert computed(packed, x, task=task) == value
        assert computed(plain, x) == value
        predicted = packed.predict(x, task=task, verbose=0)
        # Compiled and eager execution may round differently.
        plain.compile(loss="sparse_categorical_crossentropy", run_eagerly=True)
        np.testing.assert_array_equal(predicted, plain.predict(x, verbose=0))
        loss, _ = packed.evaluate(x, y, task=task, verbose=0)
        assert loss == plain.evaluate(x, y, verbose=0)
        packed.export_task(task, tmp_path / f"{task}.keras")
        loaded = keras.saving.load_model(tmp_path / f"{task}.keras")
        assert computed(loaded, x) == value
        packed.export_task(task, tmp_path / task)
        exported = tf.saved_model.load(tmp_path / task)
        (signature,) = served.signatures[task](tf.constant(x)).values()
        in_graph = tf.function(plain, autograph=False)(x)
        np.testing.assert_array_equal(exported.serve(x), in_graph)
        np.testing.assert_array_equal(signature, in_graph)


def test_tasks_differ_by_their_own_variables(make, data):
    packed, _ = make(2, **BOTH)
    first, second = (packed.unwrap(task) for task in packed.task_names)
    for name in ("first", "second"):
        one, other = (m.get_layer(name).bias.numpy() for m in (first, second))
        assert (one != other).any()
    one, other = (m.get_layer("norm").moving_mean for m in (first, second))
    assert (one.numpy() != other.numpy()).all()


def test_one_bit_of_a_copy_changes_the_fingerprint(make):
    packed, _ = make(3, **BOTH)
    for task in (1, 2, 3):
        for key in sorted(OWN["biases"] | OWN["normalization"]):
            copy = entries(packed)[key].of_task(task)
            before = copy.numpy()
            damaged = before.copy()
            damaged.view("uint32")[0] ^= 1
            copy.assign(damaged)
            with pytest.raises(FingerprintError) as info:
                packed.verify()
            assert f"Task 'task_{task}' has changed" in str(info.value)
            assert f"'{key}'" in str(info.value)
            copy.assign(before)
            packed.verify()


def test_a_copy_is_no_part_of_a_later_task(make):
    packed, _ = make(2, **BOTH)
    packed.verify()
    records = {task.name: task.record for task in packed._tasks}
    assert entries(packed)["norm/gamma"].of_task(1) is not (
        entries(packed)["norm/gamma"].of_task(2)
    )
    copy = entries(packed)["norm/gamma"].of_task(1)
    copy.assign(copy.numpy() + 1.0)
    with pytest.raises(FingerprintError, match="Task 'task_1' has changed"):
        packed.verify()
    now = fingerprint.measure(
        list(entries(packed).values()),
        [packed.heads[name] for name in packed.task_names],
    )
    (first, _), (second, _) = now
    assert first.fingerprint != records["task_1"].fingerprint
    assert second.per_task == records["task_2"].per_task
    assert second.backbone == records["task_2"].backbone
    assert second.fingerprint == records["task_2"].fingerprint


def test_saved_and_loaded_tasks_compute_the_same(make, data, tmp_path):
    packed, frozen = make(2, **BOTH)
    begin(packed, "task_3")
    train(packed, data, shift=4.0)
    frozen["task_3"] = computed(packed, data[0])
    packed.save(tmp_path / "model.keras")
    loaded = packnet_tf.load_model(tmp_path / "model.keras")
    for task, value in frozen.items():
        assert computed(loaded, data[0], task=task) == value
    assert loaded.verify() == packed.verify()
    how = {key: e.protection for key, e in entries(loaded).items()}
    assert how == {key: e.protection for key, e in entries(packed).items()}
    for model in (packed, loaded):
        train(model, data, shift=4.0)
    assert values(packed.variables) == values(loaded.variables)
    loaded.prune(0.5)
    loaded.freeze_task()
    begin(loaded, "task_4")
    train(loaded, data, shift=-3.0)
    for task in ("task_1", "task_2"):
        assert computed(loaded, data[0], task=task) == frozen[task]


def test_loading_weights_brings_copies_back(make, data, tmp_path):
    packed, frozen = make(2, **BOTH)
    packed.save_weights(tmp_path / "model.weights.h5")
    before = values(packed.variables)
    own = [e for e in entries(packed).values() if e.wrapper is not None]
    for entry in own:
        for variable in (entry.variable, entry.of_task(1), entry.of_task(2)):
            variable.assign(variable.numpy() + 1.0)
    packed.load_weights(tmp_path / "model.weights.h5")
    assert values(packed.variables) == before
    for task, value in frozen.items():
        assert computed(packed, data[0], task=task) == value


def test_weights_of_another_copy_are_refused(make, tmp_path):
    packed, _ = make(2, **BOTH)
    other, _ = make(2, **BOTH)
    copy = entries(other)["first/bias"].of_task(1)
    copy.assign(copy.numpy() + 1.0)
    other.save_weights(tmp_path / "model.weights.h5")
    before = values(packed.variables)
    with pytest.raises(FingerprintError):
        packed.load_weights(tmp_path / "model.weights.h5")
    assert values(packed.variables) == before


@pytest.mark.parametrize("tasks", [1, 2])
def test_a_foreign_call_between_tasks_moves_nothing(make, data, tasks):
    packed, frozen = make(tasks, **BOTH)
    before = values(packed.backbone.variables)
    with pytest.raises(StageError, match="frozen"):
        packed(data[0] + 100.0, training=True)
    packed.backbone(data[0] + 100.0, training=True)
    assert values(packed.backbone.variables) == before
    begin(packed, "next")
    for task, value in frozen.items():
        assert computed(packed, data[0], task=task) == value
    packed.verify()


def test_a_foreign_call_moves_nothing_although_made_trainable(make, data):
    packed, _ = make(1, **BOTH)
    before = values(packed.backbone.variables)
    packed.trainable = True
    with pytest.raises(StageError, match="frozen"):
        packed(data[0] + 100.0, training=True)
    assert values(packed.backbone.variables) == before


@pytest.mark.parametrize("options", [{}, BOTH])
def test_what_is_not_trainable_before_wrap_stays_frozen(data, options):
    network = make_network()
    network.get_layer("first").trainable = False
    network.get_layer("norm").trainable = False
    packed = packnet_tf.wrap(network, head=None, **options)
    untrained = [
        entry
        for key, entry in entries(packed).items()
        if key.startswith(("first/", "norm/"))
    ]
    assert len(untrained) == 6
    for entry in untrained:
        assert entry.protection == inventory.FROZEN
        assert entry.reason == "it is not trainable"
    before = values([entry.variable for entry in untrained])
    begin(packed, "one")
    packed.trainable = True
    train(packed, data, shift=5.0)
    assert values([entry.variable for entry in untrained]) == before
    packed.prune(0.5)
    packed.freeze_task()
    begin(packed, "two")
    train(packed, data, shift=5.0)
    assert values([entry.variable for entry in untrained]) == before
    packed.freeze_task()
    packed.verify()


def test_a_variable_that_is_not_trainable_stays_as_it_is(data, tmp_path):
    network = make_network()
    network.get_layer("first").kernel.trainable = False
    network.get_layer("second").bias.trainable = False
    packed = packnet_tf.wrap(network, head=None, **BOTH)
    found = entries(packed)
    for key in ("first/kernel", "second/bias"):
        assert found[key].protection == inventory.FROZEN
        assert found[key].reason == "it is not trainable"
    before = values(
        [found[k].variable for k in ("first/kernel", "second/bias")]
    )
    begin(packed, "one")
    packed.trainable = True
    packed.save(tmp_path / "model.keras")
    for model in (packed, packnet_tf.load_model(tmp_path / "model.keras")):
        train(model, data, shift=5.0)
        found = entries(model)
        assert before == values(
            [found[k].variable for k in ("first/kernel", "second/bias")]
        )


def test_making_all_trainable_does_not_wake_what_was_frozen(data):
    network = make_network()
    network.get_layer("first").trainable = False
    packed = packnet_tf.wrap(network, head=None, **BOTH)
    begin(packed, "one")
    packed.prune(0.5)
    packed.freeze_task()
    begin(packed, "two")
    packed.trainable = True
    packed.backbone.trainable = True
    first = packed.backbone.get_layer("first")
    inner = first.layer if hasattr(first, "layer") else first
    before = values(inner.variables)
    train(packed, data)
    assert values(inner.variables) == before


def test_an_older_task_computes_with_its_copies(make, data):
    packed, frozen = make(2, **BOTH)
    own = [e for e in entries(packed).values() if e.wrapper is not None]
    begin(packed, "task_3")
    for entry in own:
        entry.variable.assign(entry.variable.numpy() * np.nan)
    for task, value in frozen.items():
        assert computed(packed, data[0], task=task) == value
    with visibility.visible_task(2):
        features = packed.backbone(data[0], training=False)
    assert np.isfinite(features.numpy()).all()


@pytest.mark.parametrize("option", OWN)
@pytest.mark.parametrize(
    "value", [None, True, "per-task", "PER_TASK", 1, ["frozen"], ""]
)
def test_other_values_are_refused(option, value):
    with pytest.raises(ArgumentError) as info:
        packnet_tf.wrap(make_network(), head=None, **{option: value})
    assert f"`{option}`" in str(info.value)
    assert f"Received: {option}={value!r}" in str(info.value)
