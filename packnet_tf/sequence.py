"""A list of tasks end to end: train, prune, retrain, freeze, one by one."""

import dataclasses
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from packnet_tf import criteria
from packnet_tf import gradients
from packnet_tf import schedules
from packnet_tf import selection
from packnet_tf.callbacks import PruneOnSchedule
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import TaskError
from packnet_tf.model import PackNetModel
from packnet_tf.tasks import TaskList

CompileFn = Callable[[keras.Model, "TaskPlan", str], None]
"""`compile_fn(model, plan, phase)`; the phase is `"train"` or `"retrain"`."""


@dataclasses.dataclass(frozen=True)
class TaskPlan:
    """What to do for one task.

    Attributes:
        name: Name of the task.
        train: Training data, anything that `fit` takes as `x`, with labels.
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
            it.
        criterion: How weights are ranked, as `criteria.get` takes it.
            Gradients are computed on the training data, then a
            `tf.data.Dataset` or `keras.utils.PyDataset`; of endless data on
            `steps_per_epoch` batches.
        scope: `"layer"` or `"global"`, as for `PackNetModel.prune`.
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


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """What came of one task.

    Attributes:
        name: Name of the task.
        history: For each epoch, training first, the logs that Keras reports.
        retrain_from: The epoch at which retraining began.
        fingerprint: The task's fingerprint.
    """

    name: str
    history: list[dict[str, float]]
    retrain_from: int
    fingerprint: str


def run(
    model: PackNetModel,
    plans: Sequence[TaskPlan],
    compile_fn: CompileFn,
    callbacks: Callable[[TaskPlan, str], list[Any]] | None = None,
    on_frozen: Callable[[TaskPlan, TaskResult], None] | None = None,
    verbose: "str | int" = "auto",
) -> list[TaskResult]:
    """Learns tasks one after the other in one packed model.

    Args:
        model: A packed model whose newest task, if any, is frozen.
        plans: The tasks, in order. All are checked before the first starts.
        compile_fn: Compiles the model before each phase of each task; this
            sets the learning rate.
        callbacks: Returns the Keras callbacks of a phase.
        on_frozen: Called when a task is frozen, for instance to save.
        verbose: As for `fit`.

    Returns:
        One result per task.

    Raises:
        ArgumentError: If a plan makes no sense.
        TaskError: If a task cannot have its name.
        StageError: If the model is in the middle of a task.
    """
    check(plans)
    for plan in plans:
        if plan.name in model.task_names:
            raise TaskError(
                "Every task has its own name, and the model has tasks "
                f"{model.task_names}. Received: {plan.name!r}"
            )
    results = []
    for plan in plans:
        model.add_task(plan.name, units=plan.units, head=plan.head)
        history = _fit(
            model, plan, "train", compile_fn, callbacks, plan.epochs, verbose
        )
        retrain_from = len(history)
        if plan.sparsity > 0.0:
            model.prune(
                plan.sparsity, plan.criterion, plan.scope, _gradient_data(plan)
            )
        if model.sparsity > 0.0 and plan.retrain_epochs > 0:
            history += _fit(
                model,
                plan,
                "retrain",
                compile_fn,
                callbacks,
                plan.retrain_epochs,
                verbose,
            )
        fingerprint = model.freeze_task()
        result = TaskResult(plan.name, history, retrain_from, fingerprint)
        results.append(result)
        if on_frozen is not None:
            on_frozen(plan, result)
    return results


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
        TaskList().check_new(plan.name)
        selection.check_fraction(plan.sparsity)
        selection.check_scope(plan.scope)
        if criteria.get(plan.criterion).gradient is not None:
            gradients.check_data(_gradient_data(plan))
        if (plan.units is None) == (plan.head is None):
            raise ArgumentError(
                "A task has one head: give `units` or `head`. "
                f"Received: units={plan.units}, head={plan.head} for "
                f"{plan.name!r}"
            )
        if plan.schedule is not None:
            schedules.get(plan.schedule)
        if plan.epochs < 0 or plan.retrain_epochs < 0:
            raise ArgumentError(
                "Epochs are counted from 0. "
                f"Received: epochs={plan.epochs}, "
                f"retrain_epochs={plan.retrain_epochs} for {plan.name!r}"
            )
        if plan.schedule is not None and plan.sparsity > 0.0:
            raise ArgumentError(
                "A task is pruned after training by `sparsity` or during it "
                "by `schedule`, not both. "
                f"Received: sparsity={plan.sparsity} and a schedule for "
                f"{plan.name!r}"
            )


def _gradient_data(plan: TaskPlan) -> Any:
    """Returns what a criterion computes gradients on: an epoch of training."""
    if isinstance(plan.train, tf.data.Dataset) and plan.steps_per_epoch:
        return plan.train.take(plan.steps_per_epoch)
    return plan.train


def _fit(
    model: PackNetModel,
    plan: TaskPlan,
    phase: str,
    compile_fn: CompileFn,
    callbacks: Callable[[TaskPlan, str], list[Any]] | None,
    epochs: int,
    verbose: "str | int",
) -> list[dict[str, float]]:
    compile_fn(model, plan, phase)
    chosen = list(callbacks(plan, phase)) if callbacks else []
    if plan.schedule is not None and phase == "train":
        chosen.append(
            PruneOnSchedule(
                plan.schedule, plan.criterion, plan.scope, _gradient_data(plan)
            )
        )
    logs = model.fit(
        plan.train,
        epochs=epochs,
        steps_per_epoch=plan.steps_per_epoch,
        validation_data=plan.validation,
        shuffle=not isinstance(plan.train, tf.data.Dataset),
        callbacks=chosen,
        verbose=verbose,
    ).history
    return [
        {name: float(values[epoch]) for name, values in logs.items()}
        for epoch in range(len(next(iter(logs.values()), [])))
    ]
