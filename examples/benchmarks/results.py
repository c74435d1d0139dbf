"""What all benchmarks share: flags, the table, the JSON file, clear errors.

Nothing here imports TensorFlow before the flags have been read, so that
`--help` and mistakes in flags are answered at once.
"""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any

import in_turn
from absl import flags
from absl import logging

# TensorFlow's notes on start-up would hide the progress lines.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

FLAGS = flags.FLAGS

STARTED = datetime.datetime.now(datetime.timezone.utc)
LOAD_AT_START = list(os.getloadavg())

QUICK = in_turn.Settings(rounds=3, warmup_rounds=1, block_seconds=0.02)
USUAL = in_turn.Settings()

flags.DEFINE_string("json", None, "Also write the results to this file.")
flags.DEFINE_bool(
    "quick",
    False,
    f"A short run to try the program: {QUICK.rounds} rounds, "
    f"{QUICK.warmup_rounds} to warm up, blocks of {QUICK.block_seconds} s, "
    "and the cheapest of what can be chosen, unless flags say otherwise. "
    "Its numbers mean little.",
)
flags.DEFINE_integer(
    "rounds",
    None,
    f"Rounds that count. Defaults to {USUAL.rounds}.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "warmup_rounds",
    None,
    f"Rounds before those. Defaults to {USUAL.warmup_rounds}.",
    lower_bound=0,
)
flags.DEFINE_float(
    "block_seconds",
    None,
    "How long each subject is timed in a round, at least. Defaults to "
    f"{USUAL.block_seconds}.",
    lower_bound=0.0,
)


class FlagError(ValueError):
    """A flag has a value that the program does not take."""


class CellError(RuntimeError):
    """A cell could not be measured."""


def settings() -> in_turn.Settings:
    """Returns how to compare, from the flags."""
    base = QUICK if FLAGS.quick else USUAL

    def chosen(name: str) -> Any:
        value = FLAGS[name].value
        return getattr(base, name) if value is None else value

    return in_turn.Settings(
        chosen("rounds"), chosen("warmup_rounds"), chosen("block_seconds")
    )


def unless_quick(name: str, quick: Any) -> Any:
    """Returns a flag's value, or `quick` in a quick run that leaves it out."""
    flag = FLAGS[name]
    return quick if FLAGS.quick and not flag.present else flag.value


def choose(
    name: str, known: Iterable[str], quick: list[str] | None = None
) -> list[str]:
    """Returns a list of known words from a flag.

    Args:
        name: Name of the flag.
        known: What it may hold.
        quick: What a quick run takes instead of the default.

    Returns:
        The words, each once.

    Raises:
        FlagError: If a word is unknown, or if there is none.
    """
    known = list(known)
    words = FLAGS[name].value if quick is None else unless_quick(name, quick)
    words = list(dict.fromkeys(words))
    for word in words or [""]:
        if word not in known:
            raise FlagError(
                f"--{name} takes words of {', '.join(known)}, separated by "
                f"commas. Received: {','.join(words) or 'nothing'}"
            )
    return words


def numbers(
    name: str,
    kind: type,
    lowest: float,
    highest: float,
    quick: list[str] | None = None,
) -> list[Any]:
    """Returns a list of numbers from a flag.

    Args:
        name: Name of the flag.
        kind: `int` or `float`.
        lowest: The least that is taken.
        highest: The most that is taken.
        quick: What a quick run takes instead of the default.

    Returns:
        The numbers, each once.

    Raises:
        FlagError: If one is none or outside of the bounds, or if there is
            none.
    """
    words = FLAGS[name].value if quick is None else unless_quick(name, quick)
    try:
        values = [kind(word) for word in words]
        valid = values and all(lowest <= value <= highest for value in values)
    except (ValueError, OverflowError):
        valid = False
    if not valid:
        whole = "whole numbers" if kind is int else "numbers"
        raise FlagError(
            f"--{name} takes {whole} from {lowest:g} to {highest:g}, "
            f"separated by commas. Received: {','.join(words) or 'nothing'}"
        )
    return list(dict.fromkeys(values))


def measure_all(
    cells: Sequence[dict[str, Any]],
    measure: Callable[[dict[str, Any]], dict[str, Any]],
) -> list[dict[str, Any]]:
    """Measures cell after cell; one that fails does not stop the rest.

    Writes a progress line per cell to stderr.

    Args:
        cells: What tells the cells apart.
        measure: Returns the row of a cell.

    Returns:
        A row per cell: the cell, and what was measured or its `"error"`.
    """
    rows = []
    for number, cell in enumerate(cells, 1):
        what = " ".join(str(value) for value in cell.values())
        print(f"[{number}/{len(cells)}] {what}", file=sys.stderr, flush=True)
        try:
            row = {**cell, **measure(cell)}
        except FlagError:
            raise
        except Exception as error:
            if not isinstance(error, CellError):
                traceback.print_exc()
            row = {**cell, "error": f"{type(error).__name__}: {error}"}
        if "error" in row:
            print(f"    failed: {row['error']}", file=sys.stderr, flush=True)
        elif "ratio" in row:
            text = to_text(row)
            print(f"    ratio {text}", file=sys.stderr, flush=True)
        rows.append(row)
    return rows


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
    settings_used = {"settings": vars(settings())} if in_rounds else {}
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


def run_alone(**changed: Any) -> list[dict[str, Any]]:
    """Runs this program once more, in a process of its own, for one cell.

    Neither memory nor what is compiled piles up from cell to cell.

    Args:
        **changed: Flags that differ from those of this process.

    Returns:
        The rows that it measured.

    Raises:
        CellError: If it ended without results.
    """
    chosen = {
        flag.name: flag.value
        for flag in FLAGS.get_key_flags_for_module(sys.argv[0])
        if flag.present
    }
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "cell.json"
        chosen |= {**changed, "json": path}
        command = [sys.executable, sys.argv[0]]
        command += [f"--{key}={_text(value)}" for key, value in chosen.items()]
        done = subprocess.run(command, capture_output=True, text=True)
        if not path.exists():
            raise CellError(_reason(done, command))
        return json.loads(path.read_text(encoding="utf-8"))["rows"]


def program(main: Callable[[], None]) -> Callable[[list[str]], None]:
    """Makes what `app.run` takes: mistakes become one clear line.

    Args:
        main: The program.

    Returns:
        A function of the arguments that are no flags, of which there may be
        none.
    """

    def run(argv: list[str]) -> None:
        logging.set_verbosity(logging.WARNING)
        try:
            if len(argv) > 1:
                raise FlagError(
                    "Only flags are taken; --help lists them. "
                    f"Received: {' '.join(argv[1:])}"
                )
            _check_json()
            main()
        except (FlagError, ImportError, OSError) as error:
            sys.exit(f"error: {error}")
        except Exception as error:
            from packnet_tf import errors

            if not isinstance(error, errors.PackNetError):
                raise
            sys.exit(f"error: {error}")

    return run


def _check_json() -> None:
    """Checks that results can be written, before anything is computed."""
    if FLAGS.json is None:
        return
    path = pathlib.Path(FLAGS.json)
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    if (
        path.name in ("", "..")
        or path.is_dir()
        or not folder.is_dir()
        or not os.access(folder, os.W_OK)
    ):
        raise FlagError(
            "--json takes the path of a file, in a folder that can be "
            f"written. Received: {FLAGS.json!r}"
        )


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _reason(
    done: "subprocess.CompletedProcess[str]", command: list[str]
) -> str:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    if done.returncode < 0:
        why = f"ended by signal {-done.returncode}, as for lack of memory"
    else:
        why = lines[-1] if lines else f"exit status {done.returncode}"
    return f"{why} (of: {shlex.join(command)})"


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
