"""What benchmarks write: the table, and the JSON file."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import sys
from collections.abc import Sequence
from typing import Any

import choices
import in_turn
from absl import flags

FLAGS = flags.FLAGS

STARTED = datetime.datetime.now(datetime.timezone.utc)
LOAD_AT_START = list(os.getloadavg())


def to_text(row: dict[str, Any]) -> str:
    """Returns the ratio of a row with its quartiles."""
    return str(in_turn.Spread(row["ratio"], row["q1"], row["q3"]))


def ratio_cells(row: dict[str, Any], base: str, name: str) -> list[str]:
    """Returns the cells of a comparison for the table.

    Args:
        row: Holds what `in_turn.Rounds.to_row` returns, or an `"error"`.
        base: The subject that the other is compared with.
        name: The other.

    Returns:
        Milliseconds of both, their ratio, and that of the fastest blocks.
    """
    if "error" in row:
        return ["failed"] * 4
    both = [f"{row[f'{subject}_ms']:,.3f}" for subject in (base, name)]
    return [*both, to_text(row), f"{row['ratio_of_fastest']:.3f}"]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lays a table out for a terminal, words left and numbers right.

    Args:
        header: Names of the columns.
        rows: Cells of each row, as many as the header has.

    Returns:
        Several lines.
    """
    lines = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    words = [
        any(row[i][:1].isalpha() and row[i] != "failed" for row in rows)
        for i in range(len(header))
    ]
    laid = [
        "  ".join(
            cell.ljust(width) if is_word else cell.rjust(width)
            for cell, width, is_word in zip(line, widths, words)
        ).rstrip()
        for line in lines
    ]
    rule = "-" * max(map(len, laid))
    return "\n".join([laid[0], rule, *laid[1:]])


def describe() -> dict[str, Any]:
    """Returns what is needed to read results later: when, where, of what."""
    packages = ("packnet_tf", "tensorflow", "keras", "numpy")
    own = FLAGS.get_key_flags_for_module(sys.argv[0])
    in_rounds = any(flag.name == "rounds" for flag in own)
    settings_used = {"settings": vars(choices.settings())} if in_rounds else {}
    return {
        "program": pathlib.Path(sys.argv[0]).stem,
        "date": STARTED.isoformat(timespec="seconds"),
        "flags": {flag.name: flag.value for flag in own},
        **settings_used,
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in packages},
        },
        "machine": {
            "cpus": os.cpu_count(),
            "cpus_usable": _usable_cpus(),
            "cpu": _cpu_model(),
            "memory_bytes": _memory_bytes(),
            "system": platform.platform(),
            "load_average_at_start": LOAD_AT_START,
        },
    }


def finish(rows: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    """Writes the JSON file, if one was asked for, and ends the program.

    Args:
        rows: The table as data. A row with an `"error"` has failed.
        summary: What is said below the table, as data.

    Raises:
        SystemExit: With status 1, if a row has failed.
        FileError: If the file cannot be written.
    """
    if FLAGS.json is not None:
        write_json({**describe(), "rows": rows, "summary": summary})
    failed = sum("error" in row for row in rows)
    if failed:
        sys.exit(f"error: {failed} of {len(rows)} cells failed, see above")


def write_json(data: dict[str, Any]) -> None:
    """Writes data to the file that `--json` names, all or nothing."""
    from packnet_tf import files

    with files.replacing(FLAGS.json) as new:
        new.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def _version(package: str) -> str:
    if package == "packnet_tf":
        import packnet_tf

        return packnet_tf.__version__
    return importlib.metadata.version(package)


def _usable_cpus() -> int | None:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _cpu_model() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
