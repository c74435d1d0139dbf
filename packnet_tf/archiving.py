"""What of a packed model goes into files, and how it takes that back."""

from collections.abc import Callable
from typing import NamedTuple

import keras

from packnet_tf import fingerprint
from packnet_tf import graphs
from packnet_tf import inventory
from packnet_tf import layers
from packnet_tf import ownership
from packnet_tf import pruning
from packnet_tf import trainability
from packnet_tf import variables
from packnet_tf.errors import UnsupportedLayerError
from packnet_tf.saving import PackedSaver
from packnet_tf.tasks import Stage
from packnet_tf.tasks import Task


class Part(NamedTuple):
    """A variable that goes into a file.

    Attributes:
        key: Its name, unique and the same in any process.
        variable: The variable.
        owner: Its owner map if it is packed, else `None`.
        exact: Whether it is never rounded.
    """

    key: str
    variable: keras.Variable
    owner: keras.Variable | None = None
    exact: bool = False


class PackedArchive(PackedSaver):
    """The part of the packed model that pack files and deltas are made of."""

    def _parts(self) -> list[Part]:
        """Lists all variables but the optimizer's and those of metrics.

        Raises:
            UnsupportedLayerError: If a layer has state besides.
        """
        parts = [
            Part("own/steps", self.steps, exact=True),
            Part("own/pruned", self.pruned, exact=True),
        ]
        for entry in self._entries:
            key = f"backbone/{entry.key}"
            parts.append(Part(key, entry.variable, entry.owner))
        kept = [e for e in self._entries if e.protection == inventory.PER_TASK]
        for task in self._tasks:
            for entry in kept:
                copy = entry.of_task(task.number)
                if copy is not entry.variable:
                    key = f"copies/{task.number}/{entry.key}"
                    parts.append(Part(key, copy))
        for name in self.task_names:
            parts += _of_head(f"heads/{name}", self.heads[name])
        self._check_complete(parts)
        return parts

    def _parts_of(self, task: int, head: keras.Model) -> list[Part]:
        """Lists what a task adds to those before it.

        Args:
            task: Its number.
            head: Its head.
        """
        parts = []
        for entry in self._entries:
            if entry.owner is not None:
                parts.append(
                    Part(f"backbone/{entry.key}", entry.variable, entry.owner)
                )
            elif entry.protection == inventory.PER_TASK:
                parts.append(Part(f"own/{entry.key}", entry.of_task(task)))
        return parts + _of_head("head", head)

    def _check_complete(self, parts: list[Part]) -> None:
        """Checks that the parts are all that there is."""
        known = {id(part.variable) for part in parts}
        known |= {id(part.owner) for part in parts}
        known |= {id(variable) for variable in self.metrics_variables}
        for variable in self.variables:
            if id(variable) not in known:
                raise UnsupportedLayerError(
                    "A file would lack a variable of the model. Save it as "
                    f"`.keras`. Received: variable {variable.path!r}"
                )
        for layer in self._flatten_layers():
            if hasattr(layer, "save_assets"):
                raise UnsupportedLayerError(
                    "A layer keeps more than variables, which no pack file "
                    "holds. Save the model as `.keras`. Received: "
                    f"layer={layer.name!r} of type {type(layer).__name__}"
                )

    def _filled(self) -> None:
        """Checks and completes a model whose variables were just filled.

        Raises:
            StageError: If its owner maps do not fit its tasks.
            FingerprintError: If a frozen task is not what it was.
        """
        for layer in self._flatten_layers():
            if isinstance(layer, keras.layers.Normalization):
                layer.finalize_state()  # It computes with what it derives.
        self._check_owners()
        self.verify()
        if self.stage is Stage.FROZEN:
            trainability.set_own(self._entries, False)
        for task in self._tasks:
            if task.record is not None:
                task.record = fingerprint.with_sketches(
                    task.record, self._shares(task)
                )

    def _adopt(
        self, task: Task, head: keras.Model, fill: Callable[[], None]
    ) -> None:
        """Takes over a frozen task; nothing has changed if that fails.

        Args:
            task: What is on record of it; sketches may be missing.
            head: Its head.
            fill: Gives it free entries, and assigns to those, to the per-task
                variables and to the head.

        Raises:
            FingerprintError: If it is not what it was when it was frozen.
        """
        entries, packed = self._entries, self._packed()
        own = [
            e.variable for e in entries if e.protection == inventory.PER_TASK
        ]
        before = [variable.numpy() for variable in own]
        empty_pools = {
            entry.key
            for entry in packed
            if not ownership.count(variables.view(entry.owner), ownership.FREE)
        }
        heads = [*(self.heads[name] for name in self.task_names), head]
        try:
            fill()
            for layer in head._flatten_layers():
                if isinstance(layer, keras.layers.Normalization):
                    layer.finalize_state()
            owned = fingerprint.shares(entries, head, task.number)
            record, _ = fingerprint.measure(entries, heads)[-1]
            fingerprint.check(task.record, record, task.name, lambda: owned)
            record = fingerprint.with_sketches(task.record, owned)
        except BaseException:
            pruning.disown(packed, task.number)
            for variable, value in zip(own, before):
                variable.assign(value)
            raise
        task.record = record
        self._empty_pools = empty_pools
        # Keras locks a built model against new layers; its own `enable_lora`
        # opens it in the same way.
        self._tracker.unlock()
        self.heads[task.name] = head
        self._tracker.lock()
        with self.distribute_strategy.scope():
            for _, layer in graphs.walk_layers(self.backbone):
                if isinstance(layer, layers.PackedLayer):
                    layer.keep_copies()
        self._tasks.add(task)
        self._head_only = False
        self._active = task.name
        self.steps.assign(0)
        self.pruned.assign(task.sparsity or -1.0)
        trainability.set_own(entries, False)
        self._freeze_finished()
        self._compile_afresh()


def _of_head(prefix: str, head: keras.Model) -> list[Part]:
    parts: dict[int, Part] = {}
    for name, layer in graphs.walk_layers(head):
        for key, variable in variables.walk(layer, f"{prefix}/{name}/"):
            parts.setdefault(id(variable), Part(key, variable))
    return list(parts.values())
