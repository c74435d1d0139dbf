"""A list of tasks end to end: train, prune, retrain, freeze, one by one.

With a folder for its checkpoint, a sequence that was killed goes on from its
last completed epoch.
"""

import contextlib
import os
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from packnet_tf import criteria
from packnet_tf import distribute
from packnet_tf import loading
from packnet_tf import locks
from packnet_tf import progress
from packnet_tf.callbacks import PruneOnSchedule
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import FileError
from packnet_tf.errors import StageError
from packnet_tf.errors import TaskError
from packnet_tf.model import PackNetModel
from packnet_tf.progress import Progress
from packnet_tf.task_plan import TaskPlan
from packnet_tf.task_plan import TaskResult
from packnet_tf.task_plan import check
from packnet_tf.tasks import Stage

__all__ = ["CompileFn", "TaskPlan", "TaskResult", "check", "restore", "run"]

CompileFn = Callable[[keras.Model, TaskPlan, str], None]
"""`compile_fn(model, plan, phase)`; the phase is `"warmup"`, `"train"` or
`"retrain"`."""

CallbacksFn = Callable[[TaskPlan, str], list[Any]]
"""`callbacks(plan, phase)` returns the Keras callbacks of the phase."""

_CHECKPOINT = "checkpoint to go on from"
_MAX_SEED = 2**32 - 256  # Room for 255 tasks below the greatest of Keras.


def run(
    model: PackNetModel,
    plans: Sequence[TaskPlan],
    compile_fn: CompileFn,
    callbacks: CallbacksFn | None = None,
    on_frozen: Callable[[TaskPlan, TaskResult], None] | None = None,
    verbose: "str | int" = "auto",
    checkpoint_dir: "str | os.PathLike[str] | None" = None,
    seed: int | None = None,
) -> list[TaskResult]:
    """Learns tasks one after the other in one packed model.

    With a `checkpoint_dir`, everything is written there before the first
    task, after every epoch, after pruning and after freezing. Killed at any
    moment, the same program goes on from the last completed epoch:

    ```python
    model = sequence.restore("runs/x") or packnet_tf.wrap(network)
    sequence.run(model, plans, compile_fn, checkpoint_dir="runs/x", seed=0)
    ```

    It ends with the same fingerprints and the same history as one that was
    never killed, if it sees the same data and begins with the same heads:

    - Data is the same if `TaskPlan.train` is a callable that begins at the
      epoch it is given, or a `tf.data.Dataset` with an end that yields the
      same batches in each epoch: not shuffled anew, no random operation.
      It is not if the order depends on what came before: a `tf.data.Dataset`
      that shuffles anew for each epoch, or that is endless and used with
      `steps_per_epoch`, begins from its start again; Keras shuffles a
      `keras.utils.PyDataset` by the random state of the process, unless a
      callable returns it.
    - A head of `units` has the same initial values, and a criterion that is
      `"random"` without a seed of its own the same scores, if there is a
      `seed`. A layer that is given as `head` is made by the program, which has
      to make it the same, with seeds of its own in its initializers and
      dropout.
    - A callback begins a phase that goes on as it begins any other, with the
      epoch at which it goes on: it has to keep a state of its own elsewhere.

    Args:
        model: A packed model whose newest task, if any, is frozen; or what
            `restore` returns for the same `checkpoint_dir`.
        plans: The tasks, in order. All are checked before the first starts.
            To go on after a kill, the same; others may follow at the end,
            also of a sequence that is finished.
        compile_fn: Compiles the model before each phase of each task; this
            sets the learning rate. Not called when a phase goes on: the
            restored model is compiled, its optimizer where it was.
        callbacks: Returns the Keras callbacks of a phase.
        on_frozen: Called when a task is frozen, for instance to save. At
            least once for each task: if killed before the call has returned,
            it is called again.
        verbose: As for `fit`.
        checkpoint_dir: A folder of its own to go on from, and to write to.
            `None` writes nothing.
        seed: Int, 0 and up. Before task n of the plans is added, the random
            states of the process are set by
            `keras.utils.set_random_seed(seed + n - 1)`; and to others that
            follow from the seed when a phase of it begins or goes on, and
            before it is pruned. `None` leaves them as they are.

    Returns:
        One result per task, those of before a restart included. If all is
        done already, nothing is trained.

    Raises:
        ArgumentError: If a plan or the seed makes no sense, or they are not
            those of the checkpoint.
        TaskError: If a task cannot have its name.
        StageError: If the model is in the middle of a task, or not the one
            of the checkpoint.
        FileError: If the checkpoint cannot be read or written; the last that
            was written stays. Or if another process is at work on it.
        WorkerError: If another worker of the same training is gone, has
            other plans, another seed or checkpoint, or cannot write.
    """
    check(plans)
    _check_seed(seed)
    strategy = model.distribute_strategy
    identities = [plan.identity() for plan in plans]
    found = None
    with distribute.watched(strategy), contextlib.ExitStack() as stack:
        if checkpoint_dir is not None:
            distribute.chief_does(
                lambda: _keep(checkpoint_dir, stack), strategy
            )
            found = progress.read(checkpoint_dir)
        # What differs would make some wait without end for what others skip.
        distribute.check_equal(
            {
                "plans": identities,
                "seed": seed,
                "model": progress.describe(model),
                _CHECKPOINT: found,
            },
            strategy,
        )
        state = found or Progress(identities, seed)
        if found is not None:
            progress.check_continues(found, identities, seed, model)
            state.plans = identities
        _check_names(model, plans, state)
        work = _Work(
            model, compile_fn, callbacks, verbose, checkpoint_dir, state
        )
        if found is None:
            work.save()
        for plan in plans[state.task :]:
            work.learn(plan)
            if on_frozen is not None:
                on_frozen(plan, state.results[-1])
            state.next_task()
            work.save(changed=False)
        return state.results


def restore(
    checkpoint_dir: "str | os.PathLike[str]",
) -> PackNetModel | None:
    """Loads the model of a sequence that was killed, or is finished.

    Under a distribution strategy, call it in the strategy's scope. A loss,
    metric or layer of one's own has to be known to Keras, as for loading any
    model: registered, or in a `keras.saving.custom_object_scope`.

    Args:
        checkpoint_dir: The folder that `run` was given.

    Returns:
        The model for `run` to go on with, or `None` if there is none.

    Raises:
        FileError: If there is one that cannot be read.
        FingerprintError: If a frozen task is not what it was.
        WorkerError: If another worker of the same training is gone, or has
            another checkpoint.
    """
    found = progress.read(checkpoint_dir)
    strategy = tf.distribute.get_strategy()
    distribute.check_equal({_CHECKPOINT: found}, strategy)
    if found is None:
        return None
    try:
        return loading.load_model(os.path.join(checkpoint_dir, found.model))
    except FileError as error:
        raise FileError(
            "The model of the checkpoint cannot be loaded. If it has a loss, "
            "metric or layer of your own, register that by "
            "`keras.saving.register_keras_serializable`, or restore in a "
            f"`keras.saving.custom_object_scope`. {error} of "
            f"checkpoint_dir={str(checkpoint_dir)!r}"
        ) from error


class _Work:
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


def _keep(
    folder: "str | os.PathLike[str]", stack: contextlib.ExitStack
) -> None:
    """Keeps the checkpoint for this process as long as the stack is open."""
    stack.enter_context(locks.locked(folder))
    progress.clean(folder)


def _needs_data(plan: TaskPlan) -> bool:
    return criteria.get(plan.criterion).gradient is not None


def _check_seed(seed: int | None) -> None:
    if seed is None:
        return
    if type(seed) is not int or not 0 <= seed < _MAX_SEED:
        raise ArgumentError(
            f"A seed is an int from 0 to {_MAX_SEED - 1}, or `None`. "
            f"Received: seed={seed!r}"
        )


def _check_names(
    model: PackNetModel, plans: Sequence[TaskPlan], state: Progress
) -> None:
    """Checks that the tasks that are to be added can be."""
    begun = state.phase != "begin"
    for plan in plans[state.task + begun :]:
        if plan.name in model.task_names:
            raise TaskError(
                "Every task has its own name, and the model has tasks "
                f"{model.task_names}. Received: {plan.name!r}"
            )
    if plans and not begun and model.stage not in (None, Stage.FROZEN):
        raise StageError(
            f"Task '{model.task_names[-1]}' is still in training. Call "
            "`freeze_task()` before a sequence begins. "
            f"Received: stage={model.stage}"
        )
