"""Draws the pictures of a report, as PNG files in memory."""

import functools
import io
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import font_manager
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.ticker import PercentFormatter
from PIL import Image
from reporting import transfer

# Colors that are told apart by all eyes, and markers for those in doubt.
_LOOKS = {
    "packnet": ("#0072b2", "o"),
    "individual": ("#666666", "D"),
    "classifier": ("#e69f00", "s"),
    "finetune": ("#d55e00", "v"),
    "joint": ("#000000", "*"),
    "lwf": ("#009e73", "^"),
    "ewc": ("#cc79a7", "P"),
}
_OTHERS = (("#56b4e9", "X"), ("#b8a500", "h"), ("#8a5a44", "<"))

NAMED_CLASSES = 25
_COUNTED_CLASSES = 12
_LONGEST_NAME = 18
_THUMBNAIL = 128


def draw_averages(
    lines: Mapping[str, Sequence[transfer.Spread | None]],
) -> bytes:
    """Draws the average accuracy after each task, a line per method.

    Args:
        lines: For each method the average over the tasks learned so far,
            after each task.

    Returns:
        A PNG file.
    """
    figure, axes = _start(6.4, 3.8)
    looks = _looks(list(lines))
    longest = 1
    for i, (method, values) in enumerate(lines.items()):
        color, marker = looks[method]
        # Side by side, so that equal values do not hide each other.
        shift = 0.05 * (i - (len(lines) - 1) / 2)
        known = [(n, v) for n, v in enumerate(values, 1) if v is not None]
        longest = max(longest, len(values))
        axes.errorbar(
            [n + shift for n, _ in known],
            [value.mean for _, value in known],
            yerr=[value.deviation or 0.0 for _, value in known]
            if any(value.deviation for _, value in known)
            else None,
            label=method,
            color=color,
            marker=marker,
            markersize=6,
            capsize=3,
        )
    axes.set_xlim(0.5, longest + 0.5)
    axes.set_xlabel("tasks learned")
    axes.set_ylabel("average accuracy so far")
    _finish_axes(axes)
    _add_legend(figure, axes)
    return _to_png(figure)


def draw_curves(
    lines: Mapping[str, Sequence[float | None]],
    phases: Sequence[tuple[str, int]],
) -> bytes:
    """Draws the accuracy on the validation part of one task, per epoch.

    Args:
        lines: For each method the accuracy after each epoch.
        phases: Names and epochs of the phases, in order; a dotted line stands
            between two.

    Returns:
        A PNG file.
    """
    figure, axes = _start(5.0, 3.2)
    looks = _looks(list(lines))
    for method, values in lines.items():
        color, marker = looks[method]
        axes.plot(
            range(1, len(values) + 1),
            [np.nan if value is None else value for value in values],
            label=method,
            color=color,
            marker=marker,
            markersize=4,
        )
    total = max([len(values) for values in lines.values()], default=1)
    total = max(total, sum(epochs for _, epochs in phases))
    axes.set_xlim(0.5, total + 0.5)
    _mark_phases(axes, phases, total)
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation accuracy")
    _finish_axes(axes)
    _add_legend(figure, axes)
    return _to_png(figure)


def _mark_phases(
    axes: Any, phases: Sequence[tuple[str, int]], total: int
) -> None:
    start = 0
    for name, epochs in phases:
        if 0 < start < total and epochs:
            axes.axvline(start + 0.5, color="0.4", linestyle=":")
        # A name wider than its phase would run into the next.
        if 22 * epochs >= total * len(name):
            axes.text(
                start + 0.5 + epochs / 2,
                1.01,
                name,
                transform=axes.get_xaxis_transform(),
                ha="center",
                va="bottom",
                fontsize=8,
                color="0.35",
                parse_math=False,
            )
        start += epochs


def draw_confusion(counts: np.ndarray, class_names: Sequence[str]) -> bytes:
    """Draws a confusion matrix, each row divided by its sum.

    Args:
        counts: Int array of shape `(classes, classes)`, a row for each true
            class.
        class_names: Their names, written where there are at most
            `NAMED_CLASSES`.

    Returns:
        A PNG file.
    """
    classes = len(counts)
    sums = counts.sum(axis=1, keepdims=True)
    shares = np.ma.masked_invalid(
        np.where(sums > 0, counts / np.maximum(sums, 1), np.nan)
    )
    named = classes <= NAMED_CLASSES
    side = min(3.0 + 0.24 * classes, 7.0) if named else 5.5
    figure, axes = _start(side + 0.6, side)
    axes.spines[:].set_visible(False)
    axes.set_facecolor("#dddddd")  # Where a row has no examples.
    image = axes.imshow(
        shares,
        cmap="Blues",
        # A few of many classes would be too pale to be seen.
        norm=PowerNorm(1.0 if named else 0.5, 0.0, 1.0),
        # Averages where there are more classes than dots.
        interpolation="nearest" if named else "auto",
    )
    if named:
        labels = [_label(name, i) for i, name in enumerate(class_names)]
        upright = max(len(label) for label in labels) <= 2
        axes.set_xticks(range(classes), labels, rotation=0 if upright else 90)
        axes.set_yticks(range(classes), labels)
        for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
            text.set_parse_math(False)
            text.set_fontsize(9 if classes <= _COUNTED_CLASSES else 7)
    if classes <= _COUNTED_CLASSES:
        for row, column in np.argwhere(counts):
            share = shares[row, column]
            axes.text(
                column,
                row,
                f"{100 * share:.0f}" if share >= 0.005 else "<1",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if share > 0.5 else "#222222",
            )
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    bar = figure.colorbar(
        image, ax=axes, shrink=0.8, format=PercentFormatter(1.0, 0, " %")
    )
    bar.outline.set_visible(False)
    bar.set_label("share of the true class")
    # A square leaves room above and below, which is cut off.
    return _to_png(figure, bbox_inches="tight")


def encode_image(image: np.ndarray) -> bytes:
    """Encodes one example; large ones are made smaller.

    Args:
        image: `uint8` array of shape `(height, width, 1 or 3)`.

    Returns:
        A PNG file.
    """
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    stream = io.BytesIO()
    picture.save(stream, format="png")
    return stream.getvalue()


def _start(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _finish_axes(axes: Any) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    low, high = axes.get_ylim()
    if high - low < 0.02:  # Else noise would fill the picture.
        low, high = low - 0.01, high + 0.01
    axes.set_ylim(max(low, -0.02), min(high, 1.02))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)


def _add_legend(figure: Figure, axes: Any) -> None:
    labels = axes.get_legend_handles_labels()[1]
    if labels:
        legend = figure.legend(
            loc="outside lower center", ncols=min(4, len(labels)), frameon=False
        )
        for text in legend.get_texts():
            text.set_parse_math(False)


def _looks(methods: Sequence[str]) -> dict[str, tuple[str, str]]:
    others = [name for name in methods if name not in _LOOKS]
    return _LOOKS | {
        name: _OTHERS[i % len(_OTHERS)] for i, name in enumerate(others)
    }


def _label(name: str, number: int) -> str:
    """Returns what to write for a class: its number if its name cannot be."""
    known = _characters()
    if not name.strip() or not all(
        ord(character) in known for character in name
    ):
        return f"#{number}"
    if len(name) > _LONGEST_NAME:
        # Names of kinds differ at their ends as often as at their starts.
        return f"{name[: _LONGEST_NAME - 8]}…{name[-7:]}"
    return name


@functools.cache
def _characters() -> frozenset[int]:
    font = font_manager.get_font(
        font_manager.findfont(font_manager.FontProperties())
    )
    return frozenset(font.get_charmap())


def _to_png(figure: Figure, **kwargs: Any) -> bytes:
    stream = io.BytesIO()
    # Without the name of the program the same numbers give the same bytes.
    figure.savefig(
        stream, format="png", dpi=130, metadata={"Software": None}, **kwargs
    )
    return stream.getvalue()
