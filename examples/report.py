"""Reports a run: a table for the terminal and a page for the browser."""

import base64
import csv
import html
import io
import pathlib
from typing import Any

from matplotlib.figure import Figure

from packnet_tf import files

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem;
       margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .35rem .8rem; border-bottom: 1px solid #ddd;
         text-align: right; }
th:first-child, td:first-child { text-align: left; }
tr.total td { border-top: 2px solid #888; font-weight: 600; }
img { max-width: 100%; }
code { font-size: .85em; overflow-wrap: anywhere; }
footer, caption { color: #666; font-size: .9em; }
"""


def to_rows(results: dict[str, Any]) -> list[list[str]]:
    """Makes the table of a run: a header, a row per task, the totals.

    Args:
        results: What `results.json` holds.

    Returns:
        Rows of cells.
    """
    tasks = results["tasks"]
    alone = all("individual" in task for task in tasks)
    rows = [
        [
            "task",
            "after learning",
            "at the end",
            "individual",
            "share of weights",
            "bytes alone",
        ]
    ]
    rows += [
        [
            task["name"],
            _percent(task["after_learning"]),
            _percent(task["at_end"]),
            _percent(task["individual"]) if alone else "-",
            _percent(task["share"]),
            f"{task['individual_bytes']:,}" if alone else "-",
        ]
        for task in tasks
    ]
    rows.append(
        [
            "mean / total",
            _percent(_mean(tasks, "after_learning")),
            _percent(_mean(tasks, "at_end")),
            _percent(_mean(tasks, "individual")) if alone else "-",
            _percent(sum(task["share"] for task in tasks)),
            f"{_separate_bytes(results):,}" if alone else "-",
        ]
    )
    return rows


def summarize(results: dict[str, Any]) -> list[str]:
    """Says in sentences what the table shows.

    Args:
        results: What `results.json` holds.

    Returns:
        Lines of text.
    """
    tasks = results["tasks"]
    unchanged = all(task["at_end"] == task["after_learning"] for task in tasks)
    lines = [
        "Accuracy on the test part. No task changed after it was learned."
        if unchanged
        else "Accuracy on the test part. A TASK CHANGED AFTER IT WAS LEARNED."
    ]
    kept = results.get("kept")
    if kept:
        lines.append(
            f"{kept['name']}, kept by imitation with "
            f"{_percent(1 - kept['sparsity'])} of the packed weights, chooses "
            "the same class as the network as it was for "
            f"{_percent(kept['agreement'])} of the tasks' test images."
        )
        if "accuracy" in kept:
            lines.append(
                f"On labelled images of its own: {_percent(kept['accuracy'])}"
                f", where the network as it was has "
                f"{_percent(kept['accuracy_before'])}."
            )
    size = f"One file for all tasks: {results['packed_bytes']:,} bytes"
    if all("individual" in task for task in tasks):
        separate = _separate_bytes(results)
        share = results["packed_bytes"] / separate
        lines.append(
            f"{size}, {100 * share:.0f} % of {len(tasks)} separate networks "
            f"({separate:,} bytes)."
        )
        difference = _mean(tasks, "at_end") - _mean(tasks, "individual")
        lines.append(
            f"Mean accuracy against individual networks: "
            f"{100 * difference:+.2f} points."
        )
    else:
        lines.append(f"{size}.")
    lines.append(f"The run took {results['seconds']:.0f} seconds.")
    return lines


def to_text(results: dict[str, Any]) -> str:
    """Lays the table and the summary out for a terminal.

    Args:
        results: What `results.json` holds.

    Returns:
        Several lines.
    """
    lines = _lay_out(to_rows(results)).splitlines()
    rule = "-" * len(lines[0])
    table = [lines[0], rule, *lines[1:-1], rule, lines[-1]]
    return "\n".join([*table, "", *summarize(results)])


def _lay_out(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(w) for cell, w in zip(row[1:], widths[1:])]
        )
        for row in rows
    )


def plan_to_text(rows: list[dict[str, Any]]) -> str:
    """Lays out what a run would do.

    Args:
        rows: For each task the cells by the names of their columns.

    Returns:
        Several lines.
    """
    return _lay_out([list(rows[0]), *(list(row.values()) for row in rows)])


def write_csv(results: dict[str, Any], run_dir: pathlib.Path) -> None:
    """Writes `results.csv`, a line per task.

    Args:
        results: What `results.json` holds.
        run_dir: The run folder.
    """
    columns = ["name", "source", "classes", "sparsity", "share"]
    columns += ["after_learning", "at_end", "individual", "fingerprint"]
    with files.replacing(run_dir / "results.csv") as new:
        with new.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(results["tasks"])


def write(results: dict[str, Any], run_dir: pathlib.Path) -> None:
    """Writes `report.html`, one page with everything inside of it.

    Args:
        results: What `results.json` holds.
        run_dir: The run folder; `capacity.png` is there already.
    """
    capacity = (run_dir / "capacity.png").read_bytes()
    page = _PAGE.format(
        style=_STYLE,
        title=html.escape(", ".join(t["name"] for t in results["tasks"])),
        table=_table(to_rows(results)),
        summary="".join(
            f"<p>{html.escape(line)}</p>" for line in summarize(results)
        ),
        curves=_image(_draw_curves(results), "learning curves"),
        capacity=_image(capacity, "capacity per layer"),
        fingerprints="".join(
            f"<li>{html.escape(task['name'])}: "
            f"<code>{task['fingerprint']}</code></li>"
            for task in results["tasks"]
        ),
        settings=_pairs({**results["flags"], **results["versions"]}),
    )
    with files.replacing(run_dir / "report.html") as new:
        new.write_text(page, encoding="utf-8")


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>packnet_tf: {title}</title>
<style>{style}</style>
</head>
<body>
<h1>One network, several tasks</h1>
<p>Tasks in the order they were learned: {title}.</p>
{table}
{summary}
<h2>Learning curves</h2>
<p>Accuracy on the validation part, per epoch. The dotted line is where the
task was pruned.</p>
{curves}
<h2>Capacity</h2>
<p>How the packed weights are shared out, in all and per layer.</p>
{capacity}
<h2>Fingerprints</h2>
<p>SHA-256 of what each frozen task computes with; all were checked at the
end.</p>
<ul>{fingerprints}</ul>
<h2>Settings</h2>
{settings}
</body>
</html>
"""


def _draw_curves(results: dict[str, Any]) -> bytes:
    tasks = results["tasks"]
    columns = min(2, len(tasks))
    lines = -(-len(tasks) // columns)
    figure = Figure(figsize=(5 * columns, 3 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).flat
    for axes, task in zip(grid, tasks):
        _draw_curve(axes, task["history"], "packed", "C0")
        _draw_curve(
            axes, task.get("individual_history", []), "individual", "C1"
        )
        if 0 < task["retrain_from"] < len(task["history"]):
            axes.axvline(task["retrain_from"] + 0.5, color="0.5", ls=":")
        axes.set_title(task["name"])
        axes.set_xlabel("epoch")
        axes.set_ylabel("validation accuracy")
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in list(grid):
        axes.set_visible(False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120)
    return stream.getvalue()


def _draw_curve(
    axes: Any, history: list[dict[str, float]], label: str, color: str
) -> None:
    if history:
        axes.plot(
            range(1, len(history) + 1),
            [epoch["val_accuracy"] for epoch in history],
            label=label,
            color=color,
        )


def _image(png: bytes, alt: str) -> str:
    data = base64.b64encode(png).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{alt}">'


def _table(rows: list[list[str]]) -> str:
    header, *body, total = [
        "".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows
    ]
    lines = "".join(f"<tr>{row}</tr>" for row in body)
    return (
        f"<table><thead><tr>{header.replace('td>', 'th>')}</tr></thead>"
        f'<tbody>{lines}<tr class="total">{total}</tr></tbody></table>'
    )


def _pairs(settings: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td>"
        f"<td>{html.escape(str(value))}</td></tr>"
        for name, value in settings.items()
    )
    return f"<table>{rows}</table>"


def _mean(tasks: list[dict[str, Any]], key: str) -> float:
    return sum(task[key] for task in tasks) / len(tasks)


def _separate_bytes(results: dict[str, Any]) -> int:
    return sum(task["individual_bytes"] for task in results["tasks"])


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"
