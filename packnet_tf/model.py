"""The packed model: a backbone, a head per task, and the stages of a task."""

import os
import warnings
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from packnet_tf import capacity
from packnet_tf import cloning
from packnet_tf import criteria
from packnet_tf import export
from packnet_tf import files
from packnet_tf import fingerprint
from packnet_tf import inventory
from packnet_tf import layers
from packnet_tf import pruning
from packnet_tf import selection
from packnet_tf import update
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import StageError
from packnet_tf.heads import build_head
from packnet_tf.tasks import Stage
from packnet_tf.tasks import Task
from packnet_tf.tasks import TaskList
from packnet_tf.training import PackedTrainer


@keras.saving.register_keras_serializable(package="packnet_tf")
class PackNetModel(PackedTrainer):
    """Several tasks packed into one network.

    Made by `packnet_tf.wrap()`. Compiles, fits, evaluates, predicts and saves
    as any Keras model; `add_task`, `prune`, `freeze_task` and `set_task` lead
    it from task to task. The newest task is the one that trains; the active
    task is the one that is computed, the newest unless `set_task` says so.

    Args:
        backbone: A Functional model whose packable layers are wrapped in
            `PackedLayer`, as `packnet_tf.cloning.pack` makes it.
        heads: The head of each task, by the task's name.
        tasks: What is on record of each task, in order.
        **kwargs: As for `keras.Model`.

    Attributes:
        backbone: The shared packed network.
        heads: The head of each task, by the task's name.
        steps: `int64` variable, optimizer steps since the task began.

    Reference:
        - [Mallya and Lazebnik, 2018](https://arxiv.org/abs/1711.05769)
    """

    def __init__(
        self,
        backbone: keras.Model,
        heads: dict[str, keras.Model] | None = None,
        tasks: list[Task] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, heads or {}, TaskList(tasks), **kwargs)
        self._unverified = False
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
        return self._tasks.current("stage").stage if len(self._tasks) else None

    @property
    def sparsity(self) -> float:
        """The fraction of its pool that the newest task has released."""
        return self._tasks.current("sparsity").sparsity

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
            StageError: If the current task is not frozen yet.
            ArgumentError: If not exactly one of `units` and `head` is given,
                or the head does not fit the backbone.
        """
        self._check_loaded()
        number = self._tasks.check_new(name)
        with self.distribute_strategy.scope():
            new_head = build_head(
                self.backbone.output, name, units, head, activation
            )
        self._check_unshared(new_head)
        pool = pruning.claim(self._packed(), number)
        # Keras locks a built model against new layers; its own `enable_lora`
        # opens it in the same way.
        self._tracker.unlock()
        self.heads[name] = new_head
        self._tracker.lock()
        self._tasks.add(Task(name, number))
        self._active = name
        self.steps.assign(0)
        self._compile_afresh()
        if pool == 0:
            warnings.warn(
                f"Task '{name}' owns no weight of the backbone, as none was "
                "free: only its head will train. Prune earlier tasks more to "
                "leave room.",
                stacklevel=2,
            )

    def prune(
        self,
        fraction: float,
        criterion: "str | dict[str, Any] | criteria.Criterion" = "magnitude",
    ) -> int:
        """Releases the lowest-scoring weights of the current task.

        In each packed weight exactly `round(fraction * pool)` entries of the
        task's pool are free afterwards, ties by lowest index. They stay zero
        until the next task begins. The stage becomes RETRAIN.

        Args:
            fraction: Float in `[0, 1)`, of the task's pool. It may grow from
                call to call, never shrink.
            criterion: How weights are ranked, as `criteria.get` takes it.

        Returns:
            How many weights were released.

        Raises:
            ArgumentError: If `fraction` is outside `[0, 1)`, or there is no
                such criterion.
            StageError: If there is no task, if it is frozen, if its pool is
                empty, or if it is pruned further already.
        """
        self._check_loaded()
        task = self._tasks.unfrozen("prune()")
        fraction = selection.check_fraction(fraction)
        criterion = criteria.get(criterion)
        if fraction < task.sparsity:
            raise StageError(
                "Released weights do not come back: a task's sparsity only "
                f"grows. Task '{task.name}' is pruned to {task.sparsity:g} "
                f"already. Received: fraction={fraction:g}, stage={task.stage}"
            )
        count = pruning.release(
            self._packed(), task.number, fraction, criterion
        )
        task.stage = Stage.RETRAIN
        task.sparsity = fraction
        update.align_averages(
            getattr(self, "optimizer", None), self._targets(), task.number
        )
        return count

    def freeze_task(self) -> str:
        """Freezes the current task for ever and records its fingerprint.

        With task 1, biases and normalization freeze too. A compiled model
        gets a fresh optimizer.

        Returns:
            The fingerprint, SHA-256 in hexadecimal.

        Raises:
            StageError: If there is no task, or it is frozen already.
            FingerprintError: If an earlier task has changed.
        """
        task = self._tasks.unfrozen("freeze_task()")
        self._align_replicas()
        records = self._check_records()
        task.record = records[-1]
        task.stage = Stage.FROZEN
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

    def verify(self) -> dict[str, str]:
        """Checks that every frozen task still has its fingerprint.

        Returns:
            The fingerprint of each frozen task, by its name.

        Raises:
            FingerprintError: If a task has changed; names it and the first
                variable that differs.
        """
        self._check_records()
        self._unverified = False
        return {
            task.name: task.record.fingerprint
            for task in self._tasks
            if task.record is not None
        }

    def summary_capacity(
        self, print_fn: Callable[[str], Any] = print
    ) -> capacity.Capacity:
        """Prints how the packed weights are shared out.

        Args:
            print_fn: Takes the text.

        Returns:
            The same as data: per layer, per task, and free.
        """
        report = capacity.measure(
            self._entries,
            self.task_names,
            [self.heads[name] for name in self.task_names],
        )
        print_fn(str(report))
        return report

    def summary_protection(
        self, print_fn: Callable[[str], Any] = print
    ) -> list[inventory.Entry]:
        """Prints how each variable of the backbone is protected.

        Args:
            print_fn: Takes the text.

        Returns:
            One entry per variable.
        """
        print_fn(inventory.to_text(self._entries))
        return list(self._entries)

    # Saving and exporting.

    def save(
        self,
        filepath: "str | os.PathLike[str]",
        overwrite: bool = True,
        zipped: bool | None = None,
        **kwargs: Any,
    ) -> None:
        self.verify()
        if str(filepath).startswith("hf://") or not overwrite:
            super().save(filepath, overwrite, zipped, **kwargs)
            return
        with files.replacing(filepath) as new:
            super().save(new, True, zipped, **kwargs)

    def unwrap(self, task: str | None = None) -> keras.Model:
        """Makes a plain Keras model of one task.

        Args:
            task: Name of a task. Defaults to the active one.

        Returns:
            A Functional model of plain layers, on variables of its own, that
            holds this task's weights and zeros elsewhere.

        Raises:
            TaskError: If there is no such task.
            FingerprintError: If a frozen task has changed.
        """
        self._tasks.current("unwrap()")
        chosen = self._tasks.find(task or self._active)
        self.verify()
        return cloning.unpack(
            self.backbone,
            self.heads[chosen.name],
            chosen.number,
            f"{self.name}_{chosen.name}",
        )

    def export_task(
        self,
        task: str,
        filepath: "str | os.PathLike[str]",
        verbose: bool = False,
    ) -> None:
        """Exports one task as a plain model that needs no packnet_tf.

        Args:
            task: Name of a task.
            filepath: Ends in `.keras` for a Keras file; without a suffix it
                is the folder of a SavedModel.
            verbose: Whether Keras reports the SavedModel's signature.

        Raises:
            TaskError: If there is no such task.
            FingerprintError: If a frozen task has changed.
            ArgumentError: If the suffix is of another format.
            FileError: If it cannot be written there.
        """
        export.export_plain(self.unwrap(task), filepath, verbose)

    def export(
        self,
        filepath: "str | os.PathLike[str]",
        verbose: bool = False,
    ) -> None:
        """Exports all tasks as one SavedModel with a signature per task.

        The weights are stored once. `serving_default` is the active task.

        Args:
            filepath: The folder to write.
            verbose: Whether Keras reports the signatures.

        Raises:
            StageError: If there is no task yet.
            FingerprintError: If a frozen task has changed.
            FileError: If it cannot be written there.
        """
        self._tasks.current("export()")
        self.verify()
        others = [name for name in self.task_names if name != self._active]
        export.export_signatures(
            self, [self._active, *others], filepath, verbose
        )

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "heads": {
                name: keras.saving.serialize_keras_object(self.heads[name])
                for name in self.task_names
            },
            "tasks": [task.to_config() for task in self._tasks],
            "active": self._active,
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: Any = None
    ) -> "PackNetModel":
        def load(part: dict[str, Any]) -> Any:
            return keras.saving.deserialize_keras_object(
                part, custom_objects=custom_objects
            )

        model = cls(
            load(config["backbone"]),
            {name: load(head) for name, head in config["heads"].items()},
            [Task.from_config(task) for task in config["tasks"]],
            name=config["name"],
            dtype=load(config["dtype"]),
        )
        model._active = config["active"]
        return model

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Does nothing: the model is built when it is made."""

    def save_own_variables(self, store: Any) -> None:
        for index, variable in enumerate(self._own_state()):
            store[str(index)] = variable.numpy()

    def load_own_variables(self, store: Any) -> None:
        state = self._own_state()
        if len(store.keys()) != len(state):
            raise ArgumentError(
                "The file does not belong to this model. "
                f"Received: {len(store.keys())} variables of its own, "
                f"expected {len(state)}"
            )
        for index, variable in enumerate(state):
            variable.assign(store[str(index)])
        # The layers are loaded after this; their fingerprints are checked at
        # the first use, whoever loads the file.
        self._unverified = True
        self._views.clear()

    # Helpers.

    def _own_state(self) -> list[keras.Variable]:
        """Lists what is saved besides the layers.

        Keras saves no random state. With it, a training that goes on after
        loading draws the same dropout as one that was never interrupted.
        """
        seeds = [v for v in self.variables if inventory.is_seed(v)]
        return [self.steps, *seeds]

    def _packed(self) -> list[inventory.Entry]:
        return [entry for entry in self._entries if entry.owner is not None]

    def _check_loaded(self) -> None:
        """Verifies a model that was just loaded, before its first use."""
        if self._unverified:
            with tf.init_scope():
                self.verify()

    def _check_records(self) -> list[fingerprint.Record]:
        """Computes all records and checks those of the frozen tasks."""
        records = fingerprint.measure(
            self._entries, [self.heads[name] for name in self.task_names]
        )
        for task, record in zip(self._tasks, records):
            if task.record is not None:
                fingerprint.check(task.record, record, task.name)
        return records

    def _freeze_finished(self) -> None:
        """Makes untrainable whatever a frozen task computes with.

        The packed weights stay trainable; there the owner maps decide. A
        frozen normalization layer also stops updating its statistics.
        """
        frozen = [task for task in self._tasks if task.stage is Stage.FROZEN]
        for task in frozen:
            self.heads[task.name].trainable = False
        if not frozen:
            return
        for _, layer in inventory.walk_layers(self.backbone):
            if not isinstance(layer, layers.PackedLayer):
                layer.trainable = False
        for entry in self._entries:
            if entry.owner is None:
                entry.variable.trainable = False

    def _align_replicas(self) -> None:
        """Gives all replicas the same values.

        Under a distribution strategy each replica keeps normalization
        statistics of its own; a frozen task has one set.
        """
        if self.distribute_strategy.num_replicas_in_sync > 1:
            for variable in self.variables:
                variable.assign(variable.numpy())

    def _check_unshared(self, head: keras.Model) -> None:
        """Refuses a head that shares variables with another task."""
        own = {id(variable) for variable in head.variables}
        for variable in self.variables:
            if id(variable) in own:
                raise ArgumentError(
                    "A head belongs to one task alone. Give a new layer. "
                    f"Received: head with variable {variable.path!r}, which "
                    "the model has already"
                )
