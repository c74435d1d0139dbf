"""What to do for one task of a sequence, and what came of it."""

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from packnet_tf import criteria
from packnet_tf import gradients
from packnet_tf import schedules
from packnet_tf import selection
from packnet_tf.errors import ArgumentError
from packnet_tf.tasks import TaskList

_LARGEST_IS_BEST = re.compile(r"(^|_)(accuracy|acc|auc)(_|$)")
_NOT_COMPARED = ("train", "validation", "head", "criterion", "schedule")


@dataclasses.dataclass(frozen=True)
class TaskPlan:
    """What to do for one task.

    Attributes:
        name: Name of the task.
        train: Training data, anything that `fit` takes as `x`, with labels.
            Or a callable `train(epoch)` that returns such data to begin at
            that epoch, counted from 0 over all phases of the task. It is
            called when a phase begins or goes on after a restart, and what
            it returns serves all epochs from there: a `tf.data.Dataset` that
            differs between epochs is endless, with `steps_per_epoch`. What a
            callable returns is never shuffled.
        validation: Validation data, anything `fit` takes, or `None`.
        units: Number of classes, for a dense head.
        head: A Keras layer or model to be the head instead.
        epochs: Epochs of training.
        retrain_epochs: Epochs of retraining after pruning.
        steps_per_epoch: Steps of an epoch, needed for endless data.
        sparsity: Fraction of the task's pool to release after training, in
            `[0, 1)`; 0 releases nothing and skips retraining, unless there
            is a schedule.
        schedule: Prunes during training instead, as `PruneOnSchedule` takes
            it. Steps of a warm-up do not count.
        criterion: How weights are ranked, as `criteria.get` takes it.
            Gradients are computed on the training data, then a
            `tf.data.Dataset` or `keras.utils.PyDataset`, of a callable on
            `train(0)`; of endless data on `steps_per_epoch` batches.
        scope: `"layer"` or `"global"`, as for `PackNetModel.prune`.
        warmup_epochs: Epochs before training in which the new head trains
            alone, as by `PackNetModel.head_only`: the backbone computes as at
            inference, and no bit of it moves.
        patience: Ends a phase when `monitor` has not been better than before
            for that many epochs, 1 or more; `None` never does. The weights
            stay those of the last epoch.
        monitor: A name in the logs of each epoch. The largest is best if one
            of its words is accuracy, acc or auc (`"val_top_k_accuracy"`),
            else the smallest.
    """

    name: str
    train: Any
    validation: Any = None
    units: int | None = None
    head: keras.layers.Layer | None = None
    epochs: int = 20
    retrain_epochs: int = 10
    steps_per_epoch: int | None = None
    sparsity: float = 0.0
    schedule: Any = None
    criterion: "str | dict[str, Any] | criteria.Criterion" = "magnitude"
    scope: str = "layer"
    warmup_epochs: int = 0
    patience: int | None = None
    monitor: str = "val_loss"

    def data_from(self, epoch: int) -> tuple[Any, bool]:
        """Returns the training data.

        Args:
            epoch: Where to begin, counted from 0 over all phases.

        Returns:
            What `fit` takes, and whether Keras is to shuffle it.
        """
        if _is_callable(self.train):
            return self.train(epoch), False
        return self.train, not isinstance(self.train, tf.data.Dataset)

    def gradient_data(self) -> Any:
        """Returns what gradients are computed on: an epoch of training."""
        data, _ = self.data_from(0)
        if isinstance(data, tf.data.Dataset) and self.steps_per_epoch:
            return data.take(self.steps_per_epoch)
        return data

    def is_over(self, history: Sequence[dict[str, float]]) -> bool:
        """Tells whether a phase ends early.

        Args:
            history: The logs of the phase's epochs so far, at least one.

        Returns:
            Whether `monitor` has not been better for `patience` epochs.

        Raises:
            ArgumentError: If the logs do not have it.
        """
        if self.patience is None:
            return False
        if self.monitor not in history[-1]:
            raise ArgumentError(
                "`monitor` names what the logs of each epoch have: "
                f"{sorted(history[-1])}. Add validation data or a metric, or "
                "name another. "
                f"Received: monitor={self.monitor!r} for {self.name!r}"
            )
        sign = 1.0 if _LARGEST_IS_BEST.search(self.monitor) else -1.0
        best, since = -float("inf"), 0
        for logs in history:
            value = sign * logs[self.monitor]
            since += 1
            if value > best:  # Which not-a-number is not.
                best, since = value, 0
        return since >= self.patience

    def identity(self) -> dict[str, Any]:
        """Returns what tells this plan from others, as JSON can hold it.

        Data is left out. A head, and a schedule without a configuration, are
        known by the name of their class or function.
        """
        known = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in _NOT_COMPARED
        }
        known["head"] = None if self.head is None else type(self.head).__name__
        # Made of its name, a random criterion has another seed each time.
        known["criterion"] = _describe(self.criterion)
        known["schedule"] = _describe(self.schedule)
        return json.loads(json.dumps(known, default=_to_plain))


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """What came of one task.

    Attributes:
        name: Name of the task.
        history: For each epoch, the logs that Keras reports: of the warm-up,
            then of training, then of retraining.
        retrain_from: The epoch at which retraining began.
        fingerprint: The task's fingerprint.
        train_from: The epoch at which training began, after the warm-up.
    """

    name: str
    history: list[dict[str, float]]
    retrain_from: int
    fingerprint: str
    train_from: int = 0


def check(plans: Sequence[TaskPlan]) -> None:
    """Checks plans before anything is computed.

    Args:
        plans: The tasks, in order.

    Raises:
        ArgumentError: If a name comes twice, a sparsity is no fraction,
            there is no such criterion, scope or schedule, two tasks share a
            head, or a plan contradicts itself.
        TaskError: If a name is not one that a task can have.
    """
    names = [plan.name for plan in plans]
    if len(set(names)) != len(names):
        raise ArgumentError(
            f"Every task has its own name. Received: tasks={names}"
        )
    heads = [id(plan.head) for plan in plans if plan.head is not None]
    if len(set(heads)) != len(heads):
        raise ArgumentError(
            "A head belongs to one task alone. Give each plan a new layer. "
            f"Received: tasks={names}, with {len(heads)} heads of which "
            f"{len(set(heads))} differ"
        )
    for plan in plans:
        _check(plan)


def _check(plan: TaskPlan) -> None:
    TaskList().check_new(plan.name)
    selection.check_fraction(plan.sparsity)
    selection.check_scope(plan.scope)
    if criteria.get(plan.criterion).gradient is not None:
        gradients.check_data(plan.gradient_data())
    if (plan.units is None) == (plan.head is None):
        raise ArgumentError(
            "A task has one head: give `units` or `head`. "
            f"Received: units={plan.units}, head={plan.head} for "
            f"{plan.name!r}"
        )
    if plan.schedule is not None:
        schedules.get(plan.schedule)
    epochs = (plan.warmup_epochs, plan.epochs, plan.retrain_epochs)
    if min(epochs) < 0:
        raise ArgumentError(
            "Epochs are counted from 0. "
            f"Received: warmup_epochs={plan.warmup_epochs}, "
            f"epochs={plan.epochs}, retrain_epochs={plan.retrain_epochs} for "
            f"{plan.name!r}"
        )
    if plan.schedule is not None and plan.sparsity > 0.0:
        raise ArgumentError(
            "A task is pruned after training by `sparsity` or during it "
            "by `schedule`, not both. "
            f"Received: sparsity={plan.sparsity} and a schedule for "
            f"{plan.name!r}"
        )
    if plan.patience is None:
        return
    if plan.patience < 1:
        raise ArgumentError(
            "`patience` is a number of epochs, 1 or more, or `None` to make "
            f"all of them. Received: patience={plan.patience} for "
            f"{plan.name!r}"
        )
    if plan.validation is None and plan.monitor.startswith("val_"):
        raise ArgumentError(
            "What is monitored comes of validation data: give `validation`, "
            f"or monitor another, such as 'loss'. Received: "
            f"monitor={plan.monitor!r}, validation=None for {plan.name!r}"
        )


def _is_callable(train: Any) -> bool:
    data = (tf.data.Dataset, keras.utils.PyDataset)
    return callable(train) and not isinstance(train, data)


def _describe(value: Any) -> Any:
    """Describes a criterion or a schedule by its class and configuration."""
    if value is None or isinstance(value, (str, dict)):
        return value
    if hasattr(value, "get_config"):
        return [type(value).__name__, value.get_config()]
    return [getattr(value, "__qualname__", type(value).__name__)]


def _to_plain(value: Any) -> Any:
    """Makes of any other value what JSON can hold."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return getattr(value, "__qualname__", type(value).__name__)
