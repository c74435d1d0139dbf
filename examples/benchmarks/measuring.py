"""Measures cell after cell, each in a process of its own where asked for."""

import json
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import results
from absl import flags
from absl import logging
from choices import FlagError

# TensorFlow's notes on start-up would hide the progress lines.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

FLAGS = flags.FLAGS


class CellError(RuntimeError):
    """A cell could not be measured."""


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
            text = results.to_text(row)
            print(f"    ratio {text}", file=sys.stderr, flush=True)
        rows.append(row)
    return rows


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
