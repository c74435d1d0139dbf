"""What is in a packed model: as data, as text, as a page."""

import base64
import dataclasses
import html
import os
import pathlib
import tempfile
from typing import Any

from packnet_tf import files
from packnet_tf import sizes
from packnet_tf.capacity import Capacity
from packnet_tf.model import PackNetModel

_MILLION = 1e6
_ROUNDED = "Values in the file are rounded, which is lossy."
_EXACT = "Values in the file are not rounded."

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 68rem;
       margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff; }}
h2 {{ margin-top: 2.5rem; border-bottom: 1px solid #ddd; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: .35rem .6rem; border-bottom: 1px solid #ddd;
         text-align: right; white-space: nowrap; }}
th:first-child {{ text-align: left; font-weight: 400; }}
thead th {{ font-weight: 600; }}
img {{ max-width: 100%; height: auto; }}
code {{ font-size: .8em; }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


@dataclasses.dataclass(frozen=True)
class TaskEntry:
    """One task of a packed model.

    Attributes:
        name: Its name.
        number: Its number in the owner maps, from 1.
        stage: `"TRAIN"`, `"RETRAIN"` or `"FROZEN"`.
        sparsity: The fraction of its pool that it has released.
        owned: How many packed weights it owns.
        share: The same as a fraction of all packed weights.
        head: How many entries its head has.
        fingerprint: SHA-256 in hexadecimal, `None` until it is frozen.
    """

    name: str
    number: int
    stage: str
    sparsity: float
    owned: int
    share: float
    head: int
    fingerprint: str | None


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What is in a packed model.

    Attributes:
        name: The model's name, or the file's.
        tasks: The tasks, in order.
        active: Name of the active task, `None` before the first.
        capacity: Who owns what.
        sizes: How many bytes it takes in several forms.
        file_size: Bytes of the file or folder that it came from, `None`
            without one.
        rounded: Whether values were rounded in the pack file that it came
            from, `None` if it came from none.
    """

    name: str
    tasks: tuple[TaskEntry, ...]
    active: str | None
    capacity: Capacity
    sizes: sizes.Sizes
    file_size: int | None = None
    rounded: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as a dict that JSON can hold."""
        return {
            "name": self.name,
            "tasks": [dataclasses.asdict(task) for task in self.tasks],
            "active": self.active,
            "capacity": self.capacity.to_dict(),
            "sizes": dataclasses.asdict(self.sizes),
            "file_size": self.file_size,
            "rounded": self.rounded,
        }

    def __str__(self) -> str:
        rows = self._task_rows()
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(
                cell.ljust(width) if i in (0, 2) else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths))
            ).rstrip()
            for row in rows
        ]
        sizes = self._size_rows()
        width = max(len(name) for name, _ in sizes)
        amounts = [f"{name.ljust(width)}{value:>12}" for name, value in sizes]
        amounts += self._notes()
        return "\n".join(
            [self.name, "", *lines, "", str(self.capacity), "", *amounts]
        )

    def write(self, path: "str | os.PathLike[str]") -> None:
        """Writes a report.

        Needs matplotlib (`pip install packnet_tf[plot]`).

        Args:
            path: Ends in `.html` for a page in one file, or in the suffix of
                a picture of the capacity, such as `.png` or `.svg`.

        Raises:
            ArgumentError: If it has no suffix, or not that of a picture.
            FileError: If it cannot be written there.
            PackageError: If matplotlib is not installed.
        """
        if pathlib.Path(path).suffix.lower() not in (".html", ".htm"):
            self.capacity.plot(path)
            return
        with tempfile.TemporaryDirectory() as folder:
            picture = pathlib.Path(folder) / "capacity.png"
            self.capacity.plot(picture)
            data = base64.b64encode(picture.read_bytes()).decode("ascii")
        body = (
            "<h2>Tasks</h2>"
            + _table(self._task_rows())
            + "<h2>Sizes</h2>"
            + _table([["", "size"], *map(list, self._size_rows())])
            + "".join(f"<p>{html.escape(note)}</p>" for note in self._notes())
            + "<h2>Who owns the weights</h2>"
            + f'<img src="data:image/png;base64,{data}" alt="Shares of the '
            'packed weights by task and layer">'
            + _table(self.capacity.to_rows())
        )
        with files.replacing(path) as new:
            new.write_text(
                _PAGE.format(title=html.escape(self.name), body=body),
                encoding="utf-8",
                errors="backslashreplace",  # A name of a file is any bytes.
            )

    def _task_rows(self) -> list[list[str]]:
        header = [
            *("task", "number", "stage", "sparsity", "weights", "share"),
            *("head", "fingerprint"),
        ]
        return [header] + [
            [
                task.name + (" *" if task.name == self.active else ""),
                str(task.number),
                task.stage,
                f"{task.sparsity:g}",
                f"{task.owned:,}",
                f"{100 * task.share:.1f}%",
                f"{task.head:,}",
                (task.fingerprint or "-")[:16],
            ]
            for task in self.tasks
        ]

    def _size_rows(self) -> list[tuple[str, str]]:
        known = [
            ("file", self.file_size),
            ("owned weights, entropy of owner maps", self.sizes.compact),
            ("by the paper's formula", self.sizes.paper),
            ("a network per task", self.sizes.separate),
        ]
        return [
            (name, f"{size / _MILLION:,.2f} MB")
            for name, size in known
            if size is not None
        ]

    def _notes(self) -> list[str]:
        if self.rounded is None:
            return []
        return [_ROUNDED if self.rounded else _EXACT]


def inspect(
    model: PackNetModel,
    path: "str | os.PathLike[str] | None" = None,
    rounded: bool | None = None,
) -> Inspection:
    """Looks at a packed model.

    Args:
        model: The packed model.
        path: The file or folder that it came from, if any.
        rounded: If that is a pack file, whether values are rounded in it.

    Returns:
        An `Inspection`.
    """
    capacity = model.summary_capacity(print_fn=_quiet)
    records = {task["name"]: task for task in model.get_config()["tasks"]}
    owned = capacity.owned
    tasks = []
    for number, (name, head) in enumerate(
        zip(model.task_names, capacity.heads), 1
    ):
        record = records[name]["record"]
        tasks.append(
            TaskEntry(
                name,
                number,
                records[name]["stage"],
                records[name]["sparsity"],
                owned[name],
                capacity.share(name),
                head,
                record and record["fingerprint"],
            )
        )
    entries = model.summary_protection(print_fn=_quiet)
    heads = [model.heads[name] for name in model.task_names]
    return Inspection(
        model.name if path is None else pathlib.Path(path).name,
        tuple(tasks),
        model.task,
        capacity,
        sizes.measure(entries, heads, capacity.layers),
        None if path is None else sizes.on_disk(path),
        rounded,
    )


def _table(rows: list[list[str]]) -> str:
    head = "".join(f'<th scope="col">{html.escape(c)}</th>' for c in rows[0])
    body = ""
    for row in rows[1:]:
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
        body += f'<tr><th scope="row">{html.escape(row[0])}</th>{cells}</tr>'
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _quiet(text: str) -> None:
    """Prints nothing."""
