"""Every move that is refused: when it is illegal, and with which error."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from packnet_tf.criteria import Criterion
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import StageError
from packnet_tf.errors import TaskError

L = keras.layers


@dataclasses.dataclass(frozen=True)
class Illegal:
    """One illegal move.

    `applies(oracle)` says whether it is illegal now; `call(moves)` makes it.
    """

    applies: Callable[[Any], bool]
    error: type
    call: Callable[[Any], Any]


class FailsLate(Criterion):
    """Scores the first weight, and the second one wrongly."""

    def __init__(self):
        self.calls = 0

    def score(self, weight):
        self.calls += 1
        scores = np.abs(weight.kernel)
        return scores if self.calls == 1 else scores.reshape(-1)[:-1]


class NoConfig(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule that cannot be made afresh."""

    def __call__(self, step):
        return 0.1


def always(oracle):
    return True


def empty(oracle):
    return not oracle.tasks


def begun(oracle):
    return bool(oracle.tasks)


def training(oracle):
    return oracle.may_train


def not_training(oracle):
    return not oracle.may_train


def frozen(oracle):
    return bool(oracle.tasks) and not oracle.may_train


def has_three(oracle):
    return len(oracle.tasks) > 2


def older_is_active(oracle):
    return oracle.may_train and oracle.active != oracle.newest.name


def has_older(oracle):
    return len(oracle.tasks) > 1


def has_room(oracle):
    return oracle.may_train and any(oracle.pools.values())


def has_no_room(oracle):
    return oracle.may_train and not any(oracle.pools.values())


def pruned(oracle):
    return has_room(oracle) and oracle.newest.sparsity > 0.0


def compiled_and_training(oracle):
    return oracle.may_train and oracle.optimizer is not None


def prune_a_little_less(moves):
    moves.model.prune(float(np.nextafter(moves.oracle.newest.sparsity, 0.0)))


def apply_to_owner_maps(moves):
    owners = [entry.owner for entry in moves.packed()]
    moves.model.apply_gradients([(tf.zeros(o.shape), o) for o in owners])


# Moves that need no argument to be illegal.
ILLEGAL = {
    "fit frozen": Illegal(
        not_training, StageError, lambda m: m.model.fit(m.x, m.y(2))
    ),
    "train_on_batch frozen": Illegal(
        not_training, StageError, lambda m: m.model.train_on_batch(m.x, m.y(2))
    ),
    "fit older": Illegal(
        older_is_active, StageError, lambda m: m.model.fit(m.x, m.y(2))
    ),
    "train_on_batch older": Illegal(
        older_is_active,
        StageError,
        lambda m: m.model.train_on_batch(m.x, m.y(2)),
    ),
    "call older as in training": Illegal(
        has_older,
        StageError,
        lambda m: m.model(m.x, training=True, task=m.oracle.names[0]),
    ),
    "apply_gradients frozen": Illegal(
        not_training, StageError, lambda m: m.model.apply_gradients([])
    ),
    "apply_gradients to owner maps": Illegal(
        compiled_and_training, ArgumentError, apply_to_owner_maps
    ),
    "prune frozen": Illegal(
        not_training, StageError, lambda m: m.model.prune(0.5)
    ),
    "prune without room": Illegal(
        has_no_room, StageError, lambda m: m.model.prune(0.5)
    ),
    "prune to less": Illegal(pruned, StageError, prune_a_little_less),
    "prune fails late": Illegal(
        has_room, ArgumentError, lambda m: m.model.prune(0.99, FailsLate())
    ),
    "add before freezing": Illegal(
        training, StageError, lambda m: m.model.add_task("new", units=2)
    ),
    "add twice": Illegal(
        begun,
        TaskError,
        lambda m: m.model.add_task(m.oracle.names[0], units=2),
    ),
    "add with a head in use": Illegal(
        frozen,
        ArgumentError,
        lambda m: m.model.add_task("new", head=m.model.heads[m.oracle.active]),
    ),
    "freeze frozen": Illegal(
        not_training, StageError, lambda m: m.model.freeze_task()
    ),
    "remove task 1": Illegal(
        begun,
        TaskError,
        lambda m: m.model.remove_task(m.oracle.names[0], m.oracle.names[1:]),
    ),
    "remove older alone": Illegal(
        has_three,
        TaskError,
        lambda m: m.model.remove_task(m.oracle.names[1]),
    ),
    "remove with an earlier one": Illegal(
        has_older,
        TaskError,
        lambda m: m.model.remove_task(
            m.oracle.names[-1], also=m.oracle.names[:1]
        ),
    ),
    "remove with text": Illegal(
        has_older,
        ArgumentError,
        lambda m: m.model.remove_task(m.oracle.names[-1], also="one"),
    ),
    "unwrap unknown": Illegal(
        begun, TaskError, lambda m: m.model.unwrap("nine")
    ),
    "unwrap nothing": Illegal(empty, StageError, lambda m: m.model.unwrap()),
    "export nothing": Illegal(
        empty, StageError, lambda m: m.model.export(m.folder / "no")
    ),
    "export to ONNX": Illegal(
        always,
        ArgumentError,
        lambda m: m.model.export(m.folder / "no", format="onnx"),
    ),
    "export_task to HDF5": Illegal(
        begun,
        ArgumentError,
        lambda m: m.model.export_task(m.oracle.active, m.folder / "no.h5"),
    ),
    "save to HDF5": Illegal(
        always, ArgumentError, lambda m: m.model.save(m.folder / "no.h5")
    ),
    "quantize": Illegal(always, StageError, lambda m: m.model.quantize("int8")),
    "load_weights from nowhere": Illegal(
        always,
        FileNotFoundError,
        lambda m: m.model.load_weights(m.folder / "no.weights.h5"),
    ),
}


def convolution():
    return L.Conv2D(2, 2)


def too_wide():
    return keras.Sequential([keras.Input((9,)), L.Dense(2)])


def _add(kind, applies, error, call, arguments):
    for argument in arguments:
        name = getattr(argument, "__name__", repr(argument))
        ILLEGAL[f"{kind} {name}"] = Illegal(
            applies, error, lambda m, argument=argument: call(m, argument)
        )


_add(
    "prune to",
    training,
    ArgumentError,
    lambda m, fraction: m.model.prune(fraction),
    [1, 1.0, 1.5, -0.1, 75, float("nan"), True, "0.5", None, [0.5]],
)
_add(
    "prune by",
    training,
    ArgumentError,
    lambda m, criterion: m.model.prune(0.99, criterion),
    ["size", None, 3, {"class_name": "Size"}],
)
_add(
    "add",
    always,
    TaskError,
    lambda m, name: m.model.add_task(name, units=2),
    ["", "a/b", "../up", " ", None, 3, "signatures"],
)
_add(
    "add with",
    not_training,
    ArgumentError,
    lambda m, arguments: m.model.add_task("new", **arguments),
    [
        {},
        {"units": 0},
        {"units": -1},
        {"units": 2.0},
        {"units": True},
        {"units": 2, "activation": "nonsense"},
        {"head": "dense"},
        {"head": L.Dense},
    ],
)
_add(
    "add with a head",
    not_training,
    ArgumentError,
    lambda m, make: m.model.add_task("new", head=make()),
    [convolution, too_wide],
)
for _kind, _call in {
    "set_task": lambda m, name: m.model.set_task(name),
    "remove_task": lambda m, name: m.model.remove_task(name),
    "call": lambda m, name: m.model(m.x, task=name),
    "predict": lambda m, name: m.model.predict(m.x, task=name),
    "predict_on_batch": lambda m, name: m.model.predict_on_batch(
        m.x, task=name
    ),
    "evaluate": lambda m, name: m.model.evaluate(m.x, m.y(2), task=name),
    "test_on_batch": lambda m, name: m.model.test_on_batch(
        m.x, m.y(2), task=name
    ),
    "export_task": lambda m, name: m.model.export_task(
        name, m.folder / "no.keras"
    ),
}.items():
    _add(_kind, always, TaskError, _call, ["nine", "", 1])
_add(
    "compile",
    always,
    ValueError,
    lambda m, arguments: m.model.compile(**arguments),
    [
        {"optimizer": "nonsense"},
        {"optimizer": 3},
        {"optimizer": "sgd", "metrics": 3},
        {"optimizer": "sgd", "weighted_metrics": 3},
    ],
)
_add(
    "compile",
    always,
    TypeError,
    lambda m, arguments: m.model.compile(**arguments),
    [{"optimizer": "sgd", "nonsense": 1}],
)
_add(
    "compile",
    always,
    ArgumentError,
    lambda m, schedule: m.model.compile(keras.optimizers.SGD(schedule())),
    [NoConfig],
)
