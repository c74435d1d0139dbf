import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_same_values
from helpers import compile_model
from helpers import two_devices

import packnet_tf
from packnet_tf import criteria
from packnet_tf import schedules
from packnet_tf import sequence
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import StageError
from packnet_tf.errors import TaskError
from packnet_tf.sequence import TaskPlan


def pipeline(x, y):
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(8)


def plan(name, images, **kwargs):
    arguments = {"units": 4, "epochs": 2, "retrain_epochs": 1, **kwargs}
    train = arguments.pop("train", pipeline(*images))
    return TaskPlan(name, train, **arguments)


@pytest.fixture
def backbone(network):
    return packnet_tf.wrap(network(classes=None))


def compile_in_graphs(model, plan, phase):
    compile_model(model)


def compile_for(model, plan, phase):
    # Eagerly: a few steps take less time than to trace one.
    compile_model(model, run_eagerly=True)


def test_run_learns_task_after_task(backbone, images):
    x, y = images
    frozen = {}
    phases = []

    def callbacks(plan, phase):
        phases.append((plan.name, phase))
        return []

    def on_frozen(plan, result):
        assert backbone.stage is packnet_tf.Stage.FROZEN
        frozen[plan.name] = backbone.predict(x, verbose=0)

    results = sequence.run(
        backbone,
        [
            plan("one", images, sparsity=0.5, validation=pipeline(x, y)),
            plan("two", images, sparsity=0.25),
            plan("three", images),
        ],
        compile_in_graphs,
        callbacks=callbacks,
        on_frozen=on_frozen,
        verbose=0,
    )
    assert phases == [
        ("one", "train"),
        ("one", "retrain"),
        ("two", "train"),
        ("two", "retrain"),
        ("three", "train"),
    ]
    assert [len(result.history) for result in results] == [3, 3, 2]
    assert [result.retrain_from for result in results] == [2, 2, 2]
    assert set(results[0].history[0]) == {
        "loss",
        "accuracy",
        "val_loss",
        "val_accuracy",
    }
    proofs = backbone.verify()
    assert {name: proofs[name].fingerprint for name in proofs} == {
        result.name: result.fingerprint for result in results
    }
    for name, before in frozen.items():
        np.testing.assert_array_equal(
            before, backbone.predict(x, verbose=0, task=name)
        )


def test_run_prunes_on_a_schedule(backbone, images):
    tfmot = schedules.tfmot_schedules()
    schedule = tfmot.PolynomialDecay(0.0, 0.5, 0, 6, frequency=3)
    (result,) = sequence.run(
        backbone,
        [plan("one", images, schedule=schedule)],
        compile_in_graphs,
        verbose=0,
    )
    assert backbone.sparsity == 0.5
    assert [log["sparsity"] for log in result.history[:2]] == [0.4375, 0.5]
    assert len(result.history) == 3


def free(model):
    return [
        int((entry.owner.numpy() == 0).sum())
        for entry in model.summary_protection(print_fn=len)
        if entry.owner is not None
    ]


@pytest.mark.parametrize("endless", [False, True])
@pytest.mark.parametrize("scheduled", [False, True])
def test_run_prunes_by_criterion_and_scope(
    scheduled, endless, backbone, images
):
    how = {"sparsity": 0.5}
    if scheduled:
        how = {"schedule": lambda step: (step == 4, 0.5)}
    train = pipeline(*images)
    learned = TaskPlan(
        "one",
        train.repeat() if endless else train,
        units=4,
        epochs=1,
        retrain_epochs=0,
        steps_per_epoch=4 if endless else None,
        criterion="taylor",
        scope="global",
        **how,
    )
    sequence.run(backbone, [learned], compile_for, verbose=0)
    sizes = [
        entry.owner.numpy().size
        for entry in backbone.summary_protection(print_fn=len)
        if entry.owner is not None
    ]
    assert sum(free(backbone)) == round(0.5 * sum(sizes))
    assert free(backbone) != [round(0.5 * size) for size in sizes]


@pytest.mark.parametrize("brightness", [0.0, 1.0])
def test_run_computes_gradients_on_the_training_data(
    brightness, backbone, images
):
    x, y = images
    seen = []

    class Seeing(criteria.Criterion):
        gradient = "rms"

        def score(self, weight):
            seen.append(weight.gradient)
            return weight.gradient

    learned = plan(
        "one",
        (x * brightness, y),
        criterion=Seeing(),
        sparsity=0.5,
        retrain_epochs=0,
    )
    sequence.run(backbone, [learned], compile_for, verbose=0)
    # A kernel that sees zeros alone has no gradient.
    assert seen[0].any() == (brightness > 0.0)


def test_run_warms_up_the_head_before_training(backbone, images):
    begun = []

    def begin(model, plan, phase):
        compile_model(model)
        values = [variable.numpy() for variable in model.backbone.variables]
        head = [v.numpy() for v in model.heads[plan.name].variables]
        begun.append((phase, model.head_only, values, head))

    (result,) = sequence.run(
        backbone,
        [plan("one", images, sparsity=0.5, warmup_epochs=2)],
        begin,
        verbose=0,
    )
    assert [(phase, only) for phase, only, _, _ in begun] == [
        ("warmup", True),
        ("train", False),
        ("retrain", False),
    ]
    (_, _, backbone_0, head_0), (_, _, backbone_1, head_1), last = begun
    assert_same_values(backbone_0, backbone_1)
    assert not np.array_equal(head_0[0], head_1[0])
    assert not all(map(np.array_equal, backbone_1, last[2]))
    assert (result.train_from, result.retrain_from) == (2, 4)
    assert len(result.history) == 5
    # Steps of the warm-up are none of the task's.
    assert int(backbone.steps.numpy()) == 12


def test_run_counts_the_steps_of_a_schedule_from_training(backbone, images):
    asked = []

    def schedule(step):
        asked.append(int(step))
        return False, 0.0

    learned = plan("one", images, schedule=schedule, warmup_epochs=1, epochs=1)
    sequence.run(backbone, [learned], compile_for, verbose=0)
    assert asked == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("monitor", "values", "epochs"),
    [
        ("loss", [3.0, 2.0, 2.0, 2.5, 1.0], 4),
        ("val_accuracy", [0.5, 0.6, 0.6, 0.7, 0.7], 5),
    ],
)
def test_run_ends_each_phase_by_patience(
    monitor, values, epochs, backbone, images
):
    class Reporting(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs[monitor] = values[epoch]

    learned = plan(
        "one",
        images,
        epochs=5,
        retrain_epochs=5,
        warmup_epochs=5,
        sparsity=0.5,
        patience=2,
        monitor=monitor,
        validation=pipeline(*images),
    )
    (result,) = sequence.run(
        backbone,
        [learned],
        compile_for,
        lambda plan, phase: [Reporting()],
        verbose=0,
    )
    assert len(result.history) == 3 * epochs
    assert (result.train_from, result.retrain_from) == (epochs, 2 * epochs)


def test_run_takes_data_that_begins_at_an_epoch(backbone, images):
    asked = []

    def train(epoch):
        asked.append(epoch)
        return pipeline(*images).repeat().skip(4 * epoch)

    learned = plan(
        "one",
        images,
        train=train,
        steps_per_epoch=4,
        warmup_epochs=1,
        epochs=2,
        sparsity=0.5,
        criterion="taylor",
    )
    sequence.run(backbone, [learned], compile_for, verbose=0)
    # First to check the plan; then for each phase, and to rank by gradients.
    assert asked == [0, 0, 1, 0, 3]


def test_run_takes_endless_data_and_any_head(backbone, images):
    endless = TaskPlan(
        "one",
        pipeline(*images).repeat(),
        head=keras.layers.Dense(4, "softmax"),
        epochs=1,
        steps_per_epoch=3,
    )
    sequence.run(backbone, [endless], compile_for, verbose=0)
    assert backbone.task_names == ["one"]


@pytest.mark.parametrize(
    "change",
    [
        {"sparsity": 50},
        {"sparsity": -0.1},
        {"epochs": -1},
        {"criterion": "size"},
        {"scope": "model"},
        {"criterion": "taylor", "train": None},
        {"sparsity": 0.5, "schedule": lambda step: (True, 0.5)},
        {"name": "one"},
        {"name": "a/b"},
        {"name": None},
        {"units": None},
        {"head": keras.layers.Dense(3)},
        {"schedule": 3},
    ],
)
def test_run_checks_all_plans_before_it_starts(change, backbone, images):
    bad = plan(**{"name": "two", "images": images, **change})
    with pytest.raises((ArgumentError, TaskError), match="Received:"):
        sequence.run(backbone, [plan("one", images), bad], compile_for)
    assert backbone.task_names == []


def test_run_refuses_a_head_for_two_tasks_before_it_starts(backbone, images):
    head = keras.layers.Dense(3, "softmax")
    plans = [
        plan(name, images, units=None, head=head) for name in ("one", "two")
    ]
    with pytest.raises(ArgumentError, match="one task alone"):
        sequence.run(backbone, plans, compile_for)
    assert backbone.task_names == []


def test_run_refuses_a_name_that_is_taken_before_it_starts(packed, images):
    packed.prune(0.5)
    packed.freeze_task()
    plans = [plan(name, images) for name in ("two", "one")]
    with pytest.raises(TaskError, match="Received: 'one'"):
        sequence.run(packed, plans, compile_for)
    assert packed.task_names == ["one"]


def test_run_refuses_a_model_in_the_middle_of_a_task(packed, images):
    with pytest.raises(StageError, match="freeze_task"):
        sequence.run(packed, [plan("two", images)], compile_for)


def test_a_seed_gives_each_head_its_initial_values(network, images):
    brief = {"epochs": 0, "retrain_epochs": 0, "sparsity": 0.5}
    plans = [plan(name, images, **brief) for name in ("one", "two")]
    heads = []
    for drawn_before in (0, 5):
        model = packnet_tf.wrap(network(classes=None))
        for _ in range(drawn_before):
            keras.layers.Dense(3).build((2, 2))
        sequence.run(model, plans, compile_for, seed=4, verbose=0)
        heads.append(
            [model.heads[name].variables[0].numpy() for name in ("one", "two")]
        )
    assert_same_values(*heads)
    assert not np.array_equal(*heads[0])
    keras.utils.set_random_seed(5)
    model = packnet_tf.wrap(network(classes=None))
    model.add_task("other", units=4)
    model.prune(0.5)
    model.freeze_task()
    keras.utils.set_random_seed(5)
    model.add_task("two", units=4)
    kernel = model.heads["two"].variables[0].numpy()
    np.testing.assert_array_equal(kernel, heads[0][1])


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, True])
def test_a_seed_that_is_none_is_refused(seed, network, images):
    with pytest.raises(ArgumentError, match="Received: seed="):
        sequence.run(
            packnet_tf.wrap(network(classes=None)),
            [plan("one", images)],
            compile_for,
            seed=seed,
        )


@pytest.mark.parametrize(
    "replicated", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_a_seed_makes_two_runs_equal(replicated, images):
    strategy = two_devices() if replicated else tf.distribute.get_strategy()
    assert strategy.num_replicas_in_sync == 1 + replicated

    def train(epoch):
        data = tf.data.Dataset.from_tensor_slices(images)
        return data.shuffle(32).batch(8)  # By the random state of the process.

    how = {"epochs": 1, "train": train, "criterion": "random"}
    plans = [
        plan("one", images, sparsity=0.5, **how),
        plan("two", images, **how),
    ]

    def fingerprints(process, seed):
        keras.utils.set_random_seed(7)
        with strategy.scope():
            layers = [
                keras.Input((8, 8, 1)),
                keras.layers.Flatten(name="flat"),
                keras.layers.Dense(6, "tanh", name="dense"),
                keras.layers.Dropout(0.2, name="dropout"),
            ]
            # Named as in a process of its own.
            model = packnet_tf.wrap(keras.Sequential(layers, name="network"))
            # Whatever else a process has drawn.
            keras.utils.set_random_seed(process)
            results = sequence.run(
                model, plans, compile_in_graphs, seed=seed, verbose=0
            )
        return [result.fingerprint for result in results]

    found = fingerprints(1, 3)
    assert len(set(found)) == 2
    assert fingerprints(2, 3) == found
    assert not set(fingerprints(1, 4)) & set(found)
