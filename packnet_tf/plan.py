"""`plan`: which sparsities share the weights of a network out as wanted."""

import dataclasses
import itertools
import math
import numbers
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from packnet_tf import outlook
from packnet_tf import ownership
from packnet_tf import selection
from packnet_tf import sharing
from packnet_tf import sizes
from packnet_tf.capacity import Capacity
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import StageError
from packnet_tf.model import PackNetModel
from packnet_tf.tasks import TaskList


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the weights of a network will be shared out.

    As text it is a table.

    Attributes:
        sparsities: The sparsity of each task to come, by its name, in order:
            what `PackNetModel.prune` takes.
        capacity: Who will own what once they are learned.
        future: How many weights each task after those will own if they share
            equally what is left.
        bytes: What a pack file of all tasks takes for variables, those of
            future tasks left out, before it codes their values.
        uncounted: Tasks of whose heads nothing is known; they are counted as
            0 in `capacity` and `bytes`.
    """

    sparsities: dict[str, float]
    capacity: Capacity
    future: tuple[int, ...]
    bytes: int
    uncounted: tuple[str, ...] = ()

    def __str__(self) -> str:
        rows = [("task", "sparsity", "weights", "share", "head")]
        owned = self.capacity.owned
        for name, head in zip(self.capacity.tasks, self.capacity.heads):
            sparsity = "-"
            if name in self.sparsities:
                sparsity = f"{self.sparsities[name]:.6g}"
            amount = self._amount(owned[name])
            known = "-" if name in self.uncounted else f"{head:,}"
            rows.append((name, sparsity, *amount, known))
        rows.append(("free", "", *self._amount(self.capacity.free), ""))
        for number, count in enumerate(self.future, 1):
            rows.append((f"  future {number}", "", *self._amount(count), ""))
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = [
            "  ".join(
                cell.rjust(width) if i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths))
            ).rstrip()
            for row in rows
        ]
        lines.insert(1, "-" * len(lines[0]))
        lines.append(f"pack file, values not coded: {self.bytes:,} bytes")
        if self.uncounted:
            lines.append(f"not counted: heads of {', '.join(self.uncounted)}")
        return "\n".join(lines)

    def _amount(self, count: int) -> tuple[str, str]:
        return f"{count:,}", f"{100 * count / self.capacity.total:.2f}%"


def plan(
    model: keras.Model,
    tasks: "int | Sequence[str] | Mapping[str, float]",
    sparsities: Sequence[float] | None = None,
    future: int = 0,
    share: float | None = None,
    units: "int | Mapping[str, int] | None" = None,
    heads: Mapping[str, int] | None = None,
    **options: Any,
) -> Plan:
    """Plans how tasks to come share the weights of a network.

    Nothing is copied and nothing changes. What is planned is exactly what
    tasks will own that are pruned to these sparsities within each packed
    weight, as by `prune(sparsity)`, one after the other.

    Args:
        model: A plain Keras model, of which that is planned which `wrap`
            would pack; or a packed model, of which what is left.
        tasks: The tasks to come, in order: how many they are, or their names,
            to share equally; or the weight of each in sharing, by its name.
            Of a packed model the first may be the newest task, as long as it
            is not frozen. If `wrap` finds a classifier in a plain model, the
            first is the task of that.
        sparsities: The sparsity of each task instead, to see what it leads
            to.
        future: How many more tasks are to come after those.
        share: What each of those can own at least, as a fraction of all
            packed weights. By default each counts as a task of weight 1.
        units: Number of classes of each new task, or of some by name, for a
            dense head.
        heads: Number of entries in the head instead, by name.
        **options: Of a plain model, `head`, `filters`, `biases` and
            `normalization` as for `wrap`.

    Returns:
        A `Plan`.

    Raises:
        ArgumentError: If a task would own nothing, if the newest task would
            have to take weights back, or if an argument makes no sense. That
            a task will own nothing in some of the packed weights is warned
            of.
        TaskError: If a task has no name that it can have, or if there would
            be more than 255.
        StageError: If a task is to be planned that is frozen.
        UnsupportedLayerError: If `wrap` would refuse a layer.

    Example:
    >>> import keras, packnet_tf
    >>> network = keras.Sequential(
    ...     [keras.Input((10,)), keras.layers.Dense(60, name="dense")]
    ... )
    >>> planned = packnet_tf.plan(
    ...     network, ["birds", "cars"], future=2, units=5, head=None
    ... )
    >>> planned.sparsities["birds"], planned.capacity.owned["birds"]
    (0.75, 150)
    >>> print(planned)
    task        sparsity  weights   share  head
    -------------------------------------------
    birds           0.75      150  25.00%   305
    cars        0.666667      150  25.00%   305
    free                      300  50.00%
      future 1                150  25.00%
      future 2                150  25.00%
    pack file, values not coded: 3,993 bytes
    """
    if not isinstance(model, PackNetModel):
        known = outlook.of_plain(model, **options)
    elif options:
        raise ArgumentError(
            "How a packed model is packed was decided by `wrap`. Leave out "
            f"what is of plain models. Received: {sorted(options)}"
        )
    else:
        known = outlook.of_packed(model)
    weights = _read_tasks(known, tasks, future)
    now, names = known.capacity, list(weights)
    if share is not None:
        _check_share(share, future, sparsities)
    if sparsities is not None:
        chosen = _read_sparsities(sparsities, tasks, names)
    elif share is not None:
        chosen = sharing.reserve(now, weights, future, share)
    else:
        chosen = sharing.to_sparsities(list(weights.values()), float(future))
    planned = dict(zip(names, chosen))
    if known.unfrozen in planned:
        sharing.check_growing(now, known.unfrozen, planned[known.unfrozen])
    later = sharing.later(now.after(planned), future)
    to_come = later.tasks[len(later.tasks) - future :]
    sharing.check_owned(later, [*names, *to_come])
    after = now.after(planned)
    new = [name for name in names if name not in now.tasks]
    found = outlook.count_heads(known, new, units, heads)
    of_new = [count or 0 for count in found]
    width = tf.as_dtype(keras.config.floatx()).size
    rest = known.shared + known.own * len(after.tasks)
    rest += known.heads + width * sum(of_new)
    return Plan(
        planned,
        dataclasses.replace(after, heads=(*now.heads, *of_new)),
        tuple(later.owned[name] for name in to_come),
        sizes.compact(after.layers, known.widths, rest),
        tuple(name for name, count in zip(new, found) if count is None),
    )


def _read_tasks(
    known: outlook.Outlook, tasks: Any, future: int
) -> dict[str, float]:
    """Returns the weight of each task to come, by its name."""
    there = known.capacity.tasks
    if isinstance(tasks, numbers.Integral) and not isinstance(tasks, bool):
        if tasks > 0:
            ownership.check_task_number(len(there) + tasks)
        tasks = _free_names(there, tasks)
    elif isinstance(tasks, str) or not isinstance(tasks, Iterable):
        raise ArgumentError(
            "`tasks` is a number of tasks, their names, or the weight of each "
            f"by its name. Received: tasks={tasks!r}"
        )
    names = list(tasks)
    for name in names:
        TaskList().check_new(name)
    if len(set(names)) != len(names):
        raise ArgumentError(
            f"Every task has its own name. Received: tasks={names}"
        )
    new = [n for n in names if n != known.unfrozen or n != names[0]]
    if set(new) & set(there):
        raise StageError(
            "Tasks to come are planned, and before them the newest one if it "
            f"is not frozen. Received: tasks={names}, where the tasks are "
            f"{list(there)}"
        )
    is_count = isinstance(future, numbers.Integral)
    if isinstance(future, bool) or not is_count or future < 0:
        raise ArgumentError(
            "`future` is a number of tasks, 0 or more. "
            f"Received: future={future!r}"
        )
    if not names and not future:
        raise ArgumentError(
            "There is nothing to plan. Name the tasks to come. "
            f"Received: tasks={names}, future=0"
        )
    ownership.check_task_number(len(there) + len(new) + future or 1)
    if not isinstance(tasks, Mapping):
        return dict.fromkeys(names, 1.0)
    for name, weight in tasks.items():
        if not _is_number(weight) or not 0.0 < weight < math.inf:
            raise ArgumentError(
                "The weight of a task in sharing is a positive number. "
                f"Received: {weight!r} for {name!r}"
            )
    return {name: float(weight) for name, weight in tasks.items()}


def _free_names(there: Sequence[str], count: int) -> list[str]:
    """Makes up names of tasks that no other task has."""
    names = (f"task_{number}" for number in itertools.count(len(there) + 1))
    free = (name for name in names if name not in there)
    return list(itertools.islice(free, max(count, 0)))


def _read_sparsities(
    sparsities: Any, tasks: Any, names: list[str]
) -> list[float]:
    if isinstance(tasks, Mapping):
        raise ArgumentError(
            "Tasks share by their weights or are pruned to sparsities that "
            "are given. Give one of both. "
            f"Received: tasks={tasks!r}, sparsities={sparsities!r}"
        )
    chosen = [selection.check_fraction(each) for each in sparsities]
    if len(chosen) != len(names):
        raise ArgumentError(
            "Each task has its sparsity. "
            f"Received: {len(chosen)} sparsities for {len(names)} tasks"
        )
    return chosen


def _check_share(share: Any, future: int, sparsities: Any) -> None:
    if (
        future
        and sparsities is None
        and _is_number(share)
        and 0.0 < share < 1.0
    ):
        return
    raise ArgumentError(
        "`share` is what each of the `future` tasks can own at least: a "
        "fraction of all packed weights, in (0, 1), for which sparsities are "
        f"found. Received: share={share!r}, future={future!r}, "
        f"sparsities={sparsities!r}"
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
