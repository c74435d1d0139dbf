"""Tasks that are removed leave the others as if they had never been."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import Unchanged
from helpers import all_values
from helpers import assert_same_values
from helpers import compile_model
from helpers import two_devices

import packnet_tf
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import FingerprintError
from packnet_tf.errors import StageError
from packnet_tf.errors import TaskError
from packnet_tf.variables import is_seed

OWN = {"biases": "per_task", "normalization": "per_task"}


def ema():
    return keras.optimizers.AdamW(0.05, weight_decay=0.1, use_ema=True)


@pytest.fixture
def make(network, images):
    """Makes a compiled model with frozen tasks of some sparsities."""

    def make(sparsities=(0.5, 0.5), **options):
        model = packnet_tf.wrap(network(classes=None), head=None, **options)
        compile_model(model, ema(), run_eagerly=True)
        for number, sparsity in enumerate(sparsities, 1):
            learn(model, images, f"task_{number}", sparsity)
        return model

    return make


@pytest.fixture(scope="module")
def three_tasks(network):
    """A compiled model of three frozen tasks, which no test changes."""
    model = packnet_tf.wrap(network(classes=None), head=None)
    compile_model(model)
    for number in (1, 2, 3):
        model.add_task(f"task_{number}", units=2)
        model.prune(0.5)
        model.freeze_task()
    return model


def learn(model, images, name, sparsity=0.5, freeze=True, retrain=False):
    """Adds a task and trains it on data of its own, a step per stage."""
    x, y = images
    shift = sum(map(ord, name)) % 7
    keras.utils.set_random_seed(shift)
    model.add_task(name, units=4)
    model.fit(x * shift + shift, y, batch_size=32, shuffle=False, verbose=0)
    if sparsity:
        model.prune(sparsity)
    if retrain:
        model.fit(x + shift, y, batch_size=32, shuffle=False, verbose=0)
    return model.freeze_task() if freeze else None


def state(model):
    """Returns all that a task which was removed must not have changed."""
    config = model.get_config()
    kept = [v for v in model.variables if v is not model.steps]
    return {
        "values": [v.numpy().tobytes() for v in kept if not is_seed(v)],
        "paths": [v.path for v in model.variables],
        "trainable": [v.trainable for v in model.variables],
        "training": [id(v) for v in model.trainable_variables],
        "layers": [id(layer) for layer in model._flatten_layers()],
        "weights": len(model.weights),
        "heads": list(model.heads),
        "empty_pools": config["empty_pools"],
        "config": str(config),
        "capacity": model.summary_capacity(print_fn=len),
        "fingerprints": model.verify(),
        "task": model.task,
    }


def outputs(model, x):
    return {n: np.asarray(model(x, task=n)) for n in model.task_names}


def set_seeds(model, values):
    """Puts random state back, which goes on when a task is removed."""
    for variable, value in zip(model.variables, values):
        if is_seed(variable):
            variable.assign(value)


@pytest.mark.parametrize("options", [{}, OWN], ids=["frozen", "per_task"])
def test_removing_undoes_adding(make, images, options):
    model = make(**options)
    before, computed = state(model), outputs(model, images[0])
    for name, freeze in (("task_3", False), ("other", True)):
        learn(model, images, name, freeze=freeze, retrain=True)
        owned = model.summary_capacity(print_fn=len).owned[name]
        assert model.remove_task(name) == owned
        assert state(model) == before
        for kept, value in outputs(model, images[0]).items():
            np.testing.assert_array_equal(value, computed[kept])
        assert model.stage is packnet_tf.Stage.FROZEN
        assert int(model.steps) == 0
        assert int(model.optimizer.iterations) == 0


@pytest.mark.parametrize(("options", "reload"), [({}, False), (OWN, True)])
def test_the_same_task_again_ends_the_same(
    make, images, options, reload, tmp_path
):
    model = make((0.5,), **options)
    before = all_values(model)
    expected = learn(model, images, "task_2", retrain=True)
    learned = all_values(model)
    model.remove_task("task_2")
    if reload:
        model.save(tmp_path / "model.keras")
        model = packnet_tf.load_model(tmp_path / "model.keras")
    learn(model, images, "other", sparsity=0.9)
    model.remove_task("other")
    set_seeds(model, before)
    assert learn(model, images, "task_2", retrain=True) == expected
    assert_same_values(learned, all_values(model))


def test_older_tasks_go_with_all_after_them(make, images):
    model = make((0.5,), **OWN)
    before = state(model)
    learn(model, images, "task_2")
    learn(model, images, "task_3")
    learn(model, images, "task_4", freeze=False)
    model.set_task("task_3")
    model.remove_task("task_2", also=["task_4", "task_3"])
    assert state(model) == before
    assert learn(model, images, "task_3")
    model.verify()


def test_what_had_no_room_trains_for_the_next_task(make, images):
    model = make((0.5, 0.0))
    with pytest.warns(UserWarning, match="owns no weight"):
        learn(model, images, "task_3", sparsity=0)
    entries = [
        entry
        for entry in model.summary_protection(print_fn=len)
        if entry.owner is not None
    ]
    assert not any(entry.variable.trainable for entry in entries)
    model.remove_task("task_3")
    assert all(entry.variable.trainable for entry in entries)
    with pytest.warns(UserWarning, match="owns no weight"):
        learn(model, images, "task_3", sparsity=0)
    model.remove_task("task_2", also=("task_3",))
    before = [entry.variable.numpy() for entry in entries]
    learn(model, images, "task_4", sparsity=0)
    for entry, value in zip(entries, before):
        assert not np.array_equal(entry.variable.numpy(), value), entry.key
    assert list(model.verify()) == ["task_1", "task_4"]


def test_what_was_made_untrainable_by_hand_stays_so(make, images):
    model = make((0.5, 0.0))
    with pytest.warns(UserWarning, match="owns no weight"):
        learn(model, images, "task_3", sparsity=0)
    layer = model.backbone.get_layer("dense")
    layer.trainable = False
    model.remove_task("task_3")
    assert not layer.layer.kernel.trainable
    assert model.backbone.get_layer("conv").layer.kernel.trainable


def test_a_task_without_room_stays_without(make, images):
    model = make((0.5, 0.0))
    with pytest.warns(UserWarning, match="owns no weight"):
        learn(model, images, "task_3", sparsity=0)
    before = state(model)
    with pytest.warns(UserWarning, match="owns no weight"):
        learn(model, images, "task_4", sparsity=0)
    model.remove_task("task_4")
    assert state(model) == before


def test_a_saved_model_has_nothing_of_a_removed_task(make, images, tmp_path):
    model = make(**OWN)
    model.save(tmp_path / "before.keras")
    model.save_weights(tmp_path / "before.weights.h5")
    learn(model, images, "task_3")
    model.remove_task("task_3")
    model.save(tmp_path / "after.keras")
    before, after = (
        packnet_tf.load_model(tmp_path / f"{name}.keras")
        for name in ("before", "after")
    )
    assert state(after)["values"] == state(before)["values"]
    assert state(after)["config"] == state(before)["config"]
    model.load_weights(tmp_path / "before.weights.h5")
    for each in (model, before, after):
        set_seeds(each, all_values(before))
    expected = learn(before, images, "next")
    assert learn(model, images, "next") == expected
    assert learn(after, images, "next") == expected


def test_what_remains_is_exported(make, images, tmp_path):
    x, _ = images
    model = make(**OWN)
    model.export(tmp_path / "before")
    learn(model, images, "task_3")
    model.remove_task("task_3")
    model.export(tmp_path / "after")
    served = tf.saved_model.load(tmp_path / "after")
    assert set(served.signatures) == {"task_1", "task_2", "serving_default"}
    before, after = (
        sorted(
            shape
            for _, shape in tf.train.list_variables(
                str(tmp_path / folder / "variables/variables")
            )
        )
        for folder in ("before", "after")
    )
    assert after == before
    for name in model.task_names:
        model.export_task(name, tmp_path / f"{name}.keras")
        plain = keras.saving.load_model(tmp_path / f"{name}.keras")
        np.testing.assert_array_equal(plain(x), model(x, task=name))


def test_functions_compiled_before_compute_what_is_left(make, images):
    x, y = images
    model = make((0.5,))
    learn(model, images, "task_2", freeze=False)
    model.run_eagerly = False
    before = {
        name: model.predict(x, task=name, verbose=0)
        for name in model.task_names
    }
    model.evaluate(x, y, task="task_1", verbose=0)
    model.remove_task("task_2")
    for name in model.task_names:
        after = model.predict(x, task=name, verbose=0)
        np.testing.assert_array_equal(after, before[name])
    np.testing.assert_array_equal(model.predict(x, verbose=0), after)
    with pytest.raises(TaskError, match="task_2"):
        model.predict(x, task="task_2", verbose=0)


def test_head_only_ends_with_the_task(make, images):
    model = make((0.5,))
    learn(model, images, "task_2", freeze=False)
    model.head_only = True
    model.remove_task("task_2")
    assert not model.head_only
    learn(model, images, "task_2")
    model.verify()


def test_removing_under_a_strategy(network, images):
    x, _ = images
    with two_devices().scope():
        model = packnet_tf.wrap(network(classes=None), head=None, **OWN)
        compile_model(model, "adam")
    model.add_task("task_1", units=4)
    model.prune(0.5)
    model.freeze_task()
    before, computed = state(model), outputs(model, x)
    learn(model, images, "task_2", freeze=False)
    model.remove_task("task_2")
    for variable in model.variables:
        replicas = {v.numpy().tobytes() for v in variable.value.values}
        assert len(replicas) == 1, variable.path
    assert state(model) == before
    np.testing.assert_array_equal(model(x), computed["task_1"])
    learn(model, images, "task_2")
    assert list(model.verify()) == ["task_1", "task_2"]


def test_a_model_that_is_not_compiled_stays_so(network):
    model = packnet_tf.wrap(network(), task="one")
    model.prune(0.5)
    model.freeze_task()
    model.add_task("two", units=3)
    model.remove_task("two")
    assert not model.compiled
    assert model.task_names == ["one"]
    model.add_task("two", units=5)
    assert model.task == "two"


def test_a_changed_task_is_removed_but_none_that_builds_on_it(make, images):
    model = make()
    before = state(model)
    learn(model, images, "task_3")
    kernel = model.backbone.get_layer("dense").layer.kernel
    owner = model.backbone.get_layer("dense").owners[0].numpy()
    kernel.assign(np.where(owner == 3, 9.0, kernel.numpy()))
    with pytest.raises(FingerprintError, match="task_3"):
        model.verify()
    model.remove_task("task_3")
    assert state(model) == before
    # But nothing is removed from under one.
    learn(model, images, "task_3")
    kernel.assign(np.where(owner == 2, 9.0, kernel.numpy()))
    with Unchanged(model), pytest.raises(FingerprintError, match="task_2"):
        model.remove_task("task_3")
    with Unchanged(model), pytest.raises(FingerprintError, match="task_2"):
        model.verify()
    model.remove_task("task_2", also=["task_3"])
    assert list(model.verify()) == ["task_1"]


def test_a_changed_task_can_be_removed_from_a_file(make, images, tmp_path):
    model = make()
    learn(model, images, "task_3")
    model.save(tmp_path / "good.keras")
    head = model.heads["task_3"].variables[0]
    loaded = keras.saving.load_model(tmp_path / "good.keras")
    loaded.heads["task_3"].variables[0].assign(head.numpy() + 1.0)
    loaded.remove_task("task_3")
    assert list(loaded.verify()) == ["task_1", "task_2"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("task_1",), TaskError, "task 1"),
        (("task_1", ["task_2", "task_3"]), TaskError, "task 1"),
        (("task_2",), TaskError, "task_3"),
        (("task_2", ["task_1", "task_3"]), TaskError, "no other"),
        (("task_2", ["task_3", "task_4"]), TaskError, "task_4"),
        (("task_2", ["task_2", "task_3"]), TaskError, "no other"),
        (("task_3", ["task_2"]), TaskError, "also"),
        (("task_2", "task_3"), ArgumentError, "also"),
        (("task_2", None), ArgumentError, "also"),
        (("task_2", 3), ArgumentError, "also"),
        (("nine",), TaskError, "nine"),
        ((None,), TaskError, "None"),
    ],
)
def test_what_cannot_be_removed_is_refused(
    three_tasks, arguments, error, message
):
    with Unchanged(three_tasks), pytest.raises(error, match=message) as caught:
        three_tasks.remove_task(*arguments)
    assert "Received: " in str(caught.value)


def test_nothing_is_removed_from_a_model_without_tasks(network):
    model = packnet_tf.wrap(network(classes=None), head=None)
    with Unchanged(model), pytest.raises(TaskError, match="add_task"):
        model.remove_task("one")


def test_a_task_in_its_first_stage_is_not_removed_if_it_is_task_1(packed):
    with Unchanged(packed), pytest.raises(TaskError, match="wrap"):
        packed.remove_task("one")


def test_removing_waits_for_the_end_of_fit(make, images):
    model = make((0.5,))
    model.add_task("task_2", units=4)

    class Removing(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.remove_task("task_2")

    with pytest.raises(StageError, match="fit"):
        model.fit(*images, callbacks=[Removing()], verbose=0)
    assert model.task_names == ["task_1", "task_2"]
