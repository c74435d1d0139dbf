"""The packed model: a backbone, a head per task, and the stages of a task."""

import warnings
from collections.abc import Callable
from typing import Any

import keras

from packnet_tf import criteria
from packnet_tf import distribute
from packnet_tf import fingerprint
from packnet_tf import gradients
from packnet_tf import graphs
from packnet_tf import layers
from packnet_tf import pruning
from packnet_tf import selection
from packnet_tf import trainability
from packnet_tf import update
from packnet_tf.errors import StageError
from packnet_tf.heads import build_head
from packnet_tf.heads import check_unshared
from packnet_tf.removing import PackedRemover
from packnet_tf.tasks import Stage
from packnet_tf.tasks import Task
from packnet_tf.tasks import TaskList


@keras.saving.register_keras_serializable(package="packnet_tf")
class PackNetModel(PackedRemover):
    """Several tasks packed into one network.

    Made by `packnet_tf.wrap()`. Compiles, fits, evaluates, predicts and saves
    as any Keras model; `add_task`, `prune`, `freeze_task` and `set_task` lead
    it from task to task, `remove_task` back again. The newest task is the one
    that trains; the active task is the one that is computed, the newest unless
    `set_task` says so.

    Args:
        backbone: A Functional model whose packable layers are wrapped in
            `PackedLayer`, as `packnet_tf.cloning.pack` makes it.
        heads: The head of each task, by the task's name.
        tasks: What is on record of each task, in order.
        left_out: Why a weight is not packed, by the variable's key.
        empty_pools: Keys of the packed weights of which the newest task owns
            nothing, as none of their entries was free when it began.
        **kwargs: As for `keras.Model`.

    Attributes:
        backbone: The shared packed network.
        heads: The head of each task, by the task's name.
        steps: `int64` variable, optimizer steps since the task began, those
            under `head_only` left out.

    Reference:
        - [Mallya and Lazebnik, 2018](https://arxiv.org/abs/1711.05769)
    """

    def __init__(
        self,
        backbone: keras.Model,
        heads: dict[str, keras.Model] | None = None,
        tasks: list[Task] | None = None,
        left_out: dict[str, str] | None = None,
        empty_pools: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            backbone,
            heads or {},
            TaskList(tasks),
            left_out or {},
            empty_pools or [],
            **kwargs,
        )
        self.built = True
        self._freeze_finished()

    # Tasks and stages.

    @property
    def task_names(self) -> list[str]:
        """The names of the tasks, in the order they were added."""
        return self._tasks.names

    @property
    def task(self) -> str | None:
        """The name of the active task, `None` before the first."""
        return self._active

    @property
    def stage(self) -> Stage | None:
        """The stage of the newest task, `None` before the first."""
        return self._newest("stage").stage if len(self._tasks) else None

    @property
    def sparsity(self) -> float:
        """The fraction of its pool that the newest task has released."""
        return self._newest("sparsity").sparsity

    @distribute.watching
    def add_task(
        self,
        name: str,
        units: int | None = None,
        head: keras.layers.Layer | None = None,
        activation: "str | Callable[..., Any] | None" = "softmax",
    ) -> None:
        """Begins the next task: it gets a head and owns all free weights.

        A compiled model is compiled again with the same configuration and a
        fresh optimizer.

        Args:
            name: Name of the task: letters, digits, `_`, `-` and `.`.
            units: Number of classes, for a dense head. Features with spatial
                or time dimensions are averaged over those first.
            head: Any Keras layer or model to be the head instead.
            activation: Of the dense head.

        Raises:
            TaskError: If the name is taken or not a name.
            StageError: If the current task is not frozen yet, or inside of
                `fit`.
            ArgumentError: If not exactly one of `units` and `head` is given,
                or the head does not fit the backbone.
            WorkerError: If another worker of the same training is gone.
        """
        self._check_loaded()
        self._refuse_while_training("add_task()")
        number = self._tasks.check_new(name)
        with self.distribute_strategy.scope():
            new_head = build_head(
                self.backbone.output, name, units, head, activation
            )
        check_unshared(new_head, self.variables)
        pools = pruning.claim(self._packed(), number)
        self._empty_pools = {key for key, size in pools.items() if not size}
        # Keras locks a built model against new layers; its own `enable_lora`
        # opens it in the same way.
        self._tracker.unlock()
        self.heads[name] = new_head
        self._tracker.lock()
        self._tasks.add(Task(name, number))
        self._head_only = False
        self._active = name
        self.steps.assign(0)
        self.pruned.assign(-1.0)
        trainability.set_own(self._entries, True)
        self._freeze_finished()
        self._compile_afresh()
        if not any(pools.values()):
            warnings.warn(
                f"Task '{name}' owns no weight of the backbone, as none was "
                "free: only its head, and what it has of its own, will train. "
                "Prune earlier tasks more to leave room.",
                stacklevel=3,
            )

    @distribute.watching
    def prune(
        self,
        fraction: float,
        criterion: "str | dict[str, Any] | criteria.Criterion" = "magnitude",
        scope: str = "layer",
        data: Any = None,
    ) -> int:
        """Releases the lowest-scoring weights of the current task.

        Exactly `round(fraction * pool)` entries of the task's pool are free
        afterwards, ties by lowest index: in each packed weight as in the
        paper, or in all of them together. They stay zero until the next task
        begins. The stage becomes RETRAIN.

        Args:
            fraction: Float in `[0, 1)`, of the task's pool. It may grow from
                call to call, never shrink.
            criterion: How weights are ranked, as `criteria.get` takes it.
            scope: `"layer"` to rank within each packed weight, `"global"` to
                rank over all of them together.
            data: What a criterion such as `"taylor"` computes gradients on: a
                `tf.data.Dataset` or `keras.utils.PyDataset` of batches, or
                arrays, `(x, y)` or `(x, y, sample_weight)`, taken in batches
                of 32. Other criteria need none.

        Returns:
            How many weights were released.

        Raises:
            ArgumentError: If `fraction` is outside `[0, 1)`, if there is no
                such criterion or scope, if a packed weight would have to take
                entries back, or if gradients cannot be computed on the data
                or are not finite.
            StageError: If there is no task, if it is frozen, if its pool is
                empty, if it is pruned further already, or if gradients are
                needed and the model is not compiled with a loss.
            WorkerError: If another worker of the same training is gone.
        """
        self._check_loaded()
        self._newest("prune()")
        task = self._tasks.unfrozen("prune()")
        fraction = selection.check_fraction(fraction)
        criterion = criteria.get(criterion)
        if fraction < task.sparsity:
            raise StageError(
                "Released weights do not come back: a task's sparsity only "
                f"grows. Task '{task.name}' is pruned to {task.sparsity:g} "
                f"already. Received: fraction={fraction:g}, stage={task.stage}"
            )
        entries = self._packed()
        pruning.check(entries, task.number, fraction, scope)
        measured = None
        if criterion.gradient is not None:
            variables = [entry.variable for entry in entries]
            measured = gradients.measure(
                self, task.name, variables, data, criterion.gradient
            )
        count = pruning.release(
            entries, task.number, fraction, criterion, scope, measured
        )
        self.pruned.assign(fraction)
        if distribute.is_multi_worker(self.distribute_strategy):
            # One decision for all, whatever machines they run on.
            distribute.align(self.variables, self.distribute_strategy)
        update.align_averages(
            getattr(self, "optimizer", None), self._targets(), task.number
        )
        return count

    @distribute.watching
    def freeze_task(self) -> str:
        """Freezes the current task for ever and records its fingerprint.

        With task 1, biases and normalization freeze too. A compiled model
        gets a fresh optimizer.

        Returns:
            The fingerprint, SHA-256 in hexadecimal.

        Raises:
            StageError: If there is no task, if it is frozen already, if
                weights that it has released are not zero, or inside of `fit`.
            FingerprintError: If an earlier task has changed.
            WorkerError: If another worker of the same training is gone.
        """
        self._refuse_while_training("freeze_task()")
        self._newest("freeze_task()")
        task = self._tasks.unfrozen("freeze_task()")
        pruning.check_released(self._packed())
        self.align_replicas()
        record, _ = self._check_records()[-1]
        record = fingerprint.with_sketches(record, self._shares(task))
        with self.distribute_strategy.scope():
            for _, layer in graphs.walk_layers(self.backbone):
                if isinstance(layer, layers.PackedLayer):
                    layer.keep_copies()
        task.record = record
        task.stage = Stage.FROZEN
        self._head_only = False
        trainability.set_own(self._entries, False)
        self._freeze_finished()
        self._compile_afresh()
        return task.record.fingerprint

    def set_task(self, name: str) -> None:
        """Chooses the task that is computed. No weight changes.

        Args:
            name: Name of a task.

        Raises:
            TaskError: If there is no such task.
        """
        self._active = self._tasks.find(name).name

    def align_replicas(self) -> None:
        """Gives all replicas, of all workers, the values of the first one.

        Under a distribution strategy each replica keeps normalization
        statistics of its own; a frozen task and a saved model have one set.
        All workers call it together. Without a strategy it does nothing.
        """
        if self.distribute_strategy.num_replicas_in_sync > 1:
            distribute.align(self.variables, self.distribute_strategy)
