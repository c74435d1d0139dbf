"""How the packed weights are shared out: as data, as text, as a picture."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from packnet_tf import files
from packnet_tf import inventory
from packnet_tf import ownership
from packnet_tf import selection
from packnet_tf import variables
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import PackageError

_FREE_COLOR = "#d9d9d9"
_NAMED = 20  # Tasks that colors of a legend can tell apart.
_LEGEND_COLUMNS = 5
_MANY = "viridis"  # Colors of more tasks than that, in their order.


@dataclasses.dataclass(frozen=True)
class Capacity:
    """How many packed weights each task owns, per layer and in total.

    Attributes:
        tasks: Names of the tasks, in order.
        layers: For each packed weight, by its key, the number of free
            entries and of those of task 1, 2, ...
        unpacked: Number of entries in the backbone that are not packed:
            biases, normalization, layers left out.
        heads: Number of entries in each task's head, in the order of `tasks`.
    """

    tasks: tuple[str, ...]
    layers: dict[str, tuple[int, ...]]
    unpacked: int
    heads: tuple[int, ...]

    @property
    def owned(self) -> dict[str, int]:
        """Number of packed weights of each task, by its name."""
        return dict(zip(self.tasks, self._columns()[1:]))

    @property
    def free(self) -> int:
        """Number of packed weights that no task owns."""
        return self._columns()[0]

    @property
    def total(self) -> int:
        """Number of packed weights."""
        return sum(self._columns())

    def share(self, task: str) -> float:
        """Returns the fraction of the packed weights that a task owns."""
        return self.owned[task] / self.total if self.total else 0.0

    def after(self, sparsities: Mapping[str, float]) -> "Capacity":
        """Tells how the weights will be shared out when tasks are learned.

        Each task prunes within every packed weight, as `PackNetModel.prune`
        does by default. The heads of tasks to come are counted as 0.

        Args:
            sparsities: The sparsity of each task, by its name, in order. The
                first may be the newest task, if it is not pruned yet.

        Returns:
            A `Capacity`.

        Raises:
            ArgumentError: If a sparsity is outside of `[0, 1)`, or if a task
                is finished that is to be pruned.
        """
        tasks, heads = list(self.tasks), list(self.heads)
        layers = {key: list(row) for key, row in self.layers.items()}
        for place, (name, sparsity) in enumerate(sparsities.items()):
            selection.check_fraction(sparsity)
            if name in tasks and (place or name != tasks[-1]):
                raise ArgumentError(
                    "Only the newest task and tasks to come are pruned. "
                    f"Received: {name!r}, where the tasks are {tasks}"
                )
            if name not in tasks:
                tasks.append(name)
                heads.append(0)
                for row in layers.values():
                    row.append(0)
            for row in layers.values():
                pool = row[0] + row[-1]
                row[0] = round(sparsity * pool)
                row[-1] = pool - row[0]
        return Capacity(
            tuple(tasks),
            {key: tuple(row) for key, row in layers.items()},
            self.unpacked,
            tuple(heads),
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as a dict that JSON can hold."""
        return {
            "tasks": list(self.tasks),
            "total": self.total,
            "free": self.free,
            "owned": self.owned,
            "unpacked": self.unpacked,
            "heads": dict(zip(self.tasks, self.heads)),
            "layers": {
                key: {
                    "free": row[0],
                    "owned": dict(zip(self.tasks, row[1:])),
                }
                for key, row in self.layers.items()
            },
        }

    def to_rows(self) -> list[list[str]]:
        """Lays everything packed out as a table.

        Returns:
            A row of headings, one for each packed weight, and the total; the
            entries of each, and whose share it is in percent.
        """
        return [
            ["packed weight", "entries", *self.tasks, "free"],
            *([key, *_format(row)] for key, row in self.layers.items()),
            ["total", *_format(self._columns())],
        ]

    def __str__(self) -> str:
        header, *rows, total = self.to_rows()
        widths = [
            max(len(line[i]) for line in [header, *rows, total])
            for i in range(len(header))
        ]
        lines = [
            "  ".join(
                [line[0].ljust(widths[0])]
                + [cell.rjust(w) for cell, w in zip(line[1:], widths[1:])]
            )
            for line in [header, *rows, total]
        ]
        rule = "-" * len(lines[0])
        notes = f"not packed: {self.unpacked:,} in the backbone" + "".join(
            f", {size:,} in the head of {task}"
            for task, size in zip(self.tasks, self.heads)
        )
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1], notes])

    def plot(self, path: "str | os.PathLike[str]") -> None:
        """Draws a stacked bar for each packed weight, and one for the total.

        Needs matplotlib (`pip install packnet_tf[plot]`).

        Args:
            path: File to write; its suffix gives the format, such as `.png`
                or `.svg`.

        Raises:
            ArgumentError: If `path` has no suffix, or not that of a picture.
            FileError: If it cannot be written there.
            PackageError: If matplotlib is not installed.
        """
        try:
            from matplotlib import cm
            from matplotlib import colors
            from matplotlib.backend_bases import FigureCanvasBase
            from matplotlib.figure import Figure
        except ImportError as error:
            raise PackageError(
                "Pictures are drawn by matplotlib. Install it: "
                f"`pip install packnet_tf[plot]`. Received: {error}"
            ) from error
        suffix = pathlib.Path(path).suffix.lower()
        if suffix[1:] not in FigureCanvasBase.get_supported_filetypes():
            raise ArgumentError(
                "The suffix of a picture gives its format, such as `.png` or "
                f"`.svg`. Received: path={str(path)!r}"
            )

        labels = ["total", *self.layers]
        rows = np.array([self._columns(), *self.layers.values()], float)
        shares = rows / np.maximum(rows.sum(axis=1, keepdims=True), 1)
        count = len(self.tasks)
        named = count <= _NAMED
        lines = 1 + count // _LEGEND_COLUMNS if named else 1
        figure = Figure(
            figsize=(8, 1.0 + 0.24 * (len(labels) + lines)),
            layout="constrained",
        )
        axes = figure.add_subplot()
        left = np.zeros(len(labels))
        columns = [(task, i) for i, task in enumerate(self.tasks, 1)]
        for label, column in [*columns, ("free", 0)]:
            axes.barh(
                labels,
                shares[:, column],
                left=left,
                color=_color(column, count),
                label=label if named or not column else None,
            )
            left += shares[:, column]
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.set_xlabel("share of the packed weights")
        axes.tick_params(axis="y", labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(
            loc="outside upper center",
            ncols=min(_LEGEND_COLUMNS, count + 1),
            frameon=False,
        )
        if not named:
            scale = cm.ScalarMappable(colors.Normalize(1, count), _MANY)
            figure.colorbar(scale, ax=axes, label="number of the task")
        with files.replacing(path) as new:
            figure.savefig(new, dpi=150)

    def _columns(self) -> tuple[int, ...]:
        rows = np.array(list(self.layers.values()), np.int64)
        sums = rows.reshape(-1, len(self.tasks) + 1).sum(axis=0)
        return tuple(int(count) for count in sums)


def _format(row: tuple[int, ...]) -> list[str]:
    total = sum(row)
    shares = [f"{100 * n / total if total else 0:.1f}%" for n in row]
    return [f"{total:,}", *shares[1:], shares[0]]


def _color(number: int, count: int) -> Any:
    """Returns the color of a task's number, out of so many; 0 is free."""
    import matplotlib

    if number == 0:
        return _FREE_COLOR
    if count > _NAMED:
        return matplotlib.colormaps[_MANY]((number - 1) / (count - 1))
    colormap = matplotlib.colormaps["tab10" if count <= 10 else "tab20"]
    return colormap(number - 1)


def measure(
    entries: list[inventory.Entry], tasks: list[str], heads: list[Any]
) -> Capacity:
    """Counts who owns what.

    Args:
        entries: The backbone's variables, as `inventory.take` lists them.
        tasks: Names of the tasks, in order.
        heads: Their heads.

    Returns:
        A `Capacity`.
    """
    layers = {}
    unpacked = 0
    for entry in entries:
        if entry.owner is not None:
            owner = variables.view(entry.owner)
            counts = ownership.counts(owner, len(tasks))
            layers[entry.key] = tuple(counts.tolist())
        elif entry.protection != inventory.SEED:
            unpacked += int(np.prod(entry.variable.shape))
    sizes = tuple(int(head.count_params()) for head in heads)
    return Capacity(tuple(tasks), layers, unpacked, sizes)
