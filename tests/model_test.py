import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import all_values
from helpers import assert_same_values
from helpers import compile_model

import packnet_tf
from packnet_tf import Stage
from packnet_tf import ownership
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import FingerprintError
from packnet_tf.errors import StageError
from packnet_tf.errors import TaskError

L = keras.layers


def owner_maps(model):
    return {
        entry.key: entry.owner.numpy()
        for entry in model.summary_protection(print_fn=len)
        if entry.owner is not None
    }


def test_five_tasks_in_a_row_never_change(packed, images, finish_task):
    x, y = images
    seen = {}
    for number, name in enumerate(["one", "two", "three", "four", "five"], 1):
        if number > 1:
            packed.add_task(name, units=4 + number)
        finish_task(packed, x, y, sparsity=0.5 if number < 5 else None)
        seen[name] = (
            np.array(packed(x, task=name)),
            packed.predict(x, verbose=0, task=name),
            packed.evaluate(x, y, verbose=0, task=name),
        )
        for task, (eager, predicted, evaluated) in seen.items():
            np.testing.assert_array_equal(eager, packed(x, task=task))
            np.testing.assert_array_equal(
                predicted, packed.predict(x, verbose=0, task=task)
            )
            assert evaluated == packed.evaluate(x, y, verbose=0, task=task)
    assert list(packed.verify()) == list(seen)
    assert packed.summary_capacity(print_fn=len).free == 0


def test_tasks_differ(packed, images, finish_task):
    x, y = images
    finish_task(packed, x, y)
    packed.add_task("two", units=4)
    packed.fit(x, y, verbose=0)
    assert not np.array_equal(packed(x, task="one"), packed(x, task="two"))


def test_prune_releases_exact_shares_of_the_pool(packed, images, finish_task):
    x, y = images
    finish_task(packed, x, y, sparsity=0.5)
    before = owner_maps(packed)
    packed.add_task("two", units=4)
    released = packed.prune(0.3)
    total = 0
    for key, owner in owner_maps(packed).items():
        pool = int((before[key] == 0).sum())
        assert (owner == 0).sum() == round(0.3 * pool)
        assert (owner[before[key] == 1] == 1).all()
        total += round(0.3 * pool)
    assert released == total


def test_released_weights_are_zero_and_stay_zero(packed, images):
    x, y = images
    packed.fit(x, y, verbose=0)
    packed.prune(0.6)
    packed.fit(x, y, epochs=2, verbose=0)
    for entry in packed.summary_protection(print_fn=len):
        if entry.owner is not None:
            free = entry.owner.numpy() == 0
            assert free.any()
            assert (entry.variable.numpy()[free] == 0).all()


def test_freeze_task_refuses_released_weights_that_were_put_back(
    packed, images
):
    entry = next(
        e for e in packed.summary_protection(len) if e.owner is not None
    )
    before = entry.variable.numpy()
    packed.prune(0.6)
    entry.variable.assign(before)
    with pytest.raises(StageError, match="not zero"):
        packed.freeze_task()
    assert packed.prune(0.6) == 0
    outputs = packed(images[0]).numpy()
    packed.freeze_task()
    packed.add_task("two", units=4)
    np.testing.assert_array_equal(outputs, packed(images[0], task="one"))


def test_prune_keeps_the_largest(packed):
    kernel = packed.backbone.get_layer("dense").layer.kernel
    before = np.abs(kernel.numpy())
    packed.prune(0.25)
    owner = owner_maps(packed)["dense/kernel"]
    assert before[owner == 0].max() <= before[owner == 1].min()


def test_prune_by_zero_begins_retraining_and_releases_nothing(packed):
    before = all_values(packed.backbone)
    assert packed.prune(0.0) == 0
    assert packed.stage is Stage.RETRAIN
    assert_same_values(before, all_values(packed.backbone))


def test_prune_again_counts_from_the_whole_pool(packed):
    packed.prune(0.25)
    packed.prune(0.25)
    packed.prune(0.5)
    for owner in owner_maps(packed).values():
        assert (owner == 0).sum() == round(0.5 * owner.size)
    assert packed.sparsity == 0.5


def test_a_share_that_rounds_to_zero_is_no_error(images, finish_task):
    model = packnet_tf.wrap(
        keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                L.Flatten(),
                L.Dense(1, use_bias=False, name="narrow"),
                L.Dense(1, name="single"),
                L.Dense(4, "softmax"),
            ]
        ),
        task="one",
    )
    compile_model(model)
    x, y = images
    outputs = {}
    for number in range(4):
        if number:
            model.add_task(f"task{number}", units=4)
        finish_task(model, x, y, sparsity=0.4)
        outputs[model.task] = model.predict(x, verbose=0)
    single = owner_maps(model)["single/kernel"]
    assert single.tolist() == [[1]]
    for task, before in outputs.items():
        np.testing.assert_array_equal(
            before, model.predict(x, verbose=0, task=task)
        )


def test_stages_follow_each_other(packed):
    assert packed.stage is Stage.TRAIN
    packed.prune(0.5)
    assert packed.stage is Stage.RETRAIN
    packed.freeze_task()
    assert packed.stage is Stage.FROZEN
    packed.add_task("two", units=3)
    assert packed.stage is Stage.TRAIN
    assert packed.task_names == ["one", "two"]


def test_biases_and_normalization_freeze_with_task_1(
    packed, images, finish_task
):
    x, y = images
    fixed = [
        entry.variable
        for entry in packed.summary_protection(print_fn=len)
        if entry.protection == packnet_tf.inventory.FROZEN
    ]
    assert len(fixed) == 7
    start = [variable.numpy() for variable in fixed]
    finish_task(packed, x, y)
    after_one = [variable.numpy() for variable in fixed]
    assert all((a != b).any() for a, b in zip(start, after_one))
    packed.add_task("two", units=4)
    finish_task(packed, x + 3.0, y)
    for before, variable in zip(after_one, fixed):
        np.testing.assert_array_equal(before, variable.numpy())


def test_unfreezing_by_hand_does_not_last(packed, images, finish_task):
    x, y = images
    finish_task(packed, x, y)
    before = packed.predict(x, verbose=0)
    packed.add_task("two", units=4)
    packed.trainable = False  # Setting what it is already does nothing.
    packed.trainable = True
    packed.backbone.get_layer("norm").trainable = True
    packed.fit(x + 3.0, y, verbose=0)
    np.testing.assert_array_equal(
        before, packed.predict(x, verbose=0, task="one")
    )
    packed.verify()


def test_set_task_chooses_what_is_computed(packed, images, finish_task):
    x, y = images
    finish_task(packed, x, y)
    packed.add_task("two", units=6)
    assert packed(x).shape == (32, 6)
    before = all_values(packed)
    packed.set_task("one")
    assert packed.task == "one"
    assert packed(x).shape == (32, 4)
    assert packed.predict(x, verbose=0).shape == (32, 4)
    assert packed.predict_on_batch(x).shape == (32, 4)
    assert packed.evaluate(x, y, verbose=0) == packed.evaluate(
        x, y, verbose=0, task="one"
    )
    assert packed.test_on_batch(x, y) == pytest.approx(
        packed.evaluate(x, y, verbose=0)
    )
    packed.set_task("two")
    assert packed(x).shape == (32, 6)
    assert_same_values(before, all_values(packed))


def test_each_task_is_computed_by_its_name_whatever_is_active(
    packed, images, finish_task
):
    x, y = images
    finish_task(packed, x, y)
    packed.add_task("two", units=6)
    packed.set_task("one")
    for _ in range(2):
        assert packed.predict(x, verbose=0, task="two").shape == (32, 6)
        assert packed.predict(x, verbose=0).shape == (32, 4)
        np.testing.assert_array_equal(
            packed.predict_on_batch(x, task="two"),
            packed.predict(x, verbose=0, task="two"),
        )
        packed.set_task("two")
        assert packed.predict(x, verbose=0).shape == (32, 6)
        assert packed.predict(x, verbose=0, task="one").shape == (32, 4)
        packed.set_task("one")


def test_an_uncompiled_model_predicts_the_task_of_now(network, images):
    x, _ = images
    model = packnet_tf.wrap(network(), task="one")
    before = model.predict(x, verbose=0)
    model.prune(0.5)
    pruned = model.predict(x, verbose=0)
    assert (before != pruned).any()
    model.freeze_task()
    model.add_task("two", units=6)
    assert model.predict(x, verbose=0).shape == (32, 6)
    for entry in model.summary_protection(print_fn=len):
        if entry.owner is not None:
            entry.variable.assign(
                np.where(
                    entry.owner.numpy() == 2, np.nan, entry.variable.numpy()
                )
            )
    np.testing.assert_array_equal(
        pruned, model.predict(x, verbose=0, task="one")
    )


def test_add_task_takes_any_head(packed, images, finish_task):
    x, y = images
    finish_task(packed, x, y)
    head = keras.Sequential([L.Dense(7, "relu"), L.Dense(4, "softmax")])
    packed.add_task("two", head=head)
    finish_task(packed, x, y)
    packed.add_task("three", head=L.Dense(4, "softmax"))
    finish_task(packed, x, y)
    assert packed.predict(x, verbose=0, task="two").shape == (32, 4)


def test_add_task_without_room_warns_and_trains_the_head(
    packed, images, finish_task
):
    x, y = images
    finish_task(packed, x, y, sparsity=None)
    with pytest.warns(UserWarning, match="owns no weight"):
        packed.add_task("two", units=4)
    head = packed.heads["two"].trainable_variables[0].numpy()
    before = packed.predict(x, verbose=0, task="one")
    packed.fit(x, y, verbose=0)
    assert (head != packed.heads["two"].trainable_variables[0].numpy()).any()
    with pytest.raises(StageError, match="empty pool"):
        packed.prune(0.5)
    packed.freeze_task()
    np.testing.assert_array_equal(
        before, packed.predict(x, verbose=0, task="one")
    )


def test_regularizers_count_while_a_task_trains(images):
    x, y = images
    model = packnet_tf.wrap(
        keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                L.Flatten(),
                L.Dense(5, kernel_regularizer="l2", activity_regularizer="l1"),
                L.Dense(4, "softmax", kernel_regularizer="l2"),
            ]
        ),
        task="one",
    )
    compile_model(model)
    model(x)
    assert len(model.losses) == 3
    model.fit(x, y, verbose=0)
    model.prune(0.5)
    model.freeze_task()
    model(x)
    assert len(model.losses) == 1
    before = model.evaluate(x, y, verbose=0)
    model.add_task("two", units=4)
    model.fit(x, y, verbose=0)
    assert model.evaluate(x, y, verbose=0, task="one") == before


FORBIDDEN = {
    "fit_frozen": (
        lambda m, x, y: m.freeze_task(),
        lambda m, x, y: m.fit(x, y, verbose=0),
        StageError,
        "add_task",
    ),
    "train_on_batch_frozen": (
        lambda m, x, y: m.freeze_task(),
        lambda m, x, y: m.train_on_batch(x, y),
        StageError,
        "add_task",
    ),
    "fit_an_older_task": (
        lambda m, x, y: (
            m.prune(0.5),
            m.freeze_task(),
            m.add_task("two", units=4),
            m.set_task("one"),
        ),
        lambda m, x, y: m.fit(x, y, verbose=0),
        StageError,
        "set_task",
    ),
    "train_an_older_task": (
        lambda m, x, y: (
            m.prune(0.5),
            m.freeze_task(),
            m.add_task("two", units=4),
        ),
        lambda m, x, y: m(x, training=True, task="one"),
        StageError,
        "inference",
    ),
    "prune_frozen": (
        lambda m, x, y: m.freeze_task(),
        lambda m, x, y: m.prune(0.5),
        StageError,
        "add_task",
    ),
    "freeze_twice": (
        lambda m, x, y: m.freeze_task(),
        lambda m, x, y: m.freeze_task(),
        StageError,
        "add_task",
    ),
    "prune_to_less": (
        lambda m, x, y: m.prune(0.5),
        lambda m, x, y: m.prune(0.4),
        StageError,
        "only grows",
    ),
    "add_before_freezing": (
        lambda m, x, y: None,
        lambda m, x, y: m.add_task("two", units=4),
        StageError,
        "freeze_task",
    ),
    "percentage": (
        lambda m, x, y: None,
        lambda m, x, y: m.prune(75),
        ArgumentError,
        "0.75",
    ),
    "unknown_criterion": (
        lambda m, x, y: None,
        lambda m, x, y: m.prune(0.5, "size"),
        ArgumentError,
        "magnitude",
    ),
    "same_name": (
        lambda m, x, y: m.freeze_task(),
        lambda m, x, y: m.add_task("one", units=4),
        TaskError,
        "own name",
    ),
    "no_name": (
        lambda m, x, y: m.freeze_task(),
        lambda m, x, y: m.add_task("a/b", units=4),
        TaskError,
        "letters",
    ),
    "no_head": (
        lambda m, x, y: m.freeze_task(),
        lambda m, x, y: m.add_task("two"),
        ArgumentError,
        "units",
    ),
    "head_that_does_not_fit": (
        lambda m, x, y: m.freeze_task(),
        lambda m, x, y: m.add_task("two", head=L.Conv2D(3, 3)),
        ArgumentError,
        "features",
    ),
    "shared_head": (
        lambda m, x, y: m.freeze_task(),
        lambda m, x, y: m.add_task("two", head=m.heads["one"]),
        ArgumentError,
        "one task alone",
    ),
    "unknown_task": (
        lambda m, x, y: None,
        lambda m, x, y: m.predict(x, verbose=0, task="nine"),
        TaskError,
        "no such task",
    ),
    "unknown_set_task": (
        lambda m, x, y: None,
        lambda m, x, y: m.set_task("nine"),
        TaskError,
        "no such task",
    ),
    "unknown_export": (
        lambda m, x, y: None,
        lambda m, x, y: m.export_task("nine", "nowhere"),
        TaskError,
        "no such task",
    ),
}


@pytest.mark.filterwarnings("ignore:Task 'two' owns no weight")
@pytest.mark.parametrize("case", FORBIDDEN)
def test_forbidden_moves_raise_and_change_nothing(case, packed, images):
    prepare, act, error, match = FORBIDDEN[case]
    prepare(packed, *images)
    before = all_values(packed), packed.get_config()
    with pytest.raises(error, match=match) as caught:
        act(packed, *images)
    assert "Received:" in str(caught.value)
    assert_same_values(before[0], all_values(packed))
    assert before[1] == packed.get_config()


@pytest.mark.parametrize("action", ["prune", "freeze", "fit", "export"])
def test_a_model_without_tasks_asks_for_one(action, network, images, tmp_path):
    model = packnet_tf.wrap(network(classes=None))
    compile_model(model)
    calls = {
        "prune": lambda: model.prune(0.5),
        "freeze": model.freeze_task,
        "fit": lambda: model.fit(*images, verbose=0),
        "export": lambda: model.export(tmp_path / "all"),
    }
    with pytest.raises(StageError, match="add_task"):
        calls[action]()


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("weight", "dense/kernel"),
        ("owner", "conv/kernel"),
        ("bias", "dense/bias"),
        ("statistics", "norm/moving_mean"),
        ("head", "top/kernel"),
    ],
)
def test_verify_names_what_was_damaged(
    kind, named, packed, images, finish_task
):
    finish_task(packed, *images)
    packed.add_task("two", units=4)
    finish_task(packed, *images)
    packed.verify()
    backbone = packed.backbone
    variable = {
        "weight": backbone.get_layer("dense").layer.kernel,
        "owner": backbone.get_layer("conv").owners[0],
        "bias": backbone.get_layer("dense").layer.bias,
        "statistics": backbone.get_layer("norm").moving_mean,
        "head": packed.heads["one"].get_layer("top").kernel,
    }[kind]
    value = variable.numpy()
    flat = value.reshape(-1).view("uint8")
    index = 0
    if kind == "weight":
        owner = owner_maps(packed)["dense/kernel"].reshape(-1)
        index = 4 * int(np.flatnonzero(owner == 1)[0])
    flat[index] ^= 1
    if kind == "owner":
        value[...] = np.where(value == 1, 2, value)
    variable.assign(value)
    with pytest.raises(FingerprintError, match=named) as caught:
        packed.verify()
    assert "'one'" in str(caught.value)
    assert "Received:" in str(caught.value)


def test_verify_counts_the_entries_that_were_damaged(
    packed, images, finish_task, tmp_path
):
    finish_task(packed, *images)
    owner = owner_maps(packed)["dense/kernel"]
    packed.save(tmp_path / "packed.keras")
    packed = packnet_tf.load_model(tmp_path / "packed.keras")
    kernel = packed.backbone.get_layer("dense").layer.kernel
    value = kernel.numpy()
    value[tuple(np.argwhere(owner == 1)[0])] += 1
    kernel.assign(value)
    owned = np.count_nonzero(owner == 1)
    with pytest.raises(
        FingerprintError,
        match=f"'dense/kernel' in its backbone, in 1 entry of {owned:,}",
    ):
        packed.verify()


def test_verify_returns_what_it_checked(packed, images, finish_task):
    assert packed.verify() == {}
    finish_task(packed, *images)
    first = packed.verify()["one"]
    packed.add_task("two", units=4)
    packed.fit(*images, verbose=0)
    fingerprint = packed.freeze_task()
    proofs = packed.verify()
    owners = owner_maps(packed)
    backbone = packed.summary_protection(print_fn=len)
    rest = sum(
        entry.variable.numpy().size
        for entry in backbone
        if entry.protection == "frozen after task 1"
    )
    checked = [entry for entry in backbone if "random" not in entry.protection]
    assert list(proofs) == ["one", "two"]
    assert proofs["one"] == first
    assert proofs["two"].fingerprint == fingerprint
    for number, (name, proof) in enumerate(proofs.items(), 1):
        head = packed.heads[name].variables
        visible = sum(
            np.count_nonzero((owner > 0) & (owner <= number))
            for owner in owners.values()
        )
        assert isinstance(proof, packnet_tf.Proof)
        assert proof.variables == len(checked) + len(head)
        assert proof.entries == (
            visible + rest + sum(variable.numpy().size for variable in head)
        )


def test_a_file_without_sketches_still_verifies(packed, images, finish_task):
    finish_task(packed, *images)
    config = packed.get_config()
    del config["tasks"][0]["record"]["sketches"]
    older = packnet_tf.PackNetModel.from_config(config)
    older.set_weights(packed.get_weights())
    assert older.verify() == packed.verify()
    bias = older.backbone.get_layer("dense").layer.bias
    bias.assign(bias + 1.0)
    with pytest.raises(
        FingerprintError, match=r"'dense/bias' in its backbone\. Of its "
    ):
        older.verify()


def test_verify_finds_one_flipped_bit_of_a_later_task_only_there(
    packed, images, finish_task
):
    finish_task(packed, *images)
    packed.add_task("two", units=4)
    finish_task(packed, *images)
    kernel = packed.backbone.get_layer("dense").layer.kernel
    value = kernel.numpy()
    index = np.argwhere(owner_maps(packed)["dense/kernel"] == 2)[0]
    value[tuple(index)] = np.nextafter(value[tuple(index)], np.float32(9))
    kernel.assign(value)
    with pytest.raises(FingerprintError, match="Task 'two'"):
        packed.verify()


def test_verify_finds_a_changed_variable_of_which_a_copy_is_kept(
    network, images
):
    model = packnet_tf.wrap(network(), task="one", biases="per_task")
    model.freeze_task()
    model.verify()
    entry = next(
        entry
        for entry in model.summary_protection(print_fn=len)
        if entry.protection == "per task"
    )
    before = model(images[0]).numpy()
    entry.variable.assign(entry.variable + 1.0)
    assert not np.array_equal(before, model(images[0]))
    with pytest.raises(FingerprintError, match=entry.key):
        model.verify()


@pytest.mark.parametrize(
    "kept",
    [{}, {"biases": "per_task", "normalization": "per_task"}],
    ids=["frozen", "per_task"],
)
def test_trainable_variables_are_those_of_keras_in_its_order(kept, network):
    inner = network(classes=0)
    mixed = keras.Sequential(
        [keras.Input((8, 8, 1)), inner, L.Dropout(0.1), L.Dense(5), L.PReLU()]
    )
    model = packnet_tf.wrap(mixed, **kept)
    for name in ("one", "two", "three"):
        model.add_task(name, head=L.Dense(3))
        for _ in range(2):
            expected = [v for v in model.variables if v.trainable]
            trained = model.trainable_variables
            assert [id(v) for v in trained] == [id(v) for v in expected]
            assert model.trainable_weights == trained
            others = model.non_trainable_variables
            assert len(trained) + len(others) == len(model.variables)
            model.prune(0.5)
        model.freeze_task()
    model.trainable = False
    assert model.trainable_variables == []
    assert len(model.non_trainable_variables) == len(model.variables)


def test_a_frozen_head_never_counts_among_what_trains(
    packed, images, finish_task
):
    finish_task(packed, *images)
    packed.add_task("two", units=4)
    trained = [id(v) for v in packed.trainable_variables]
    others = [id(v) for v in packed.non_trainable_variables]
    weights = [id(v) for v in packed.non_trainable_weights]
    head = packed.heads["one"]
    for layer in head.layers:
        layer.trainable = True
    for variable in head.variables:
        variable.trainable = True
    assert [id(v) for v in packed.trainable_variables] == trained
    assert [id(v) for v in packed.non_trainable_variables] == others
    assert [id(v) for v in packed.non_trainable_weights] == weights
    packed.trainable = False  # Keras skips setting what is so already.
    packed.trainable = True
    assert head.trainable
    packed.fit(*images, verbose=0)
    assert not head.trainable
    packed.verify()
    packed.freeze_task()
    packed.trainable = False
    packed.trainable = True
    of_heads = {id(v) for h in packed.heads.values() for v in h.variables}
    assert not of_heads & {id(v) for v in packed.trainable_variables}


def test_apply_gradients_refuses_what_was_made_trainable_by_hand(
    packed, images, finish_task
):
    x, y = images
    finish_task(packed, x, y)
    packed.add_task("two", units=4)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(packed(x, training=True) ** 2)
    for layer in packed.backbone.layers:
        layer.trainable = True
    trained = packed.trainable_variables
    gradients = tape.gradient(loss, trained)
    with pytest.raises(ArgumentError, match="frozen"):
        packed.apply_gradients(zip(gradients, trained))
    packed.verify()


def test_freeze_task_refuses_when_an_older_task_was_damaged(
    packed, images, finish_task
):
    finish_task(packed, *images)
    packed.add_task("two", units=4)
    bias = packed.backbone.get_layer("dense").layer.bias
    bias.assign(bias + 1.0)
    with pytest.raises(FingerprintError, match="dense/bias"):
        packed.freeze_task()
    assert packed.stage is Stage.TRAIN


def test_summary_capacity_prints_and_returns(packed, images, finish_task):
    finish_task(packed, *images)
    printed = []
    capacity = packed.summary_capacity(print_fn=printed.append)
    assert capacity.owned["one"] + capacity.free == capacity.total
    assert "dense/kernel" in printed[0]
    assert capacity.heads == (12 * 4 + 4,)


def test_add_task_refuses_more_tasks_than_an_owner_map_holds(
    packed, images, finish_task, monkeypatch
):
    finish_task(packed, *images)
    monkeypatch.setattr(ownership, "MAX_TASKS", 1)
    before = all_values(packed)
    with pytest.raises(TaskError, match="Received: task=2"):
        packed.add_task("two", units=2)
    assert_same_values(before, all_values(packed))
    assert packed.task_names == ["one"]


def test_putting_best_weights_back_puts_the_pruning_back(packed, images):
    x, y = images
    packed.fit(
        x,
        y,
        epochs=4,
        batch_size=16,
        verbose=0,
        callbacks=[
            packnet_tf.PruneOnSchedule(lambda step: (step >= 6, 0.5)),
            keras.callbacks.LambdaCallback(
                on_epoch_end=lambda epoch, logs: logs.update(worse=epoch)
            ),
            keras.callbacks.EarlyStopping(
                "worse", mode="min", patience=3, restore_best_weights=True
            ),
        ],
    )
    assert packed.stage is Stage.TRAIN
    assert packed.sparsity == 0.0
    assert packed.summary_capacity(print_fn=len).free == 0
    packed.prune(0.5)
    assert packed.summary_capacity(print_fn=len).free > 0


def test_a_backup_brings_the_stage_back(packed, network, images, tmp_path):
    x, y = images
    callbacks = [
        packnet_tf.PruneOnSchedule(lambda step: (step == 3, 0.5)),
        keras.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False),
    ]
    packed.fit(x, y, epochs=2, batch_size=16, verbose=0, callbacks=callbacks[:])
    again = packnet_tf.wrap(network(), task="one")
    compile_model(again)
    again.fit(x, y, epochs=2, batch_size=16, verbose=0, callbacks=callbacks)
    assert again.stage is Stage.RETRAIN
    assert again.sparsity == 0.5
    assert owner_maps(again).keys() == owner_maps(packed).keys()
    for key, owner in owner_maps(packed).items():
        np.testing.assert_array_equal(owner, owner_maps(again)[key])


@pytest.mark.filterwarnings("ignore:Skipping nested container")
def test_weights_of_another_stage_change_nothing(
    packed, images, finish_task, tmp_path
):
    finish_task(packed, *images)
    packed.save_weights(tmp_path / "before.weights.h5")
    packed.add_task("two", units=4)
    packed.fit(*images, verbose=0)
    before = all_values(packed)
    with pytest.raises(ValueError, match="load"):
        packed.load_weights(tmp_path / "before.weights.h5")
    assert_same_values(before, all_values(packed))
    packed.fit(*images, verbose=0)


class Running(keras.layers.Layer):
    """Subtracts a running mean that it assigns to whenever it trains."""

    def build(self, input_shape):
        self.mean = self.add_weight(
            shape=(input_shape[-1],), initializer="zeros", trainable=False
        )

    def call(self, inputs, training=False):
        if training:
            new = keras.ops.mean(inputs, axis=0)
            self.mean.assign(0.5 * self.mean + 0.5 * new)
        return inputs - self.mean


def test_a_layer_of_ones_own_with_state_freezes_with_task_1(
    images, finish_task
):
    network = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            L.Flatten(),
            Running(name="running"),
            L.Dense(6, "relu"),
            L.Dense(4, "softmax"),
        ]
    )
    model = packnet_tf.wrap(network, task="one")
    compile_model(model)
    x, y = images
    finish_task(model, x, y)
    assert (network.get_layer("running").mean.numpy() == 0).all()
    before = model.predict(x, verbose=0)
    model.add_task("two", units=4)
    finish_task(model, x + 5.0, y)
    np.testing.assert_array_equal(
        before, model.predict(x, verbose=0, task="one")
    )


def test_a_graph_that_outlives_its_task_stays_exact(
    packed, images, finish_task
):
    x, y = images
    finish_task(packed, x, y)
    serve = tf.function(lambda x: packed(x, task="one"))
    inputs = keras.Input((8, 8, 1))
    outer = keras.Model(inputs, packed(inputs, task="one"))
    served, predicted = serve(x).numpy(), outer.predict(x, verbose=0)
    packed.add_task("two", units=4)
    packed.fit(x, y, epochs=2, verbose=0)
    np.testing.assert_array_equal(served, serve(x))
    np.testing.assert_array_equal(predicted, outer.predict(x, verbose=0))


def test_normalization_made_trainable_again_stays_frozen(
    packed, images, finish_task
):
    x, y = images
    finish_task(packed, x, y)
    before = packed(x).numpy()
    packed.add_task("two", units=4)
    packed.trainable = False
    packed.trainable = True
    packed(x + 3.0, training=True)
    np.testing.assert_array_equal(before, packed(x, task="one"))


@pytest.mark.parametrize("training", [True, 1, np.bool_(True)])
@pytest.mark.parametrize("is_newest", [True, False])
def test_a_frozen_head_does_not_compute_as_in_training(
    training, is_newest, images
):
    network = keras.Sequential(
        [keras.Input((8, 8, 1)), L.Flatten(), L.Dense(6, "relu")]
    )
    model = packnet_tf.wrap(network)
    # In training this layer rescales its weights, whether trainable or not.
    head = L.SpectralNormalization(L.Dense(4))
    model.add_task("one", head=head)
    model.prune(0.5)
    model.freeze_task()
    if not is_newest:
        model.add_task("two", units=4)
    with pytest.raises(StageError, match="inference"):
        model(images[0], training=training, task="one")
    model.verify()


def test_set_task_inside_of_fit_changes_nothing_in_it(
    packed, images, finish_task
):
    x, y = images
    finish_task(packed, x, y)
    packed.add_task("two", units=4)
    history = packed.fit(
        x,
        y,
        batch_size=24,
        epochs=2,
        verbose=0,
        validation_data=(x, y),
        callbacks=[
            keras.callbacks.LambdaCallback(
                on_epoch_begin=lambda epoch, logs: packed.set_task("one")
            )
        ],
    ).history
    packed.verify()
    two = packed.evaluate(x, y, verbose=0, task="two", return_dict=True)
    assert history["val_loss"][-1] == pytest.approx(two["loss"])


def test_adapted_normalization_is_copied_and_kept(images, tmp_path):
    x, _ = images
    norm = L.Normalization()
    norm.adapt(x * 5 + 3)
    network = keras.Sequential(
        [keras.Input((8, 8, 1)), norm, L.Flatten(), L.Dense(4), L.Dense(3)]
    )
    model = packnet_tf.wrap(network, task="one")
    np.testing.assert_array_equal(network(x), model(x))
    model.prune(0.5)
    model.freeze_task()
    before = model(x).numpy()
    model.save(tmp_path / "model.keras")
    loaded = packnet_tf.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(before, loaded(x))
    np.testing.assert_array_equal(before, model.unwrap()(x))


def test_metrics_and_schedules_of_ones_own_are_taken(packed, images):
    class Count(keras.metrics.Metric):
        def __init__(self, start, **kwargs):
            super().__init__(**kwargs)
            self.count = self.add_weight(name="count", initializer="zeros")
            self.start = start

        def update_state(self, *args, **kwargs):
            self.count.assign_add(1.0)

        def result(self):
            return self.count + self.start

    class Halve(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return 0.1 / (1.0 + keras.ops.cast(step, "float32"))

        def get_config(self):
            return {}

    packed.compile(
        keras.optimizers.SGD(Halve()),
        "sparse_categorical_crossentropy",
        metrics=[Count(3.0)],
    )
    packed.fit(*images, verbose=0)
    packed.prune(0.5)
    packed.freeze_task()
    packed.add_task("two", units=4)
    packed.fit(*images, verbose=0)
    assert isinstance(packed.optimizer._learning_rate, Halve)


def test_compile_refuses_what_cannot_be_made_afresh(packed):
    class Silent(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return 0.1

    before = packed.optimizer
    with pytest.raises(ArgumentError, match="get_config"):
        packed.compile(keras.optimizers.SGD(Silent()), "mse")
    assert packed.optimizer is before


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda m, tmp: m.save(tmp / "model.h5"), "keras"),
        (lambda m, tmp: m.export(tmp / "all", format="onnx"), "onnx"),
        (lambda m, tmp: m.quantize("int8"), "unwrap"),
        (lambda m, tmp: m.export_task(None, tmp / "one"), "None"),
        (lambda m, tmp: m.predict(np.ones((1, 8, 8, 1)), task=""), "task=''"),
    ],
)
def test_other_calls_that_cannot_be_right_are_refused(
    call, match, packed, tmp_path
):
    before = all_values(packed)
    with pytest.raises(packnet_tf.errors.PackNetError, match=match):
        call(packed, tmp_path)
    assert_same_values(before, all_values(packed))
    assert list(tmp_path.iterdir()) == []


def test_a_model_made_from_its_config_alone_is_not_used(
    packed, images, finish_task
):
    finish_task(packed, *images)
    empty = packnet_tf.PackNetModel.from_config(packed.get_config())
    with pytest.raises(FingerprintError, match="one"):
        empty.predict(images[0], verbose=0)
    with pytest.raises(FingerprintError, match="one"):
        keras.models.clone_model(packed)(images[0])
