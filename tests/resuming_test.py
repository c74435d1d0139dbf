"""A sequence that stops halfway, and goes on from its checkpoint."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import Unchanged
from helpers import all_values
from helpers import assert_same_values
from helpers import compile_model

import packnet_tf
from packnet_tf import locks
from packnet_tf import sequence
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import FileError
from packnet_tf.errors import StageError
from packnet_tf.errors import TaskError
from packnet_tf.sequence import TaskPlan


class Interrupted(Exception):
    """Stands for whatever ends a run."""


class Interrupting(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise Interrupted


def interrupt_at(*place):
    """Returns callbacks that end the run: at a task, a phase and an epoch."""
    return lambda plan, phase: (
        [Interrupting(place[2])] if place[:2] == (plan.name, phase) else []
    )


def plan(name, images, **changes):
    x, y = images
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    arguments = {"units": 4, "epochs": 2, "retrain_epochs": 1, **changes}
    return TaskPlan(name, arguments.pop("train", data), **arguments)


def wrapped(network, **kwargs):
    keras.utils.set_random_seed(7)
    return packnet_tf.wrap(network(classes=None), **kwargs)


def eager(model, plan, phase):
    compile_model(model, run_eagerly=True)


def refuse_to_compile(model, plan, phase):
    raise AssertionError("compiled again")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def with_schedule():
    return keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.1, 9))


def with_averages():
    return keras.optimizers.AdamW(0.02, use_ema=True, ema_momentum=0.5)


def with_loss_scale():
    return keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.1, momentum=0.9), dynamic_growth_steps=3
    )


@pytest.fixture
def float16():
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize(
    ("make", "compiled"),
    [
        (with_schedule, {"jit_compile": "auto"}),
        (with_averages, {"run_eagerly": True}),
        (with_loss_scale, {"run_eagerly": True}),
        (
            lambda: keras.optimizers.SGD(0.1, momentum=0.9),
            {"run_eagerly": True},
        ),
    ],
    ids=["schedule", "averages", "loss_scale", "scaled_by_keras"],
)
def test_an_optimizer_goes_on(
    make, compiled, network, images, tmp_path, request
):
    if "scale" in request.node.name:
        request.getfixturevalue("float16")
    plans = [plan("one", images, epochs=3)]

    def compile_fn(model, plan, phase):
        compile_model(model, make(), **compiled)

    whole = wrapped(network)
    expected = sequence.run(whole, plans, compile_fn, seed=3, verbose=0)
    with pytest.raises(Interrupted):
        sequence.run(
            wrapped(network),
            plans,
            compile_fn,
            interrupt_at("one", "train", 2),
            checkpoint_dir=tmp_path,
            seed=3,
            verbose=0,
        )
    model = sequence.restore(tmp_path)
    kind = type(model.optimizer)
    assert int(model.steps.numpy()) == int(model.optimizer.iterations) == 8
    assert ("scale" in request.node.name) == (
        kind is keras.optimizers.LossScaleOptimizer
    )
    found = sequence.run(
        model,
        plans,
        refuse_to_compile,
        checkpoint_dir=tmp_path,
        seed=3,
        verbose=0,
    )
    assert found == expected
    assert_same_values(all_values(whole), all_values(model))


def run_to_the_end(network, plans, folder, *places, **kwargs):
    """Runs a sequence that is interrupted at places."""
    for place in places:
        model = sequence.restore(folder) or wrapped(network)
        with pytest.raises(Interrupted):
            sequence.run(
                model,
                plans,
                eager,
                interrupt_at(*place),
                checkpoint_dir=folder,
                verbose=0,
                **kwargs,
            )
    model = sequence.restore(folder) or wrapped(network)
    results = sequence.run(
        model, plans, eager, checkpoint_dir=folder, verbose=0, **kwargs
    )
    return model, results


def test_a_sequence_goes_on_wherever_it_stopped(network, images, tmp_path):
    x, y = images
    plans = [
        plan("one", images, sparsity=0.5),
        plan("two", (x + 1.0, y), sparsity=0.5, warmup_epochs=2),
    ]
    whole, expected = run_to_the_end(network, plans, tmp_path / "a", seed=1)
    broken, found = run_to_the_end(
        network,
        plans,
        tmp_path / "b",
        ("one", "train", 0),
        ("one", "train", 1),
        ("one", "train", 1),
        ("one", "retrain", 0),
        ("two", "warmup", 0),
        ("two", "warmup", 1),
        ("two", "train", 0),
        ("two", "train", 1),
        ("two", "retrain", 0),
        seed=1,
    )
    assert found == expected
    assert_same_values(all_values(whole), all_values(broken))
    assert [len(result.history) for result in found] == [3, 5]


def test_what_compiling_draws_changes_nothing_for_a_phase_that_goes_on(
    network, images, tmp_path
):
    """Pruned at random in the epoch after the one that was saved."""
    plans = [
        plan(
            "one",
            images,
            schedule=lambda step: (step == 6, 0.5),
            criterion="random",
        )
    ]

    def compile_fn(model, plan, phase):
        np.random.random(5)
        eager(model, plan, phase)

    whole = wrapped(network)
    expected = sequence.run(whole, plans, compile_fn, seed=1, verbose=0)
    with pytest.raises(Interrupted):
        sequence.run(
            wrapped(network),
            plans,
            compile_fn,
            interrupt_at("one", "train", 1),
            checkpoint_dir=tmp_path,
            seed=1,
            verbose=0,
        )
    model = sequence.restore(tmp_path)
    found = sequence.run(
        model, plans, compile_fn, checkpoint_dir=tmp_path, seed=1, verbose=0
    )
    assert found == expected
    assert_same_values(all_values(whole), all_values(model))


def test_patience_holds_across_a_restart(network, images, tmp_path):
    plans = [
        plan("one", images, epochs=9, patience=3, monitor="sparsity"),
    ]

    def still(plan, phase):
        class Still(keras.callbacks.Callback):
            def on_epoch_end(self, epoch, logs=None):
                logs["sparsity"] = 0.0

        return [Still(), *interrupt_at("one", "train", 2)(plan, phase)]

    with pytest.raises(Interrupted):
        sequence.run(
            wrapped(network),
            plans,
            eager,
            still,
            checkpoint_dir=tmp_path,
            verbose=0,
        )
    (result,) = sequence.run(
        sequence.restore(tmp_path),
        plans,
        eager,
        lambda plan, phase: still(plan, phase)[:1],
        checkpoint_dir=tmp_path,
        verbose=0,
    )
    assert len(result.history) == 4


def test_a_phase_that_ended_early_is_not_prolonged(network, images, tmp_path):
    """Interrupted between its last epoch and the end of `fit`."""
    plans = [plan("one", images, epochs=9, patience=1, monitor="steps")]

    class Worsening(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["steps"] = float(self.model.steps)

    class Ending(Worsening):
        def on_train_end(self, logs=None):
            raise Interrupted

    with pytest.raises(Interrupted):
        sequence.run(
            wrapped(network),
            plans,
            eager,
            lambda plan, phase: [Ending()],
            checkpoint_dir=tmp_path,
            verbose=0,
        )
    (result,) = sequence.run(
        sequence.restore(tmp_path),
        plans,
        refuse_to_compile,
        lambda plan, phase: [Worsening()],
        checkpoint_dir=tmp_path,
        verbose=0,
    )
    assert [logs["steps"] for logs in result.history] == [4.0, 8.0]


def test_a_phase_goes_on_with_its_epoch_and_its_data(network, images, tmp_path):
    x, y = images
    began, epochs = [], []

    def train(epoch):
        began.append(epoch)
        data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8).repeat()
        return data.skip(4 * epoch)

    class Counting(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            epochs.append(epoch)

    plans = [
        plan(
            "one",
            images,
            train=train,
            steps_per_epoch=4,
            sparsity=0.5,
            retrain_epochs=3,
        )
    ]

    def stop(plan, phase):
        return [Counting(), *interrupt_at("one", "retrain", 1)(plan, phase)]

    model = wrapped(network)
    with pytest.raises(Interrupted):
        sequence.run(
            model, plans, eager, stop, checkpoint_dir=tmp_path, verbose=0
        )
    assert began == [0, 2]
    assert epochs == [0, 1, 0]
    (result,) = sequence.run(
        sequence.restore(tmp_path),
        plans,
        refuse_to_compile,
        lambda plan, phase: [Counting()],
        checkpoint_dir=tmp_path,
        verbose=0,
    )
    assert began == [0, 2, 3]
    assert epochs == [0, 1, 0, 1, 2]
    assert len(result.history) == 5


def test_a_frozen_task_is_told_again_if_telling_was_cut_short(
    network, images, tmp_path
):
    brief = {"epochs": 1, "retrain_epochs": 0, "sparsity": 0.5}
    plans = [plan(name, images, **brief) for name in ("one", "two")]
    told = []

    def on_frozen(plan, result):
        told.append(result)
        if len(told) == 1:
            raise Interrupted

    with pytest.raises(Interrupted):
        sequence.run(
            wrapped(network),
            plans,
            eager,
            on_frozen=on_frozen,
            checkpoint_dir=tmp_path,
            verbose=0,
        )
    model = sequence.restore(tmp_path)
    assert model.stage is packnet_tf.Stage.FROZEN
    results = sequence.run(
        model,
        plans,
        eager,
        on_frozen=on_frozen,
        checkpoint_dir=tmp_path,
        verbose=0,
    )
    assert told == [results[0], *results]


def test_a_finished_sequence_trains_no_more_but_takes_more_tasks(
    network, images, tmp_path
):
    plans = [plan("one", images, epochs=1, sparsity=0.5)]
    model, results = run_to_the_end(network, plans, tmp_path)
    before = contents(tmp_path)
    again = sequence.restore(tmp_path)
    with Unchanged(again):
        assert results == sequence.run(
            again,
            plans,
            refuse_to_compile,
            on_frozen=refuse_to_compile,
            checkpoint_dir=tmp_path,
        )
    assert contents(tmp_path) == before
    plans.append(plan("two", images, epochs=1))
    more = sequence.run(model, plans, eager, checkpoint_dir=tmp_path, verbose=0)
    assert more[:1] == results
    assert [result.name for result in more] == ["one", "two"]
    restored = sequence.restore(tmp_path)
    assert restored.task_names == ["one", "two"]
    assert restored.verify().keys() == {"one", "two"}


def test_without_a_folder_nothing_is_written(
    network, images, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    sequence.run(
        wrapped(network), [plan("one", images, epochs=1)], eager, verbose=0
    )
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_changes_nothing_of_what_is_learned(
    network, images, tmp_path
):
    plans = [plan("one", images, sparsity=0.5), plan("two", images)]
    both = []
    for folder in (None, tmp_path):
        model = wrapped(network)
        results = sequence.run(
            model, plans, eager, checkpoint_dir=folder, verbose=0
        )
        both.append((results, all_values(model)))
    assert both[0][0] == both[1][0]
    assert_same_values(both[0][1], both[1][1])


@pytest.fixture
def stopped(network, images, tmp_path):
    """A folder with a sequence that has made one epoch of two."""
    with pytest.raises(Interrupted):
        sequence.run(
            wrapped(network),
            [plan("one", images)],
            eager,
            interrupt_at("one", "train", 1),
            checkpoint_dir=tmp_path,
            verbose=0,
        )
    return tmp_path


def test_another_model_or_plan_changes_nothing(stopped, network, images):
    before = contents(stopped)
    plans = [plan("one", images)]

    def refused(error, match, model, plans, **kwargs):
        with Unchanged(model), pytest.raises(error, match=match):
            sequence.run(model, plans, eager, checkpoint_dir=stopped, **kwargs)
        assert contents(stopped) == before

    refused(StageError, "sequence.restore", wrapped(network), plans)
    model = sequence.restore(stopped)
    refused(ArgumentError, "epochs=3", model, [plan("one", images, epochs=3)])
    refused(ArgumentError, "checkpoint_dir", model, plans, seed=1)
    refused(ArgumentError, "more tasks", model, [])
    eager(model, None, None)
    refused(StageError, "compiled in between", model, plans)


def test_two_processes_do_not_share_a_checkpoint(stopped, images):
    plans = [plan("one", images)]
    model = sequence.restore(stopped)
    with locks.locked(stopped):  # As another process does.
        before = contents(stopped)
        with Unchanged(model), pytest.raises(FileError, match="Another"):
            sequence.run(model, plans, eager, checkpoint_dir=stopped)
        assert contents(stopped) == before
    locked = []

    def look(plan, result):
        with pytest.raises(FileError), locks.locked(stopped):
            pass
        locked.append(plan.name)

    sequence.run(
        model,
        plans,
        eager,
        on_frozen=look,
        checkpoint_dir=stopped,
        verbose=0,
    )
    assert locked == ["one"]
    assert len(contents(stopped)) == 2


def test_what_a_kill_has_left_of_a_finished_sequence_goes(
    network, images, tmp_path
):
    plans = [plan("one", images, epochs=1)]
    run_to_the_end(network, plans, tmp_path)
    before = contents(tmp_path)
    (tmp_path / ".lock").write_text("")
    (tmp_path / "checkpoint-000009.keras").write_text("never named")
    run_to_the_end(network, plans, tmp_path)
    assert contents(tmp_path) == before


def test_what_cannot_begin_leaves_no_checkpoint(network, images, tmp_path):
    model = wrapped(network)
    model.add_task("one", units=4)
    for name, error in (("two", StageError), ("one", TaskError)):
        with Unchanged(model), pytest.raises(error, match="Received:"):
            sequence.run(
                model,
                [plan(name, images)],
                eager,
                checkpoint_dir=tmp_path / "a" / "runs",
            )
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told_before_training(
    network, images, tmp_path
):
    (tmp_path / "file").write_text("mine")
    model = wrapped(network)
    with Unchanged(model), pytest.raises(FileError, match="Received:"):
        sequence.run(
            model,
            [plan("one", images)],
            refuse_to_compile,
            checkpoint_dir=tmp_path / "file" / "runs",
        )


def test_nothing_is_restored_where_nothing_is(tmp_path):
    assert sequence.restore(tmp_path) is None
    assert sequence.restore(tmp_path / "missing") is None
    (tmp_path / "progress.json").write_text("{}")
    with pytest.raises(FileError, match="Received: checkpoint_dir="):
        sequence.restore(tmp_path)


def own_loss(y_true, y_pred):
    return keras.losses.sparse_categorical_crossentropy(y_true, y_pred)


def test_a_loss_of_ones_own_has_to_be_known(network, images, tmp_path):
    plans = [plan("one", images)]

    def compile_fn(model, plan, phase):
        model.compile("sgd", own_loss, run_eagerly=True)

    with pytest.raises(Interrupted):
        sequence.run(
            wrapped(network),
            plans,
            compile_fn,
            interrupt_at("one", "train", 1),
            checkpoint_dir=tmp_path,
            verbose=0,
        )
    with pytest.raises(FileError, match="own_loss") as info:
        sequence.restore(tmp_path)
    assert "register_keras_serializable" in str(info.value)
    assert str(tmp_path) in str(info.value)
    with keras.saving.custom_object_scope({"own_loss": own_loss}):
        model = sequence.restore(tmp_path)
    (result,) = sequence.run(
        model, plans, refuse_to_compile, checkpoint_dir=tmp_path, verbose=0
    )
    assert len(result.history) == 2
