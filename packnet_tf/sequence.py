"""A list of tasks end to end: train, prune, retrain, freeze, one by one.

With a folder for its checkpoint, a sequence that was killed goes on from its
last completed epoch.
"""

import contextlib
import os
from collections.abc import Callable
from collections.abc import Sequence

import tensorflow as tf

from packnet_tf import distribute
from packnet_tf import loading
from packnet_tf import locks
from packnet_tf import progress
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import FileError
from packnet_tf.errors import StageError
from packnet_tf.errors import TaskError
from packnet_tf.model import PackNetModel
from packnet_tf.progress import Progress
from packnet_tf.task_plan import TaskPlan
from packnet_tf.task_plan import TaskResult
from packnet_tf.task_plan import check
from packnet_tf.task_work import CallbacksFn
from packnet_tf.task_work import CompileFn
from packnet_tf.task_work import TaskWork
from packnet_tf.tasks import Stage

__all__ = ["CompileFn", "TaskPlan", "TaskResult", "check", "restore", "run"]

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
        work = TaskWork(
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


def _keep(
    folder: "str | os.PathLike[str]", stack: contextlib.ExitStack
) -> None:
    """Keeps the checkpoint for this process as long as the stack is open."""
    stack.enter_context(locks.locked(folder))
    progress.clean(folder)


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
