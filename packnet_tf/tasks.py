"""Tasks and their stages: what is on record of each, and the guarded moves."""

import dataclasses
import enum
import re
from collections.abc import Collection
from typing import Any

from packnet_tf import ownership
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import StageError
from packnet_tf.errors import TaskError
from packnet_tf.record import Record

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")


_RESERVED = frozenset({"serving_default", "signatures"})


class Stage(str, enum.Enum):
    """Where a task stands: TRAIN, RETRAIN after pruning, FROZEN for good."""

    TRAIN = "TRAIN"
    RETRAIN = "RETRAIN"
    FROZEN = "FROZEN"

    def __str__(self) -> str:
        return self.value


@dataclasses.dataclass
class Task:
    """What is on record of one task.

    Attributes:
        name: The task's name, unique in the model.
        number: Its number in the owner maps, from 1.
        stage: Its stage.
        sparsity: The fraction of its pool released so far.
        record: The digests taken when it was frozen, `None` before.
    """

    name: str
    number: int
    stage: Stage = Stage.TRAIN
    sparsity: float = 0.0
    record: Record | None = None

    def to_config(self) -> dict[str, Any]:
        """Returns the task as a dict that JSON can hold."""
        return {
            "name": self.name,
            "number": self.number,
            "stage": self.stage.value,
            "sparsity": self.sparsity,
            "record": self.record and self.record.to_config(),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Task":
        """Makes a task from what `to_config` returned."""
        record = config["record"]
        return cls(
            name=config["name"],
            number=config["number"],
            stage=Stage(config["stage"]),
            sparsity=config["sparsity"],
            record=None if record is None else Record.from_config(record),
        )


class TaskList:
    """The tasks of a model, in the order they were added.

    Args:
        tasks: What to begin with, as `add` would have taken it.

    Raises:
        TaskError: If a number, a name or a record contradicts the order.
        StageError: If a task before the last is not frozen.
    """

    def __init__(self, tasks: "list[Task] | None" = None) -> None:
        self._tasks: list[Task] = []
        for task in tasks or []:
            if task.number != self.check_new(task.name):
                raise TaskError(
                    "Tasks are numbered in their order. "
                    f"Received: task {task.name!r} with number {task.number}"
                )
            if (task.stage is Stage.FROZEN) != (task.record is not None):
                raise TaskError(
                    "A task has a fingerprint when it is frozen, and only "
                    f"then. Received: task {task.name!r}, stage={task.stage}"
                )
            self.add(task)

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self):
        return iter(self._tasks)

    @property
    def names(self) -> list[str]:
        """The names of the tasks, in order."""
        return [task.name for task in self._tasks]

    def find(self, name: str) -> Task:
        """Returns the task of a name, or raises `TaskError`."""
        for task in self._tasks:
            if task.name == name:
                return task
        raise TaskError(
            f"There is no such task. The tasks are {self.names}; add one "
            f"with `add_task()`. Received: task={name!r}"
        )

    def current(self, action: str) -> Task:
        """Returns the newest task.

        Args:
            action: What wants to use it, for the message.

        Raises:
            StageError: If there is no task yet.
        """
        if not self._tasks:
            raise StageError(
                f"`{action}` needs a task. Call `add_task()` first. "
                "Received: a model without tasks"
            )
        return self._tasks[-1]

    def unfrozen(self, action: str) -> Task:
        """Returns the newest task, which must not be frozen yet.

        Args:
            action: What wants to change it, for the message.

        Raises:
            StageError: If there is no task, or it is frozen.
        """
        task = self.current(action)
        if task.stage is Stage.FROZEN:
            raise StageError(
                f"`{action}` would change task '{task.name}', which is "
                "frozen for ever. Call `add_task()` to begin the next one. "
                f"Received: stage={task.stage}"
            )
        return task

    def check_new(self, name: str) -> int:
        """Checks that a task of this name can be added now.

        Args:
            name: Name of the new task.

        Returns:
            Its number.

        Raises:
            TaskError: If the name is taken or not a name, or if there are
                255 tasks already.
            StageError: If the current task is not frozen yet.
        """
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise TaskError(
                "A task's name is made of letters, digits, '_', '-' and '.', "
                "and begins with a letter or digit, as it becomes part of "
                f"file names. Received: {name!r}"
            )
        if name in _RESERVED:
            raise TaskError(
                f"A SavedModel keeps the names {sorted(_RESERVED)} for itself. "
                f"Choose another. Received: {name!r}"
            )
        if name in self.names:
            raise TaskError(
                "Every task has its own name. The tasks are "
                f"{self.names}. Received: {name!r}"
            )
        if self._tasks and self._tasks[-1].stage is not Stage.FROZEN:
            last = self._tasks[-1]
            raise StageError(
                f"Task '{last.name}' is still in training. Call "
                "`freeze_task()` before adding the next. Received: "
                f"stage={last.stage}"
            )
        return ownership.check_task_number(len(self._tasks) + 1)

    def add(self, task: Task) -> None:
        """Appends a task that `check_new` has let pass."""
        self._tasks.append(task)

    def check_removal(self, name: str, also: Collection[str]) -> int:
        """Checks that a task can be removed, and all those after it.

        Args:
            name: Name of the task.
            also: Names of the tasks after it.

        Returns:
            The number of the task.

        Raises:
            ArgumentError: If `also` is no collection of names.
            TaskError: If there is no such task, if it is task 1, or if
                `also` names other tasks than those after it.
        """
        task = self.find(name)
        if isinstance(also, str) or not isinstance(also, Collection):
            raise ArgumentError(
                "`also` is a list of names, of the tasks that are removed "
                f"too. Received: also={also!r}"
            )
        named = [self.find(each).name for each in also]
        later = self.names[task.number :]
        if task.number == 1:
            raise TaskError(
                f"Task '{name}' cannot be removed: it is task 1, with which "
                "all that the tasks share was trained, and nothing would be "
                "left of the network. To begin anew, wrap a plain network; "
                "`unwrap()` makes one of any task. "
                f"Received: {name!r}, where the tasks are {self.names}"
            )
        if set(named) != set(later):
            raise TaskError(
                (
                    f"The tasks after '{name}' compute with its weights. Name "
                    "them all in `also`, and no other task, to remove them "
                    f"with it: also={later}."
                    if later
                    else f"No task comes after '{name}'. Leave out `also`."
                )
                + f" Received: also={list(also)}"
            )
        return task.number

    def remove_from(self, number: int) -> list[Task]:
        """Removes tasks that `check_removal` has let pass.

        Args:
            number: Number of the first of them; all after it go too.

        Returns:
            The tasks that were removed.
        """
        removed = self._tasks[number - 1 :]
        del self._tasks[number - 1 :]
        return removed
