"""What a packed model tells of itself: proofs, capacity, protection."""

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from packnet_tf import capacity
from packnet_tf import fingerprint
from packnet_tf import inventory
from packnet_tf.computing import PackedComputer
from packnet_tf.tasks import Task


class PackedReporter(PackedComputer):
    """The part of the packed model that verifies and reports."""

    def verify(self) -> dict[str, fingerprint.Proof]:
        """Checks that every frozen task still has its fingerprint.

        That covers the values of variables. How layers are configured, heads
        included, is under no fingerprint.

        Returns:
            What was checked of each frozen task, by its name: its
            fingerprint, and how many variables and entries that covers.

        Raises:
            FingerprintError: If a task has changed; names it and the first
                variable that differs, and tells how many entries of it do.
        """
        measured = self._check_records()
        self._unverified = False
        return {
            task.name: proof
            for task, (_, proof) in zip(self._tasks, measured)
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

    def summary(
        self,
        *args: Any,
        print_fn: Callable[[str], Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Prints what Keras prints, and how the backbone is protected.

        Args:
            *args: As for `keras.Model.summary`.
            print_fn: Takes the text. By default it is printed.
            **kwargs: As for `keras.Model.summary`.
        """
        super().summary(*args, print_fn=print_fn, **kwargs)
        chosen = {} if print_fn is None else {"print_fn": print_fn}
        self._print_totals(**chosen)

    def summary_protection(
        self, print_fn: Callable[[str], Any] = print
    ) -> list[inventory.Entry]:
        """Prints how each variable of the backbone is protected, and why.

        A variable is packed, kept per task, frozen after task 1, or the
        state of a random number generator, on which no output at inference
        depends.

        Args:
            print_fn: Takes the text.

        Returns:
            One entry per variable.
        """
        print_fn(inventory.to_text(self._entries))
        return list(self._entries)

    # Helpers.

    def _print_totals(self, print_fn: Callable[[str], Any] = print) -> None:
        print_fn(inventory.totals(self._entries))

    def _check_loaded(self) -> None:
        """Verifies a model that was just loaded, before its first use."""
        if self._unverified:
            with tf.init_scope():
                self.verify()

    def _check_records(
        self, last: int | None = None
    ) -> list[tuple[fingerprint.Record, fingerprint.Proof]]:
        """Computes all records and checks those of the frozen tasks.

        Args:
            last: Number of the last task to check, by default of all.

        Returns:
            The record of each task and what it covers.
        """
        measured = fingerprint.measure(
            self._entries, [self.heads[name] for name in self.task_names]
        )
        checked = list(self._tasks)[:last]
        for task, (record, _) in zip(checked, measured):
            if task.record is not None:
                list_owned = functools.partial(self._shares, task)
                fingerprint.check(task.record, record, task.name, list_owned)
        if last is None and measured and task.record is not None:
            fingerprint.check_own(self._entries, task.number, task.name)
        return measured

    def _shares(self, task: Task) -> dict[str, dict[str, fingerprint.Share]]:
        """Lists what a task owns."""
        return fingerprint.shares(
            self._entries, self.heads[task.name], task.number
        )
