"""Reports a run: tables for the terminal, a CSV file.

All comes from `results.json`, so that a finished run can be reported again
without its data.
"""

import csv
import pathlib
from collections.abc import Iterator
from typing import Any

from reporting import amounts
from reporting import outcomes
from reporting import sentences
from reporting import transfer
from reporting.outcomes import PACKED

from packnet_tf import files

_TERMINAL_COLUMNS = 120

# What only a task has that the network came with, by the title.
_KEPT_COLUMNS = {"as it was": "accuracy_before", "agreement": "agreement"}

_Values = dict[str, float | None]


def to_rows(results: dict[str, Any]) -> list[list[str]]:
    """Makes the table of the packed network: a row per task, the totals.

    A task that the network came with has the first row, and no part in means.

    Args:
        results: What `results.json` holds.

    Returns:
        Rows of cells, the header first and the totals last; none if the
        packed network was not among the methods.
    """
    entries = outcomes.entries(results, PACKED)
    if not entries:
        return []
    measured = outcomes.measure(results)
    packed = [found[PACKED] for found in measured if PACKED in found]
    alone = [
        found[transfer.INDIVIDUAL]
        for found in measured
        if transfer.INDIVIDUAL in found
    ]
    columns: list[tuple[str, list[_Values], Any, Any]] = [
        (
            "after learning",
            [m.after_learning for m in packed],
            _mean,
            amounts.percent,
        ),
        (
            "at the end",
            [
                {**m.at_end, **_of_kept(entry, "accuracy")}
                for m, entry in zip(packed, entries)
            ],
            _mean,
            amounts.percent,
        ),
        ("individual", [m.at_end for m in alone], _mean, amounts.percent),
        *(
            (title, [_of_kept(e, key) for e in entries], _mean, amounts.percent)
            for title, key in _KEPT_COLUMNS.items()
            if any(_of_kept(e, key) for e in entries)
        ),
        (
            "share of weights",
            [entry.get("shares", {}) for entry in entries],
            _sum,
            amounts.percent,
        ),
        (
            "size exported",
            [entry.get("export_bytes", {}) for entry in entries],
            _sum,
            amounts.size,
        ),
    ]
    names = outcomes.task_names(results)
    kept = outcomes.kept_name(results)
    everything = names if kept is None else [kept, *names]
    rows = [["task"], *([name] for name in everything), ["mean / total"]]
    for title, values, combine, write_cell in columns:
        spreads = transfer.by_task(values)
        cells = [write_cell(spreads.get(name)) for name in everything]
        counted = everything if combine is _sum else names
        total = transfer.spread(combine(found, counted) for found in values)
        for row, cell in zip(rows, [title, *cells, write_cell(total)]):
            row.append(cell)
    return rows


def to_method_rows(results: dict[str, Any]) -> list[list[str]]:
    """Makes the table that compares the methods, a row for each.

    Args:
        results: What `results.json` holds.

    Returns:
        Rows of cells, the header first.
    """
    names = outcomes.task_names(results)
    several = len(results["repeats"]) > 1
    header = ["method", "mean", *names, "forgetting", "backward", "forward"]
    header += ["size", "seconds"]
    rows = [header + ["repeats"] * several]
    measured = outcomes.measure(results)
    for method in outcomes.methods(results):
        found = [m[method] for m in measured if method in m]
        entries = outcomes.entries(results, method)
        at_end = transfer.by_task(m.at_end for m in found)
        rows.append(
            [
                method,
                amounts.percent(transfer.spread(m.mean for m in found)),
                *(amounts.percent(at_end.get(name)) for name in names),
                amounts.points(
                    transfer.spread(m.forgetting for m in found), ""
                ),
                amounts.points(transfer.spread(m.backward for m in found), "+"),
                amounts.points(transfer.spread(m.forward for m in found), "+"),
                amounts.size(transfer.spread(e.get("bytes") for e in entries)),
                amounts.whole(
                    transfer.spread(e.get("seconds") for e in entries)
                ),
                *[str(len(found))] * several,
            ]
        )
    return rows


def to_text(results: dict[str, Any]) -> str:
    """Lays the tables and the summary out for a terminal.

    Args:
        results: What `results.json` holds.

    Returns:
        Several lines.
    """
    parts = []
    packed = to_rows(results)
    if packed:
        lines = _lay_out(packed)
        rule = "-" * len(lines[0])
        parts += [lines[0], rule, *lines[1:-1], rule, lines[-1], ""]
    if outcomes.compares_methods(results):
        for rows in _fold(to_method_rows(results)):
            lines = _lay_out(rows)
            parts += [lines[0], "-" * len(lines[0]), *lines[1:], ""]
    return "\n".join([*parts, *sentences.summarize(results)])


def plan_to_text(rows: list[dict[str, Any]]) -> str:
    """Lays out what a run would do.

    Args:
        rows: For each task the cells by the names of their columns.

    Returns:
        Several lines.
    """
    return "\n".join(
        _lay_out([list(rows[0]), *(list(row.values()) for row in rows)])
    )


def _widths(rows: list[list[str]]) -> list[int]:
    return [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]


def _lay_out(rows: list[list[str]]) -> list[str]:
    widths = _widths(rows)
    return [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(w) for cell, w in zip(row[1:], widths[1:])]
        )
        for row in rows
    ]


def _fold(rows: list[list[str]]) -> list[list[list[str]]]:
    """Cuts a table into ones that fit; each has the first column."""
    widths = _widths(rows)
    blocks: list[list[int]] = [[]]
    used = widths[0]
    for i in range(1, len(widths)):
        if blocks[-1] and used + 2 + widths[i] > _TERMINAL_COLUMNS:
            blocks.append([])
            used = widths[0]
        blocks[-1].append(i)
        used += 2 + widths[i]
    return [[[row[0], *(row[i] for i in b)] for row in rows] for b in blocks]


def write_csv(results: dict[str, Any], run_dir: pathlib.Path) -> None:
    """Writes `results.csv`, a line per repeat, method and task.

    A task that the network came with is at place 0.

    Args:
        results: What `results.json` holds.
        run_dir: The run folder.
    """
    columns = ["repeat", "seed", "method", "place", "task", "source"]
    columns += ["classes", "sparsity", "share", "after_learning", "at_end"]
    columns += ["fingerprint", "accuracy_before", "agreement"]
    with (
        files.replacing(run_dir / "results.csv") as new,
        new.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for repeat, measured in zip(
            results["repeats"], outcomes.measure(results)
        ):
            for method, entry in repeat["methods"].items():
                start = {
                    "repeat": repeat["name"],
                    "seed": repeat["seed"],
                    "method": method,
                }
                for line in (
                    *_kept_lines(results, entry),
                    *_task_lines(results, entry, repeat, measured[method]),
                ):
                    writer.writerow({**start, **line})


def _task_lines(
    results: dict[str, Any],
    entry: dict[str, Any],
    repeat: dict[str, Any],
    measured: transfer.Measures,
) -> Iterator[dict[str, Any]]:
    about = {task["name"]: task for task in results["tasks"]}
    for place, name in enumerate(repeat["order"], 1):
        yield {
            "place": place,
            "task": name,
            "source": about[name]["source"],
            "classes": about[name]["classes"],
            **_share_of(entry, name),
            "after_learning": measured.after_learning[name],
            "at_end": measured.at_end[name],
        }


def _kept_lines(
    results: dict[str, Any], entry: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    kept = entry.get("kept")
    if kept:
        about = results.get("kept") or {}
        yield {
            "place": 0,
            "task": kept["name"],
            "source": about.get("source"),
            "classes": about.get("classes"),
            **_share_of(entry, kept["name"]),
            "at_end": kept.get("accuracy"),
            "accuracy_before": kept.get("accuracy_before"),
            "agreement": kept.get("agreement"),
        }


def _share_of(entry: dict[str, Any], name: str) -> dict[str, Any]:
    return {
        "sparsity": outcomes.get(entry, "sparsities", name),
        "share": outcomes.get(entry, "shares", name),
        "fingerprint": outcomes.get(entry, "fingerprints", name),
    }


def write_summary(results: dict[str, Any], run_dir: pathlib.Path) -> None:
    """Writes `results_summary.csv`, a line per repeat and method.

    Accuracies and differences of them are fractions; what is not known is
    empty.

    Args:
        results: What `results.json` holds.
        run_dir: The run folder.
    """
    columns = ["repeat", "seed", "method", *outcomes.SUMMARY]
    columns += ["bytes", "seconds"]
    with (
        files.replacing(run_dir / "results_summary.csv") as new,
        new.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for repeat, found in zip(
            results["repeats"], outcomes.summarize(results)
        ):
            for method, entry in repeat["methods"].items():
                writer.writerow(
                    {
                        "repeat": repeat["name"],
                        "seed": repeat["seed"],
                        "method": method,
                        **found[method],
                        "bytes": entry.get("bytes"),
                        "seconds": entry.get("seconds"),
                    }
                )


def _of_kept(entry: dict[str, Any], key: str) -> _Values:
    """Returns what is known of a kept task, by its name; or nothing."""
    kept = entry.get("kept") or {}
    return {kept["name"]: kept[key]} if key in kept else {}


def _all(values: _Values, names: list[str]) -> list[float] | None:
    found = [values.get(name) for name in names]
    return None if None in found else found


def _sum(values: _Values, names: list[str]) -> float | None:
    found = _all(values, names)
    return None if found is None else sum(found)


def _mean(values: _Values, names: list[str]) -> float | None:
    found = _all(values, names)
    return None if found is None else sum(found) / len(found)
