"""How one task of a sequence is learned, phase by phase.

Warm-up of the head, training, pruning, retraining, freezing. After each epoch
and each move the checkpoint is written, if there is one.
"""

import os
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from packnet_tf import criteria
from packnet_tf import distribute
from packnet_tf import progress
from packnet_tf.callbacks import PruneOnSchedule
from packnet_tf.model import PackNetModel
from packnet_tf.progress import Progress
from packnet_tf.task_plan import TaskPlan
from packnet_tf.task_plan import TaskResult

CompileFn = Callable[[keras.Model, TaskPlan, str], None]
"""`compile_fn(model, plan, phase)`; the phase is `"warmup"`, `"train"` or
`"retrain"`."""

CallbacksFn = Callable[[TaskPlan, str], list[Any]]
"""`callbacks(plan, phase)` returns the Keras callbacks of the phase."""


class TaskWork:
    """What is done for one task after the other.

    Args:
        model: The packed model.
        compile_fn: As for `run`.
        callbacks: As for `run`.
        verbose: As for `fit`.
        folder: Where to write the checkpoint, `None` for nowhere.
        state: How far it has come, kept up to date.
    """

    def __init__(
        self,
        model: PackNetModel,
        compile_fn: CompileFn,
        callbacks: CallbacksFn | None,
        verbose: "str | int",
        folder: "str | os.PathLike[str] | None",
        state: Progress,
    ) -> None:
        self.model = model
        self.compile_fn = compile_fn
        self.callbacks = callbacks
        self.verbose = verbose
        self.folder = folder
        self.state = state

    def save(self, changed: bool = True) -> None:
        """Writes the checkpoint.

        Args:
            changed: Whether the model is another than was written last.
        """
        if self.folder is None:
            return
        if changed:
            # What goes on from here is what would have been restored.
            self.model.align_replicas()
        distribute.chief_does(
            lambda: progress.write(
                self.folder, self.state, self.model if changed else None
            ),
            self.model.distribute_strategy,
        )

    def learn(self, plan: TaskPlan) -> None:
        """Does what is left to do for a task until it is frozen.

        Args:
            plan: The plan of the task in work.
        """
        model, state = self.model, self.state
        if state.phase == "begin":
            self._set_seed()
            model.add_task(plan.name, units=plan.units, head=plan.head)
            state.enter("warmup")
        if state.phase == "warmup":
            if plan.warmup_epochs > 0:
                model.head_only = True
                self._fit(plan, plan.warmup_epochs)
                model.head_only = False
            state.train_from = len(state.history)
            state.enter("train")
            if plan.warmup_epochs > 0:
                self.save()
        if state.phase == "train":
            self._fit(plan, plan.epochs)
            state.retrain_from = len(state.history)
            state.enter("prune")
            self.save()
        if state.phase == "prune":
            self._set_seed()
            state.enter("retrain")
            if plan.sparsity > 0.0:
                data = None
                if _needs_data(plan):
                    data = plan.gradient_data()
                model.prune(plan.sparsity, plan.criterion, plan.scope, data)
                self.save()
        if state.phase == "retrain":
            if model.sparsity > 0.0 and plan.retrain_epochs > 0:
                self._fit(plan, plan.retrain_epochs)
                state.enter("freeze")
                self.save()
            state.enter("freeze")
        if state.phase == "freeze":
            state.results.append(
                TaskResult(
                    plan.name,
                    state.history,
                    state.retrain_from,
                    model.freeze_task(),
                    state.train_from,
                )
            )
            state.enter("report")
            self.save()

    def _set_seed(self) -> None:
        """Sets random states to what they are here with or without a kill."""
        state = self.state
        if state.seed is None:
            return
        seed = state.seed + state.task
        if state.phase != "begin":
            place = [state.seed, state.task, progress.PHASES.index(state.phase)]
            seed = int(np.random.SeedSequence(place).generate_state(1)[0])
        keras.utils.set_random_seed(seed)

    def _fit(self, plan: TaskPlan, epochs: int) -> None:
        """Begins a phase, or goes on with one, and brings it to its end."""
        model, state = self.model, self.state
        self._set_seed()
        if not state.epochs:
            self.compile_fn(model, plan, state.phase)
            # What that has drawn, a phase that goes on does not draw again.
            self._set_seed()
        chosen = []
        if self.callbacks is not None:
            chosen = list(self.callbacks(plan, state.phase))
        if plan.schedule is not None and state.phase == "train":
            data = plan.gradient_data() if _needs_data(plan) else None
            chosen.append(
                PruneOnSchedule(plan.schedule, plan.criterion, plan.scope, data)
            )
        data, shuffle = plan.data_from(len(state.history))
        model.fit(
            data,
            epochs=epochs,
            initial_epoch=state.epochs,
            steps_per_epoch=plan.steps_per_epoch,
            validation_data=plan.validation,
            shuffle=shuffle,
            callbacks=[*chosen, _Recorder(plan, epochs, state, self.save)],
            verbose=self.verbose,
        )


class _Recorder(keras.callbacks.Callback):
    """Keeps the logs of each epoch, and the checkpoint. Comes last.

    Args:
        plan: The plan of the task.
        epochs: How many epochs the phase has at most.
        state: Where to keep the logs.
        save: Writes the checkpoint.
    """

    def __init__(
        self,
        plan: TaskPlan,
        epochs: int,
        state: Progress,
        save: Callable[[], None],
    ) -> None:
        super().__init__()
        self.plan = plan
        self.epochs = epochs
        self.state = state
        self.save = save

    def on_epoch_end(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        state = self.state
        state.history.append(
            {name: float(value) for name, value in (logs or {}).items()}
        )
        state.epochs = epoch + 1
        if self.plan.is_over(state.history[-state.epochs :]):
            self.model.stop_training = True
        # What `fit` still does after the last epoch, as to put averages in
        # place, belongs to it: that is written afterwards.
        if state.epochs < self.epochs and not self.model.stop_training:
            self.save()


def _needs_data(plan: TaskPlan) -> bool:
    return criteria.get(plan.criterion).gradient is not None
