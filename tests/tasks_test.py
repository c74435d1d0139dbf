import json

import pytest

from packnet_tf.errors import PackNetError
from packnet_tf.errors import StageError
from packnet_tf.errors import TaskError
from packnet_tf.record import Record
from packnet_tf.tasks import Stage
from packnet_tf.tasks import Task
from packnet_tf.tasks import TaskList

_RECORD = Record({}, {}, {}, "0" * 64, "1" * 64)


def _tasks(*stages):
    """Makes a list of tasks named a, b, c, ... in these stages."""
    return TaskList(
        [
            Task(
                chr(ord("a") + i),
                i + 1,
                stage,
                record=_RECORD if stage is Stage.FROZEN else None,
            )
            for i, stage in enumerate(stages)
        ]
    )


def _error(kind, fn, *args):
    with pytest.raises(kind) as info:
        fn(*args)
    assert isinstance(info.value, PackNetError)
    assert "Received: " in str(info.value)
    return str(info.value)


def test_stage_is_its_text():
    assert [str(stage) for stage in Stage] == ["TRAIN", "RETRAIN", "FROZEN"]
    assert f"{Stage.TRAIN}" == "TRAIN"
    assert Stage("FROZEN") is Stage.FROZEN
    assert Stage.RETRAIN == "RETRAIN"


def test_task_begins_in_train():
    task = Task("a", 1)
    assert task.stage is Stage.TRAIN
    assert task.sparsity == 0.0
    assert task.record is None


@pytest.mark.parametrize(
    "task",
    [
        Task("a", 1),
        Task("b", 2, Stage.RETRAIN, 0.7),
        Task(
            "c",
            255,
            Stage.FROZEN,
            0.75,
            Record({"conv/kernel": "1"}, {}, {"out/kernel": "2"}, "3", "4"),
        ),
    ],
    ids=lambda task: task.stage.value,
)
def test_task_survives_json(task):
    again = Task.from_config(json.loads(json.dumps(task.to_config())))
    assert again == task
    assert again.stage is task.stage
    assert type(again.record) is type(task.record)


def test_task_list_keeps_the_order():
    tasks = TaskList()
    assert len(tasks) == 0
    assert tasks.names == []
    for number, name in enumerate(["z", "a", "m"], 1):
        tasks.add(Task(name, number))
    assert len(tasks) == 3
    assert tasks.names == ["z", "a", "m"]
    assert [task.number for task in tasks] == [1, 2, 3]


def test_task_list_copies_what_it_is_given():
    given = [Task("a", 1)]
    tasks = TaskList(given)
    tasks.add(Task("b", 2))
    assert len(given) == 1


def test_find_returns_the_task():
    tasks = _tasks(Stage.FROZEN, Stage.TRAIN)
    assert tasks.find("a").number == 1
    assert tasks.find("b").number == 2


@pytest.mark.parametrize("name", ["c", "A", "", " a", None, 1])
def test_find_refuses_unknown_names(name):
    tasks = _tasks(Stage.FROZEN, Stage.TRAIN)
    message = _error(TaskError, tasks.find, name)
    assert "['a', 'b']" in message
    assert "`add_task()`" in message
    assert f"Received: task={name!r}" in message


@pytest.mark.parametrize("stage", Stage)
def test_current_is_the_newest(stage):
    assert _tasks(Stage.FROZEN, stage).current("prune()").name == "b"


@pytest.mark.parametrize("guard", ["current", "unfrozen"])
def test_guards_need_a_task(guard):
    message = _error(StageError, getattr(TaskList(), guard), "prune()")
    assert "`prune()` needs a task" in message
    assert "`add_task()`" in message


@pytest.mark.parametrize("stage", [Stage.TRAIN, Stage.RETRAIN])
def test_unfrozen_is_the_newest(stage):
    assert _tasks(Stage.FROZEN, stage).unfrozen("fit()").name == "b"


def test_unfrozen_refuses_a_frozen_task():
    tasks = _tasks(Stage.FROZEN, Stage.FROZEN)
    message = _error(StageError, tasks.unfrozen, "fit()")
    assert "`fit()` would change task 'b'" in message
    assert "`add_task()`" in message
    assert "Received: stage=FROZEN" in message


def test_check_new_returns_the_next_number():
    assert TaskList().check_new("a") == 1
    assert _tasks(Stage.FROZEN).check_new("b") == 2
    assert _tasks(Stage.FROZEN, Stage.FROZEN).check_new("c") == 3


@pytest.mark.parametrize(
    "name", ["a", "7", "Z9", "cubs-200_2011.v1", "a" * 100, "a..b", "A"]
)
def test_check_new_accepts_names(name):
    assert TaskList().check_new(name) == 1


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "a b",
        "a/b",
        "a\\b",
        "a\n",
        "\na",
        ".a",
        "-a",
        "_a",
        "..",
        "a:b",
        "a\0",
        "é",
        "٣",
        None,
        3,
        b"a",
        ["a"],
    ],
    ids=repr,
)
def test_check_new_refuses_what_is_no_name(name):
    message = _error(TaskError, TaskList().check_new, name)
    assert f"Received: {name!r}" in message


def test_check_new_refuses_a_name_that_is_taken():
    tasks = _tasks(Stage.FROZEN, Stage.FROZEN)
    message = _error(TaskError, tasks.check_new, "a")
    assert "['a', 'b']" in message
    assert "Received: 'a'" in message


@pytest.mark.parametrize("stage", [Stage.TRAIN, Stage.RETRAIN])
def test_check_new_refuses_while_a_task_trains(stage):
    tasks = _tasks(Stage.FROZEN, stage)
    message = _error(StageError, tasks.check_new, "c")
    assert "Task 'b'" in message
    assert "`freeze_task()`" in message
    assert f"Received: stage={stage.value}" in message


def test_check_new_changes_nothing():
    tasks = _tasks(Stage.FROZEN)
    tasks.check_new("b")
    assert tasks.names == ["a"]


def test_task_list_holds_255_tasks():
    tasks = TaskList()
    for number in range(1, 256):
        assert tasks.check_new(f"task_{number}") == number
        tasks.add(Task(f"task_{number}", number, Stage.FROZEN))
    message = _error(TaskError, tasks.check_new, "task_256")
    assert "1 to 255" in message
    assert "Received: task=256" in message
    assert len(tasks) == 255


@pytest.mark.parametrize(
    "tasks",
    [
        [Task("a", 2)],
        [Task("a", 1, Stage.FROZEN)],
        [Task("a", 1, Stage.TRAIN, record=_RECORD)],
        [Task("a", 1, Stage.FROZEN, record=_RECORD), Task("b", 1)],
        [Task("a", 1, Stage.FROZEN, record=_RECORD), Task("a", 2)],
        [Task("../a", 1)],
    ],
    ids=repr,
)
def test_task_list_refuses_tasks_that_contradict_each_other(tasks):
    _error(TaskError, TaskList, tasks)


def test_task_list_refuses_two_tasks_in_training():
    _error(StageError, TaskList, [Task("a", 1), Task("b", 2)])
