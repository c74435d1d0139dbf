"""How tasks are taken out of a packed model again."""

from collections.abc import Collection

from packnet_tf import graphs
from packnet_tf import ownership
from packnet_tf import pruning
from packnet_tf import trainability
from packnet_tf import variables
from packnet_tf.archiving import PackedArchive
from packnet_tf.layers import PackedLayer


class PackedRemover(PackedArchive):
    """The part of the packed model that removes tasks."""

    def remove_task(self, name: str, also: Collection[str] = ()) -> int:
        """Removes the newest task, as if it had never been added.

        Its weights are free again, and its head, its own biases and
        normalization and its record are gone. The task before is the newest
        then, and active. Earlier tasks stay as they are, bit for bit.

        An older task lends its weights to those after it, so it can be
        removed only together with all of them. Task 1 cannot be removed:
        what is shared by all tasks was trained with it.

        A task that is still in training can be removed, and one whose
        weights no longer verify, as long as those before it do. Random
        state, as of dropout, goes on from where it is. A compiled model is
        compiled again with the same configuration and a fresh optimizer;
        `steps` is 0 until the next task trains.

        Args:
            name: Name of the newest task, or of an older one.
            also: Names of all tasks after it, which are removed too.

        Returns:
            How many weights are free again that the tasks owned.

        Raises:
            TaskError: If there is no such task, if it is task 1, or if
                `also` does not name all tasks after it and no other.
            StageError: Inside of `fit`.
            FingerprintError: If a task has changed that is to stay.
        """
        self._refuse_while_training("remove_task()")
        first = self._tasks.check_removal(name, also)
        self._check_records(first - 1)
        for _, layer in graphs.walk_layers(self.backbone):
            if isinstance(layer, PackedLayer):
                layer.return_to(first - 1)
        packed = self._packed()
        count = pruning.release_tasks(packed, first)
        for removed in self._tasks.remove_from(first):
            # Keras forgets a layer that is popped, not one that is deleted.
            self.heads.pop(removed.name)
        newest = self._tasks.current("remove_task()")
        pools = {
            entry.key: ownership.pool_size(
                variables.view(entry.owner), newest.number
            )
            for entry in packed
        }
        trainability.let_train(
            [e for e in packed if e.key in self._empty_pools and pools[e.key]]
        )
        self._empty_pools = {key for key, size in pools.items() if not size}
        self._head_only = False
        self._active = newest.name
        self.steps.assign(0)
        self.pruned.assign(newest.sparsity or -1.0)
        trainability.set_own(self._entries, False)
        self._freeze_finished()
        self._compile_afresh()
        self.verify()
        return count
