"""Writes the page of a run for the browser.

All comes from `results.json` and the files beside it, so that a finished run
can be shown again without its data.
"""

import html
import pathlib
from typing import Any

import numpy as np
from reporting import amounts
from reporting import markup
from reporting import outcomes
from reporting import pictures
from reporting import predictions
from reporting import report
from reporting import sentences
from reporting import transfer
from reporting.outcomes import PACKED
from reporting.predictions import Predictions

from packnet_tf import files

_EXAMPLES = 24
_PAIRS = 10
_MAX_MATRIX_CLASSES = 2000
_PNG = b"\x89PNG\r\n\x1a\n"


def write(results: dict[str, Any], run_dir: pathlib.Path) -> None:
    """Writes `report.html`, one page with everything inside of it.

    A picture whose file is missing is left out; one whose file is damaged too,
    and the page says so.

    Args:
        results: What `results.json` holds.
        run_dir: The run folder, with the files of the repeats in it.
    """
    names = ", ".join(outcomes.task_names(results))
    sections = [
        markup.paragraphs(sentences.summarize(results)),
        markup.section("Methods", markup.table(report.to_method_rows(results))),
        markup.section(
            "The packed network",
            markup.table(report.to_rows(results), total=True),
        ),
        markup.section("Accuracy over the tasks", _averages(results)),
    ]
    shown = _shown_repeat(results)
    if shown is not None:
        folder = predictions.inside(run_dir, shown["folder"])
        of = f" ({shown['name']})" if len(results["repeats"]) > 1 else ""
        about = {task["name"]: task for task in results["tasks"]}
        found = {
            name: predictions.read(folder, name, about[name])
            for name in shown["order"]
        }
        sections += [
            markup.section(f"Learning curves{of}", _curves(shown)),
            markup.section(f"Capacity{of}", _capacity(folder)),
            markup.section(
                f"Which classes are confused{of}",
                markup.grid(
                    _confusion(about[name], predicted)
                    for name, predicted in found.items()
                ),
            ),
            markup.section(
                f"Examples{of}",
                *(
                    _examples(about[name], predicted)
                    for name, predicted in found.items()
                ),
            ),
        ]
    sections += [
        markup.section("Fingerprints", _fingerprints(results)),
        markup.section("Data", *(_data(task) for task in _all_data(results))),
        markup.section("Settings", markup.pairs(results["flags"])),
        markup.section("Versions", markup.pairs(results["versions"])),
    ]
    page = markup.PAGE.format(
        style=markup.STYLE, title=html.escape(names), body="".join(sections)
    )
    with files.replacing(run_dir / "report.html") as new:
        new.write_text(page, encoding="utf-8")


def _shown_repeat(results: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the first repeat with the packed network, else the first."""
    repeats = results["repeats"]
    packed = [repeat for repeat in repeats if PACKED in repeat["methods"]]
    return next(iter(packed or repeats), None)


def _averages(results: dict[str, Any]) -> str:
    measured = outcomes.measure(results)
    lines = {}
    for method in outcomes.methods(results):
        found = [m[method].averages for m in measured if method in m]
        values = [transfer.spread(column) for column in zip(*found)]
        if any(value is not None for value in values):
            lines[method] = values
    if not lines:
        return ""
    ends = ", ".join(
        f"{method} {amounts.percent(values[-1])}"
        for method, values in lines.items()
    )
    alt = f"Average accuracy over the tasks learned so far, at the end: {ends}"
    bars = (
        " Bars are the sample standard deviation over the repeats."
        if len(results["repeats"]) > 1
        else ""
    )
    return (
        "<p>Mean accuracy on the test parts of the tasks learned so far."
        f"{bars}</p>{markup.figure(pictures.draw_averages(lines), alt)}"
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
                for epoch in outcomes.get(entry, "history", task) or []
            ]
            if any(value is not None for value in values):
                lines[method] = values
                phases = phases or [
                    (name, epochs)
                    for name, epochs in outcomes.get(entry, "phases", task)
                    or []
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
            figures.append(markup.figure(drawn, alt, html.escape(caption)))
    if not figures:
        return ""
    return (
        "<p>Accuracy on the validation part, per epoch. A dotted line is where "
        "one phase ends and the next begins.</p>"
        f"{markup.grid(figures)}"
    )


def _capacity(folder: pathlib.Path | None) -> str:
    if folder is None:
        return ""
    try:
        png = predictions.read_bounded(folder / "capacity.png")
    except (OSError, ValueError):
        return ""
    if png[: len(_PNG)] != _PNG:
        return ""
    alt = "Share of the packed weights of each task, per layer"
    return (
        "<p>How the packed weights are shared out, in all and per layer.</p>"
        f"{markup.figure(png, alt)}"
    )


def _confusion(task: dict[str, Any], found: Predictions | str | None) -> str:
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
            markup.figure(
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
        parts += ["<p>Most often confused:</p>", markup.table(rows)]
    return f"<div>{''.join(parts)}</div>"


def _examples(task: dict[str, Any], found: Predictions | str | None) -> str:
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
            markup.figure(
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


def _all_data(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns what is known of the data: of a kept task, then of the others."""
    kept = results.get("kept") or {}
    return [*kept.get("data", []), *results["tasks"]]


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
    parts = [f"<h3>{html.escape(task['name'])}</h3>", markup.pairs(sizes)]
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
