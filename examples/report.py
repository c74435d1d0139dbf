"""Reports a run: tables for the terminal, a CSV file, a page for the browser.

All comes from `results.json` and the files beside it, so that a finished run
can be reported again without its data.
"""

import base64
import csv
import dataclasses
import html
import io
import math
import pathlib
import re
import zipfile
from collections.abc import Iterable
from typing import Any

import numpy as np
import pictures
import transfer
from transfer import Spread

from packnet_tf import files

PACKED = "packnet"
_TERMINAL_COLUMNS = 120
_EXAMPLES = 24
_PAIRS = 10

# Bounds on what is read before anything about a file is known to be true.
_MAX_FILE_BYTES = 64 << 20
_MAX_MATRIX_CLASSES = 2000
_NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..{'descr': '(?P<dtype>\|u1|<i4|<i8)', "
    rb"'fortran_order': (?P<fortran>True|False), "
    rb"'shape': \((?P<shape>\d{1,9}(?:, ?\d{1,9})*,?)\), } *\n",
    re.DOTALL,
)
_PNG = b"\x89PNG\r\n\x1a\n"

_Values = dict[str, float | None]


def to_rows(results: dict[str, Any]) -> list[list[str]]:
    """Makes the table of the packed network: a row per task, the totals.

    Args:
        results: What `results.json` holds.

    Returns:
        Rows of cells, the header first and the totals last; none if the
        packed network was not among the methods.
    """
    entries = _entries(results, PACKED)
    if not entries:
        return []
    measured = _measure(results)
    packed = [found[PACKED] for found in measured if PACKED in found]
    alone = [
        found[transfer.INDIVIDUAL]
        for found in measured
        if transfer.INDIVIDUAL in found
    ]
    columns: list[tuple[str, list[_Values], Any, Any]] = [
        ("after learning", [m.after_learning for m in packed], _mean, _percent),
        ("at the end", [m.at_end for m in packed], _mean, _percent),
        ("individual", [m.at_end for m in alone], _mean, _percent),
        (
            "share of weights",
            [entry.get("shares", {}) for entry in entries],
            _sum,
            _percent,
        ),
        (
            "bytes exported",
            [entry.get("export_bytes", {}) for entry in entries],
            _sum,
            _whole,
        ),
    ]
    names = _task_names(results)
    rows = [["task"], *([name] for name in names), ["mean / total"]]
    for title, values, combine, write_cell in columns:
        spreads = transfer.by_task(values)
        cells = [write_cell(spreads.get(name)) for name in names]
        total = transfer.spread(combine(found, names) for found in values)
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
    names = _task_names(results)
    several = len(results["repeats"]) > 1
    header = ["method", "mean", *names, "forgetting", "backward", "forward"]
    header += ["bytes", "seconds"]
    rows = [header + ["repeats"] * several]
    measured = _measure(results)
    for method in _methods(results):
        found = [m[method] for m in measured if method in m]
        entries = _entries(results, method)
        at_end = transfer.by_task(m.at_end for m in found)
        rows.append(
            [
                method,
                _percent(transfer.spread(m.mean for m in found)),
                *(_percent(at_end.get(name)) for name in names),
                _points(transfer.spread(m.forgetting for m in found), ""),
                _points(transfer.spread(m.backward for m in found), "+"),
                _points(transfer.spread(m.forward for m in found), "+"),
                _whole(transfer.spread(e.get("bytes") for e in entries)),
                _whole(transfer.spread(e.get("seconds") for e in entries)),
                *[str(len(found))] * several,
            ]
        )
    return rows


def summarize(results: dict[str, Any]) -> list[str]:
    """Says in sentences what the tables show.

    Args:
        results: What `results.json` holds.

    Returns:
        Lines of text.
    """
    lines = _tell_changes(results)
    repeats = [repeat["name"] for repeat in results["repeats"]]
    if len(repeats) > 1:
        lines.append(
            f"Mean ± sample standard deviation over {len(repeats)} repeats: "
            f"{', '.join(repeats)}."
        )
    for method in _methods(results):
        lines += _tell_kept(method, _entries(results, method))
    lines += _tell_sizes(results)
    if _compares_methods(results):
        lines.append(
            "In points, mean over tasks, 0 is exactly none. Forgetting: the "
            "best accuracy before the end minus that at the end. Backward: at "
            "the end minus right after learning. Forward: right after learning "
            "minus that of an individual network."
        )
    lines.append(f"The run took {results['seconds']:.0f} seconds.")
    return lines


def _tell_changes(results: dict[str, Any]) -> list[str]:
    start = "Accuracy on the test part."
    if not _entries(results, PACKED):
        return [start]
    changed, unknown = [], []
    for repeat in results["repeats"]:
        if PACKED not in repeat["methods"]:
            continue
        found = transfer.changes(repeat["methods"][PACKED]["matrix"])
        for task, change in zip(repeat["order"], found):
            if change is not False:
                named = f"{task} ({repeat['name']})"
                (changed if change else unknown).append(named)
    lines = []
    if changed:
        lines += [
            f"{start} A TASK CHANGED AFTER IT WAS LEARNED.",
            f"Changed: {', '.join(changed)}.",
        ]
    elif not unknown:
        lines.append(f"{start} No task changed after it was learned.")
    else:
        lines.append(start)
    if unknown:
        lines.append(
            "Not known whether it changed after it was learned: "
            f"{', '.join(unknown)}."
        )
    return lines


def _tell_kept(method: str, entries: list[dict[str, Any]]) -> list[str]:
    kept = [entry["kept"] for entry in entries if entry.get("kept")]
    if not kept:
        return []

    def over_repeats(key: str) -> str:
        return _percent(transfer.spread(found.get(key) for found in kept))

    how = f"with {method}"
    sparsity = transfer.spread(found.get("sparsity") for found in kept)
    if sparsity is not None:
        share = _percent(dataclasses.replace(sparsity, mean=1 - sparsity.mean))
        how = f"kept as the first task with {share} of the packed weights"
    lines = [
        f"{kept[0]['name']}, {how}, chooses the same class as the network as "
        f"it was for {over_repeats('agreement')} of the tasks' test images."
    ]
    if any("accuracy" in found for found in kept):
        lines.append(
            f"On labelled images of its own: {over_repeats('accuracy')}, where "
            f"the network as it was has {over_repeats('accuracy_before')}."
        )
    return lines


def _tell_sizes(results: dict[str, Any]) -> list[str]:
    packed = transfer.spread(
        entry.get("bytes") for entry in _entries(results, PACKED)
    )
    if packed is None:
        return []
    separate = transfer.spread(
        entry.get("bytes") for entry in _entries(results, transfer.INDIVIDUAL)
    )
    size = f"One file for all tasks: {_whole(packed)} bytes"
    if separate is None or not separate.mean:
        lines = [f"{size}."]
    else:
        lines = [
            f"{size}, {100 * packed.mean / separate.mean:.0f} % of "
            f"{len(results['tasks'])} separate networks "
            f"({_whole(separate)} bytes)."
        ]
    differences = transfer.spread(
        _difference(found[PACKED].mean, found[transfer.INDIVIDUAL].mean)
        for found in _measure(results)
        if PACKED in found and transfer.INDIVIDUAL in found
    )
    if differences is not None:
        lines.append(
            "Mean accuracy against individual networks: "
            f"{_points(differences, '+', '+0.00')} points."
        )
    return lines


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
    if _compares_methods(results):
        for rows in _fold(to_method_rows(results)):
            lines = _lay_out(rows)
            parts += [lines[0], "-" * len(lines[0]), *lines[1:], ""]
    return "\n".join([*parts, *summarize(results)])


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

    Args:
        results: What `results.json` holds.
        run_dir: The run folder.
    """
    columns = ["repeat", "seed", "method", "place", "task", "source"]
    columns += ["classes", "sparsity", "share", "after_learning", "at_end"]
    columns += ["fingerprint"]
    about = {task["name"]: task for task in results["tasks"]}
    with files.replacing(run_dir / "results.csv") as new:
        with new.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            for repeat, measured in zip(results["repeats"], _measure(results)):
                for method, entry in repeat["methods"].items():
                    for place, name in enumerate(repeat["order"], 1):
                        found = measured[method]
                        writer.writerow(
                            {
                                "repeat": repeat["name"],
                                "seed": repeat["seed"],
                                "method": method,
                                "place": place,
                                "task": name,
                                "source": about[name]["source"],
                                "classes": about[name]["classes"],
                                "sparsity": _get(entry, "sparsities", name),
                                "share": _get(entry, "shares", name),
                                "after_learning": found.after_learning[name],
                                "at_end": found.at_end[name],
                                "fingerprint": _get(
                                    entry, "fingerprints", name
                                ),
                            }
                        )


def write(results: dict[str, Any], run_dir: pathlib.Path) -> None:
    """Writes `report.html`, one page with everything inside of it.

    A picture whose file is missing is left out; one whose file is damaged too,
    and the page says so.

    Args:
        results: What `results.json` holds.
        run_dir: The run folder, with the files of the repeats in it.
    """
    names = ", ".join(_task_names(results))
    sections = [
        _paragraphs(summarize(results)),
        _section("Methods", _table(to_method_rows(results))),
        _section("The packed network", _table(to_rows(results), total=True)),
        _section("Accuracy over the tasks", _averages(results)),
    ]
    shown = _shown_repeat(results)
    if shown is not None:
        folder = _inside(run_dir, shown["folder"])
        of = f" ({shown['name']})" if len(results["repeats"]) > 1 else ""
        about = {task["name"]: task for task in results["tasks"]}
        predictions = {
            name: _predictions_of(folder, name, about[name])
            for name in shown["order"]
        }
        sections += [
            _section(f"Learning curves{of}", _curves(shown)),
            _section(f"Capacity{of}", _capacity(folder)),
            _section(
                f"Which classes are confused{of}",
                _grid(
                    _confusion(about[name], found)
                    for name, found in predictions.items()
                ),
            ),
            _section(
                f"Examples{of}",
                *(
                    _examples(about[name], found)
                    for name, found in predictions.items()
                ),
            ),
        ]
    sections += [
        _section("Fingerprints", _fingerprints(results)),
        _section("Data", *(_data(task) for task in results["tasks"])),
        _section("Settings", _pairs(results["flags"])),
        _section("Versions", _pairs(results["versions"])),
    ]
    page = _PAGE.format(
        style=_STYLE, title=html.escape(names), body="".join(sections)
    )
    with files.replacing(run_dir / "report.html") as new:
        new.write_text(page, encoding="utf-8")


def _shown_repeat(results: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the first repeat with the packed network, else the first."""
    repeats = results["repeats"]
    packed = [repeat for repeat in repeats if PACKED in repeat["methods"]]
    return next(iter(packed or repeats), None)


def _averages(results: dict[str, Any]) -> str:
    measured = _measure(results)
    lines = {}
    for method in _methods(results):
        found = [m[method].averages for m in measured if method in m]
        values = [transfer.spread(column) for column in zip(*found)]
        if any(value is not None for value in values):
            lines[method] = values
    if not lines:
        return ""
    ends = ", ".join(
        f"{method} {_percent(values[-1])}" for method, values in lines.items()
    )
    alt = f"Average accuracy over the tasks learned so far, at the end: {ends}"
    bars = (
        " Bars are the sample standard deviation over the repeats."
        if len(results["repeats"]) > 1
        else ""
    )
    return (
        "<p>Mean accuracy on the test parts of the tasks learned so far."
        f"{bars}</p>{_figure(pictures.draw_averages(lines), alt)}"
    )


def _curves(repeat: dict[str, Any]) -> str:
    methods = {
        name: repeat["methods"][name]
        for name in (PACKED, transfer.INDIVIDUAL)
        if name in repeat["methods"]
    }
    figures = []
    for task in repeat["order"]:
        lines = {}
        phases: list[tuple[str, int]] = []
        for method, entry in methods.items():
            values = [
                epoch.get("val_accuracy")
                for epoch in _get(entry, "history", task) or []
            ]
            if any(value is not None for value in values):
                lines[method] = values
                phases = phases or [
                    (name, epochs)
                    for name, epochs in _get(entry, "phases", task) or []
                ]
        if lines:
            told = ", ".join(
                f"{method} over {len(values)} epochs"
                for method, values in lines.items()
            )
            alt = f"Validation accuracy on {task}, per epoch: {told}"
            drawn = pictures.draw_curves(lines, phases)
            lengths = ", ".join(f"{name} {epochs}" for name, epochs in phases)
            caption = f"{task} ({lengths} epochs)" if phases else task
            figures.append(_figure(drawn, alt, html.escape(caption)))
    if not figures:
        return ""
    return (
        "<p>Accuracy on the validation part, per epoch. A dotted line is where "
        "one phase ends and the next begins.</p>"
        f"{_grid(figures)}"
    )


def _capacity(folder: pathlib.Path | None) -> str:
    if folder is None:
        return ""
    try:
        png = _read_bounded(folder / "capacity.png")
    except (OSError, ValueError):
        return ""
    if png[: len(_PNG)] != _PNG:
        return ""
    return (
        "<p>How the packed weights are shared out, in all and per layer.</p>"
        f"{_figure(png, 'Share of the packed weights of each task, per layer')}"
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Predictions:
    """Labels and predicted classes of a test part, and a few examples."""

    labels: np.ndarray
    predicted: np.ndarray
    images: np.ndarray
    places: np.ndarray


def _predictions_of(
    folder: pathlib.Path | None, name: str, task: dict[str, Any]
) -> _Predictions | str | None:
    """Returns the predictions, why they are left out, or `None`."""
    place = folder and _inside(folder, f"predictions/{PACKED}/{name}.npz")
    if place is None or not place.is_file():
        return None
    try:
        return _read_predictions(place, len(task["class_names"]))
    except (
        *(ValueError, OSError, EOFError, KeyError),
        *(zipfile.BadZipFile, RuntimeError),
    ) as error:
        return f"predictions/{PACKED}/{name}.npz cannot be used: {error}"


def _read_predictions(place: pathlib.Path, classes: int) -> _Predictions:
    content = _read_bounded(place)
    arrays = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
        for name in ("labels", "predicted", "images", "places"):
            if f"{name}.npy" in names:
                arrays[name] = _array(archive, archive.getinfo(f"{name}.npy"))
    labels, predicted = arrays["labels"], arrays["predicted"]
    for values in (labels, predicted):
        if values.dtype != np.int32 or values.shape != (labels.size,):
            raise ValueError(f"classes of shape {values.shape}, {values.dtype}")
        if values.min() < 0 or values.max() >= classes:
            raise ValueError(
                f"classes {values.min()} to {values.max()} of {classes}"
            )
    images = arrays.get("images", np.empty((0, 1, 1, 1), np.uint8))
    places = arrays.get("places", np.empty(0, np.int64))
    if (
        images.dtype != np.uint8
        or images.ndim != 4
        or images.shape[3] not in (1, 3)
        or places.dtype != np.int64
        or places.shape != images.shape[:1]
        or ((places < 0) | (places >= labels.size)).any()
    ):
        raise ValueError(
            f"images of shape {images.shape}, {images.dtype}, at places of "
            f"shape {places.shape}, {places.dtype}, of {labels.size}"
        )
    return _Predictions(labels, predicted, images, places)


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Decodes an array; what it declares must agree with what is there.

    What is not compressed cannot be more than the file, whose size is bounded.
    """
    name = member.filename
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed")
    if member.file_size != member.compress_size:
        raise ValueError(f"{name} of {member.file_size:,} bytes")
    content = archive.read(member)
    length = int.from_bytes(content[8:10], "little")
    header = _NPY_HEADER.fullmatch(content[: 10 + length])
    if header is None:
        raise ValueError(f"{name} with the header {content[:80]!r}")
    dtype = np.dtype(header["dtype"].decode())
    shape = tuple(int(n) for n in header["shape"].split(b",") if n)
    body = len(content) - header.end()
    if body == 0 or math.prod(shape) * dtype.itemsize != body:
        raise ValueError(f"{name} of shape {shape}, {dtype}, {body:,} bytes")
    values = np.frombuffer(content, dtype, offset=header.end())
    return values.reshape(
        shape, order="F" if header["fortran"] == b"True" else "C"
    )


def _read_bounded(place: pathlib.Path) -> bytes:
    with place.open("rb") as file:
        content = file.read(_MAX_FILE_BYTES + 1)
    if len(content) > _MAX_FILE_BYTES:
        raise ValueError(f"more than {_MAX_FILE_BYTES:,} bytes")
    return content


def _inside(folder: pathlib.Path, name: str) -> pathlib.Path | None:
    """Returns a path below a folder; `None` for a name that leads out."""
    path = pathlib.PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        return None
    return folder / path


def _confusion(task: dict[str, Any], found: _Predictions | str | None) -> str:
    name = task["name"]
    if found is None:
        return ""
    if isinstance(found, str):
        return f'<p class="notice">{html.escape(f"{name}: {found}")}</p>'
    classes = task["class_names"]
    right = int((found.labels == found.predicted).sum())
    total = len(found.labels)
    caption = (
        f"{name}: {right:,} of {total:,} right ({100 * right / total:.2f} %)"
    )
    pairs = transfer.most_confused(found.labels, found.predicted, _PAIRS)
    alt = f"Confusion matrix of {caption}"
    if pairs:
        true, taken, _ = pairs[0]
        alt += f". Most often {classes[true]} is taken for {classes[taken]}"
    parts = []
    if len(classes) <= _MAX_MATRIX_CLASSES:
        counts = transfer.confusion(found.labels, found.predicted, len(classes))
        parts.append(
            _figure(
                pictures.draw_confusion(counts, classes),
                alt,
                html.escape(caption),
            )
        )
    else:
        parts.append(f"<p>{html.escape(caption)}</p>")
    if len(classes) > pictures.NAMED_CLASSES and pairs:
        sums = np.bincount(found.labels, minlength=len(classes))
        rows = [["true class", "taken for", "images", "share"]]
        rows += [
            [
                classes[true],
                classes[taken],
                f"{count:,}",
                f"{100 * count / sums[true]:.1f} %",
            ]
            for true, taken, count in pairs
        ]
        parts += ["<p>Most often confused:</p>", _table(rows)]
    return f"<div>{''.join(parts)}</div>"


def _examples(task: dict[str, Any], found: _Predictions | str | None) -> str:
    if found is None or isinstance(found, str) or not len(found.places):
        return ""
    classes = task["class_names"]
    shown = []
    for image, place in zip(found.images[:_EXAMPLES], found.places):
        true = classes[found.labels[place]]
        predicted = classes[found.predicted[place]]
        right = found.labels[place] == found.predicted[place]
        verdict = "✓ right" if right else "✗ wrong"
        alt = f"Test image of {true}, predicted {predicted}"
        caption = (
            f"{html.escape(true)}<br>"
            if right
            else f"is {html.escape(true)}<br>"
            f"predicted {html.escape(predicted)}<br>"
        )
        shown.append(
            _figure(
                pictures.encode_image(image),
                alt,
                f"{caption}<strong>{verdict}</strong>",
                "right" if right else "wrong",
            )
        )
    return (
        f"<h3>{html.escape(task['name'])}</h3>"
        f'<div class="gallery">{"".join(shown)}</div>'
    )


def _fingerprints(results: dict[str, Any]) -> str:
    parts = []
    for repeat in results["repeats"]:
        found = repeat["methods"].get(PACKED, {}).get("fingerprints", {})
        items = "".join(
            f"<li>{html.escape(name)}: <code>{html.escape(digest)}</code></li>"
            for name, digest in found.items()
        )
        if items and len(results["repeats"]) > 1:
            parts.append(f"<h3>{html.escape(repeat['name'])}</h3>")
        parts.append(f"<ul>{items}</ul>" if items else "")
    if not any(parts):
        return ""
    return (
        "<p>SHA-256 of what each frozen task computes with; all were checked "
        f"at the end.</p>{''.join(parts)}"
    )


def _data(task: dict[str, Any]) -> str:
    sizes = {
        "source": task["source"],
        "classes": f"{task['classes']:,}",
        **{
            f"images, {part}": f"{count:,}"
            for part, count in task["examples"].items()
        },
        "fingerprint": task["data_fingerprint"],
    }
    parts = [f"<h3>{html.escape(task['name'])}</h3>", _pairs(sizes)]
    for title, entries in (
        ("Names of the classes", task["class_names"]),
        ("Images left out", task["skipped"]),
    ):
        if entries:
            items = "".join(f"<li>{html.escape(e)}</li>" for e in entries)
            start = 0 if entries is task["class_names"] else 1
            parts.append(
                f"<details><summary>{title}: {len(entries):,}</summary>"
                f'<ol start="{start}">{items}</ol></details>'
            )
    return "".join(parts)


def _section(title: str, *parts: str) -> str:
    """Returns nothing where there is nothing to show."""
    body = "".join(parts)
    return f"<h2>{html.escape(title)}</h2>{body}" if body else ""


def _grid(cells: Iterable[str]) -> str:
    """Sets cells side by side where there is room; nothing if all are empty."""
    body = "".join(cells)
    return f'<div class="grid">{body}</div>' if body else ""


def _paragraphs(lines: Iterable[str]) -> str:
    return "".join(f"<p>{html.escape(line)}</p>" for line in lines)


def _table(rows: list[list[str]], total: bool = False) -> str:
    if len(rows) < 2:
        return ""
    head = "".join(f'<th scope="col">{html.escape(c)}</th>' for c in rows[0])
    body = ""
    for row in rows[1:]:
        last = total and row is rows[-1]
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
        body += (
            f"<tr{' class=total' * last}>"
            f'<th scope="row">{html.escape(row[0])}</th>{cells}</tr>'
        )
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _pairs(settings: dict[str, Any]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{html.escape(str(name))}</th>'
        f"<td>{html.escape(str(value))}</td></tr>"
        for name, value in settings.items()
    )
    return f'<table class="pairs">{rows}</table>' if rows else ""


def _figure(png: bytes, alt: str, caption: str = "", kind: str = "") -> str:
    """Returns a picture; `caption` is HTML already."""
    data = base64.b64encode(png).decode()
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return (
        f'<figure class="{kind}"><img src="data:image/png;base64,{data}" '
        f'alt="{html.escape(alt)}">{below}</figure>'
    )


def _measure(results: dict[str, Any]) -> list[dict[str, transfer.Measures]]:
    found = []
    for repeat in results["repeats"]:
        matrices = {
            method: entry["matrix"]
            for method, entry in repeat["methods"].items()
        }
        found.append(
            {
                method: transfer.measure(method, matrices, repeat["order"])
                for method in matrices
            }
        )
    return found


def _methods(results: dict[str, Any]) -> list[str]:
    """Returns the names of all methods, as they first appear."""
    return list(
        dict.fromkeys(
            method
            for repeat in results["repeats"]
            for method in repeat["methods"]
        )
    )


def _compares_methods(results: dict[str, Any]) -> bool:
    methods = set(_methods(results))
    return PACKED not in methods or bool(
        methods - {PACKED, transfer.INDIVIDUAL}
    )


def _entries(results: dict[str, Any], method: str) -> list[dict[str, Any]]:
    return [
        repeat["methods"][method]
        for repeat in results["repeats"]
        if method in repeat["methods"]
    ]


def _task_names(results: dict[str, Any]) -> list[str]:
    """Returns the tasks as they were learned, if that is one order."""
    orders = [repeat["order"] for repeat in results["repeats"]]
    if orders and all(order == orders[0] for order in orders):
        return list(orders[0])
    return [task["name"] for task in results["tasks"]]


def _get(entry: dict[str, Any], key: str, task: str) -> Any:
    return entry.get(key, {}).get(task)


def _all(values: _Values, names: list[str]) -> list[float] | None:
    found = [values.get(name) for name in names]
    return None if None in found else found


def _sum(values: _Values, names: list[str]) -> float | None:
    found = _all(values, names)
    return None if found is None else sum(found)


def _mean(values: _Values, names: list[str]) -> float | None:
    found = _all(values, names)
    return None if found is None else sum(found) / len(found)


def _difference(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _percent(value: Spread | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value.mean:.2f}{_plus_minus(value)} %"


def _points(value: Spread | None, sign: str, zero: str = "0") -> str:
    if value is None:
        return "-"
    if value.mean == 0.0 and not value.deviation:
        return zero
    return f"{100 * value.mean:{sign}.2f}{_plus_minus(value)}"


def _plus_minus(value: Spread) -> str:
    return "" if value.deviation is None else f" ± {100 * value.deviation:.2f}"


def _whole(value: Spread | None) -> str:
    return "-" if value is None else f"{round(value.mean):,}"


_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem;
       margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff;
       overflow-wrap: anywhere; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; overflow-wrap: normal; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid #ddd;
         text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
tbody th { font-weight: 400; }
.wide th:first-child { position: sticky; left: 0; background: #fff; }
tr.total > * { border-top: 2px solid #888; font-weight: 600; }
.pairs th, .pairs td { text-align: left; white-space: normal;
                       vertical-align: top; overflow-wrap: anywhere; }
.pairs th { min-width: 6rem; color: #555; }
img { max-width: 100%; height: auto; }
figure { margin: 1rem 0; }
figcaption { color: #444; font-size: .9em; }
.grid { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); }
.grid figure { margin: 0; }
.grid figcaption { text-align: center; }
.gallery { display: flex; flex-wrap: wrap; gap: 1rem; }
.gallery figure { margin: 0; width: 7rem; }
.gallery img { width: 6rem; height: 6rem; object-fit: contain;
               image-rendering: pixelated; background: #f4f4f4;
               border: 3px solid #bbb; }
.gallery .wrong img { border: 3px dashed #b00020; }
.gallery .wrong strong, .notice { color: #b00020; }
code { font-size: .85em; overflow-wrap: anywhere; }
"""

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
<p>Tasks: {title}.</p>
{body}
</body>
</html>
"""
