import dataclasses
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from packnet_tf import criteria
from packnet_tf import schedules
from packnet_tf import task_plan
from packnet_tf.errors import ArgumentError
from packnet_tf.task_plan import TaskPlan

DATA = tf.data.Dataset.range(6)


def plan(**changes):
    return TaskPlan(**{"name": "one", "train": DATA, "units": 2, **changes})


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return np.zeros((2, 3)), np.zeros(2)


def test_data_is_taken_as_it_is():
    assert plan().data_from(3) == (DATA, False)
    batches = Batches()
    assert plan(train=batches).data_from(3) == (batches, True)


def test_a_callable_says_where_data_begins():
    data, shuffle = plan(train=DATA.skip).data_from(4)
    assert not shuffle
    assert [int(item) for item in data] == [4, 5]
    batches = Batches()
    assert plan(train=lambda epoch: batches).data_from(1) == (batches, False)


def test_gradients_are_computed_on_the_first_epoch():
    for train in (DATA, DATA.skip):
        data = plan(train=train, steps_per_epoch=2).gradient_data()
        assert [int(item) for item in data] == [0, 1]


@pytest.mark.parametrize(
    ("monitor", "values", "is_over"),
    [
        ("loss", [3.0], False),
        ("loss", [3.0, 4.0], False),
        ("loss", [3.0, 4.0, 3.0], True),
        ("loss", [3.0, 4.0, 2.0], False),
        ("loss", [3.0, 2.0, 1.0, 1.0, 1.5], True),
        ("loss", [3.0, float("nan"), 2.0], False),
        ("loss", [float("nan"), float("nan")], True),
        ("val_accuracy", [0.5, 0.6, 0.7], False),
        ("val_accuracy", [0.5, 0.4, 0.3], True),
        ("acc", [0.5, 0.6, 0.7], False),
        ("auc_1", [0.5, 0.6, 0.7], False),
        ("val_top_k_accuracy", [0.5, 0.6, 0.7], False),
        ("inaccuracy", [0.5, 0.6, 0.7], True),
        ("mae", [0.5, 0.6, 0.7], True),
    ],
)
def test_patience_ends_a_phase(monitor, values, is_over):
    history = [{monitor: value} for value in values]
    chosen = plan(patience=2, monitor=monitor, validation=DATA)
    assert chosen.is_over(history) is is_over
    assert not plan(monitor=monitor).is_over(history)


def test_what_is_monitored_has_to_be_in_the_logs():
    with pytest.raises(ArgumentError, match="Received: monitor='val_loss'"):
        plan(patience=1, validation=DATA).is_over([{"loss": 1.0}])


@pytest.mark.parametrize(
    "change",
    [
        {"warmup_epochs": -1},
        {"patience": 0, "monitor": "loss"},
        {"patience": 1},
    ],
)
def test_check_refuses(change):
    with pytest.raises(ArgumentError, match="Received:"):
        task_plan.check([plan(**change)])


def grow(step):
    return step == 0, 0.5


def test_every_change_of_what_is_learned_is_told():
    decay = schedules.tfmot_schedules().PolynomialDecay
    changes = [
        {},
        {"name": "two"},
        {"units": 3},
        {"units": None, "head": keras.layers.Dense(2)},
        {"epochs": 3},
        {"retrain_epochs": 3},
        {"steps_per_epoch": 3},
        {"sparsity": 0.5},
        {"schedule": grow},
        {"schedule": lambda step: (step == 0, 0.5)},
        {"schedule": decay(0.0, 0.5, 0, 6)},
        {"schedule": decay(0.0, 0.5, 0, 7)},
        {"criterion": "random"},
        {"criterion": criteria.Random(seed=5)},
        {"scope": "global"},
        {"warmup_epochs": 1},
        {"patience": 3},
        {"monitor": "loss"},
    ]
    identities = [json.dumps(plan(**each).identity()) for each in changes]
    assert len(set(identities)) == len(changes)


def test_the_same_plan_is_the_same_in_another_process():
    one, other = (
        plan(
            train=train,
            units=np.int64(3),
            sparsity=np.float32(0.5),
            criterion=criteria.Magnitude(),
        )
        for train in (DATA, DATA.skip)
    )
    assert one.identity() == other.identity()
    one, other = (
        plan(units=None, head=keras.layers.Dense(3)) for _ in range(2)
    )
    assert one.head.name != other.head.name
    assert one.identity() == other.identity()


def test_every_field_is_told_or_left_out_on_purpose():
    left_out = {"train", "validation"}
    fields = {field.name for field in dataclasses.fields(TaskPlan)}
    assert set(plan().identity()) == fields - left_out
