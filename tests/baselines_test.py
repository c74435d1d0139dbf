"""Baselines: what each method keeps, and that a kill changes nothing."""

import dataclasses
import itertools
import json

import experiments
import keras
import numpy as np
import pytest
from experiments import KillAt
from experiments import Killed
from loading import joined
from methods import baselines
from methods import ewc
from methods import experiment

METHODS = {
    "classifier": baselines.ClassifierOnly,
    "ewc": ewc.ElasticWeightConsolidation,
    "finetune": baselines.FineTuning,
    "joint": baselines.Joint,
    "lwf": baselines.LearningWithoutForgetting,
}
KEPT = {"ewc", "joint", "lwf"}
# Which event ends the run, then the one that goes on, and so on.
OFTEN = [1, 2, 2, 3, 2, 2, 1, 1, 2, 2, 1, 3, 2, 2, 1, 2]
SELDOM = [3, 5, 7]
SLOW = pytest.mark.slow


def same_arrays(one, other):
    assert list(one) == list(other)
    for name, value in one.items():
        assert value.tobytes() == other[name].tobytes(), name


def without_clock(result):
    return {name: result[name] for name in set(result) - {"seconds", "bytes"}}


def logged(folder):
    """Returns the epochs that the log of a run has lines of, in order."""
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [
        tuple(json.loads(line)[name] for name in ("task", "phase", "epoch"))
        for line in lines
    ]


def initial_weights(setting):
    keras.utils.set_random_seed(setting.seed)
    return setting.network.build().get_weights()


def learn(make_method, folder, kills=(), **changed):
    """Learns, killed again and again; returns the method and its result."""
    killed = 0
    for left in itertools.chain(kills, [None]):
        keras.backend.clear_session()
        # What a process has left in these is no part of a run.
        keras.utils.set_random_seed(1000 + killed)
        kill = None if left is None else KillAt(left)
        method = make_method(experiments.make(folder, kill=kill, **changed))
        try:
            return method, without_clock(method.learn()), killed
        except Killed:
            killed += 1
    raise AssertionError


@pytest.mark.parametrize(
    ("name", "kills"),
    [
        pytest.param("ewc", SELDOM, marks=SLOW),
        pytest.param("lwf", SELDOM, marks=SLOW),
        ("classifier", SELDOM),
        pytest.param("finetune", OFTEN, marks=SLOW),
        pytest.param("joint", SELDOM, marks=SLOW),
    ],
)
def test_a_kill_changes_nothing(name, kills, tmp_path):
    def make_method(setting):
        return METHODS[name](setting, name)

    changed = {
        "keep": experiments.make_keeping() if name in KEPT else None,
        "name": "adam",
        "schedule": "cosine",
        "learning_rate": 0.01,
    }
    whole, expected, _ = learn(make_method, tmp_path / "whole", **changed)
    other, found, killed = learn(
        make_method,
        tmp_path / "killed",
        kills,
        **changed,
    )
    assert killed >= 3
    assert found == expected
    epochs = logged(tmp_path / "whole")
    assert len(epochs) == len(set(epochs)) >= 3
    assert logged(tmp_path / "killed") == epochs
    same_arrays(whole.network.to_arrays(), other.network.to_arrays())


def test_a_phase_that_ended_early_is_not_gone_on_with(tmp_path):
    def make_method(setting):
        return baselines.FineTuning(setting, "finetune")

    changed = {
        "data": [experiments.make_data("one", 2)],
        "epochs": 5,
        "warmup_epochs": 0,
        "patience": 1,
        "monitor": "val_accuracy",
        "learning_rate": 1e-6,  # So that soon nothing is better.
    }
    _, expected, _ = learn(make_method, tmp_path / "whole", **changed)
    (_, trained), (_, retrained) = expected["phases"]["one"]
    assert trained < 5
    assert retrained == 1
    # Each time right after an epoch was saved, also after the last ones.
    _, found, killed = learn(
        make_method, tmp_path / "killed", [3] * (trained + 1), **changed
    )
    assert killed == trained + 1
    assert found == expected
    assert logged(tmp_path / "killed") == logged(tmp_path / "whole")


def test_an_epoch_that_is_saved_has_been_logged(tmp_path):
    setting = experiments.make(tmp_path, [experiments.make_data("one", 2)])
    method = baselines.FineTuning(setting, "finetune")
    save, found = method._save, []

    def look_and_save():
        if method.progress.epoch:
            found.append(logged(tmp_path)[-1])
        save()

    method._save = look_and_save
    method.learn()
    assert found == logged(tmp_path)
    assert len(found) == 4


@pytest.mark.parametrize("name", ["packnet", "lwf", "individual/one"])
def test_a_kill_after_the_result_leaves_no_checkpoint(name, tmp_path):
    def learn():
        (tmp_path / "progress" / name).mkdir(parents=True)
        (tmp_path / "progress" / name / "progress.json").write_text("{}")
        (tmp_path / "progress" / f"{name}.npz").write_text("")
        return {"matrix": []}

    assert experiment.once(tmp_path, name, learn) == {"matrix": []}
    learn()
    assert experiment.once(tmp_path, name, None) == {"matrix": []}
    left = (tmp_path / "progress").rglob("*")
    assert not [path for path in left if path.name != "individual"]


def test_a_classifier_alone_leaves_the_network_as_it_came(tmp_path):
    setting = experiments.make(tmp_path, weight_decay=0.01)
    method = baselines.ClassifierOnly(setting, "classifier")
    method.learn()
    expected = initial_weights(setting)
    for value, before in zip(method.network.trunk.get_weights(), expected):
        assert value.tobytes() == before.tobytes()


def test_a_warm_up_moves_the_new_classifier_alone(tmp_path):
    # The update of Lion is as large for a tiny gradient as for a large one.
    setting = experiments.make(
        tmp_path, name="lion", sparsity=0.0, epochs=0, warmup_epochs=2
    )
    method = baselines.LearningWithoutForgetting(setting, "lwf")
    after = []

    def remember(tasks):
        after.append(method.network.heads["one"].get_weights())

    method.end_group = remember
    method.learn()
    before = initial_weights(setting)
    for value, same in zip(method.network.trunk.get_weights(), before):
        assert value.tobytes() == same.tobytes()
    for one, two in zip(*after):
        assert one.tobytes() == two.tobytes()


def test_imitating_begins_without_a_loss_for_what_was_learned(tmp_path):
    setting = experiments.make(tmp_path, lwf_strength=3.0, lwf_temperature=2.5)
    method = baselines.LearningWithoutForgetting(setting, "lwf")
    found = []

    def evaluate(model, tasks, imitated):
        data = [setting.find(task) for task in tasks]
        batches = method._targets(
            setting.pipeline.evaluation(data[0], data[0].val), data, imitated
        )
        return model.evaluate(batches, return_dict=True, verbose=0)

    def compile_and_look(model, *arguments):
        baselines.FineTuning._compile(method, model, *arguments)
        if method.progress.group == 1:
            found.append(evaluate(model, ["two"], ["one"]))
            method.network.heads["one"].kernel.assign_add(
                np.ones_like(method.network.heads["one"].kernel)
                * np.array([1.0, -1.0], np.float32)
            )
            found.append(evaluate(model, ["two"], ["one"]))
            raise Killed

    method._compile = compile_and_look
    with pytest.raises(Killed):
        method.learn()
    assert found[0]["one_loss"] == pytest.approx(0.0, abs=1e-6)
    assert found[0]["two_loss"] > 0.1
    assert found[1]["one_loss"] > 0.01
    assert found[0]["loss"] == pytest.approx(found[0]["two_loss"], abs=1e-5)
    # The loss of the paper: no square of the temperature, as in distillation.
    assert found[1]["loss"] == pytest.approx(
        found[1]["two_loss"] + 3.0 * found[1]["one_loss"] / 2.5**2
    )


def test_a_teacher_is_what_the_network_was_before_the_task(tmp_path):
    setting = experiments.make(tmp_path)
    method = baselines.LearningWithoutForgetting(setting, "lwf")
    after = []
    method.end_group = lambda tasks: after.append(method.network.to_arrays())
    method.learn()
    taught = method.teacher.to_arrays()
    for name, value in taught.items():
        # Random states are those of training; the new classifier is new.
        if name in after[0] and value.dtype == np.float32:
            assert value.tobytes() == after[0][name].tobytes(), name


def test_joint_data_reaches_the_classifier_of_its_task(tmp_path):
    setting = experiments.make(tmp_path)
    method = baselines.Joint(setting, "joint")
    whole = joined.join(setting.data, "one+two")
    x, targets, weights = zip(
        *method._targets(
            setting.pipeline.evaluation(whole, whole.train), setting.data, []
        ).as_numpy_iterator()
    )
    targets = [np.concatenate(parts) for parts in zip(*targets)]
    weights = [np.concatenate(parts) for parts in zip(*weights)]
    one, two = (data.train.labels[data.train.rows] for data in setting.data)
    nothing = np.zeros(24, np.int32)
    np.testing.assert_array_equal(targets[0], [*one, *nothing])
    np.testing.assert_array_equal(targets[1], [*nothing, *two])
    np.testing.assert_array_equal(weights[0], [1.0] * 24 + [0.0] * 24)
    np.testing.assert_array_equal(weights[1], [0.0] * 24 + [1.0] * 24)
    assert np.concatenate(x).shape == (48, 8, 8, 3)


def test_joint_training_shows_a_small_task_as_often_as_a_large_one(tmp_path):
    large = experiments.make_data("one", 2)
    small = experiments.make_data("two", 3)
    train = dataclasses.replace(small.train, rows=np.arange(5))
    setting = experiments.make(
        tmp_path,
        [large, dataclasses.replace(small, train=train)],
        warmup_epochs=0,
        epochs=1,
        sparsity=0.0,
    )
    method = baselines.Joint(setting, "joint")
    give, asked = method._targets, []

    def look(batches, *arguments):
        asked.append(batches)
        return give(batches, *arguments)

    method._targets = look
    method.learn()
    epoch = asked[0].take(2 * experiments.STEPS).as_numpy_iterator()
    labels = np.concatenate([y for _, y in epoch])
    images = 8 * experiments.STEPS
    assert [(labels < 2).sum(), (labels >= 2).sum()] == [images, images]


def test_joint_training_can_be_ended_by_its_accuracy(tmp_path):
    setting = experiments.make(
        tmp_path,
        monitor="val_accuracy",
        patience=1,
        warmup_epochs=0,
        epochs=4,
        retrain_epochs=0,
        learning_rate=0.0,
    )
    result = baselines.Joint(setting, "joint").learn()
    # Nothing moves but averages, so that nothing is better for long.
    ((phase, epochs),) = result["phases"]["one+two"]
    assert phase == "train"
    assert 2 <= epochs <= 4
    for logs in result["history"]["one+two"]:
        for part in ("", "val_"):
            assert logs[f"{part}accuracy"] == pytest.approx(
                (logs[f"{part}one_accuracy"] + logs[f"{part}two_accuracy"]) / 2
            )
    assert result["matrix"][0] == [None, None]
    assert None not in result["matrix"][1]


def test_networks_of_their_own_know_nothing_of_each_other(tmp_path):
    quick = {"warmup_epochs": 0, "epochs": 1, "sparsity": 0.0}
    setting = experiments.make(tmp_path / "both", **quick)
    both = baselines.learn_individual(setting)
    one, two = setting.data
    alone = baselines.learn_individual(
        experiments.make(tmp_path / "two", data=[two], **quick)
    )
    assert both["matrix"][0][1] is both["matrix"][1][0] is None
    assert both["matrix"][1][1] == alone["matrix"][0][0]
    assert both["history"]["two"] == alone["history"]["two"]
    files = [
        setting.folder / "baselines" / "individual" / f"{data.name}.keras"
        for data in (one, two)
    ]
    assert both["bytes"] == sum(file.stat().st_size for file in files)
    # What is done is not done again.
    files[0].unlink()
    again = baselines.learn_individual(setting)
    assert again == both
    assert not files[0].exists()


def test_a_baseline_that_keeps_is_compared_with_what_it_was(tmp_path):
    setting = experiments.make(
        tmp_path,
        keep=experiments.make_keeping(),
        warmup_epochs=0,
        epochs=1,
        sparsity=0.0,
        learning_rate=0.0,
    )
    method = baselines.ClassifierOnly(setting, "classifier")
    result = method.learn()
    assert result["kept"] == {"name": "kept", "agreement": 1.0}
    assert list(method.network.heads) == ["kept", "one", "two"]
    saved = keras.saving.load_model(tmp_path / "baselines/classifier.keras")
    assert [output.shape[1] for output in saved.outputs] == [4, 2, 3]
