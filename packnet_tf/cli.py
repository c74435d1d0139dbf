"""The command line: `packnet COMMAND PATH ...`.

A path is a `.keras` file, a pack file, or a run folder: one that holds
`packed.keras`, or the `checkpoint_dir` of `sequence.run`. Results go to
standard output, as text or, with `--json`, as one JSON value; errors go to
standard error. What a command writes replaces its target all or nothing, so
that it may be the file that was read; `export`, `pack` and `delta`, which write
less than was read, refuse that.

Exit codes: 0 if all is well; 1 if the file or what is asked of it will not do;
2 if the command line is not understood, which is told before any file is read;
3 if a task has changed since it was frozen; 141, as of other programs of Unix,
if who reads standard output has gone.
"""

import argparse
import contextlib
import io
import json
import os
import pathlib
import sys
import warnings
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

from absl import app

from packnet_tf import archive
from packnet_tf import cli_inputs
from packnet_tf import command_line
from packnet_tf import files
from packnet_tf import inspection
from packnet_tf import sizes
from packnet_tf import task_delta
from packnet_tf.errors import FingerprintError
from packnet_tf.errors import PackNetError
from packnet_tf.model import PackNetModel
from packnet_tf.plan import plan

FAILED = 1
CHANGED = 3
CLOSED = 141


def run() -> None:
    """Runs the command line of this process, and exits."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name of a file is any bytes.
        sys.stdout.reconfigure(errors="backslashreplace")
    app.run(main, flags_parser=command_line.parse)


def main(
    args: argparse.Namespace, print_fn: Callable[[str], Any] = print
) -> int:
    """Does what a command line asks for.

    Args:
        args: What `command_line.parse` returned.
        print_fn: Takes the results. Errors go to standard error.

    Returns:
        The exit code.
    """
    code = 0
    try:
        for target in (vars(args).get("output"), vars(args).get("report")):
            files.check_local(target or "")
        with _warned(args), cli_inputs.imported(args.imports):
            data, text = _COMMANDS[args.command](args)
    except (PackNetError, OSError) as error:
        text = command_line.in_flags(error, args)
        data = {"error": {"kind": type(error).__name__, "message": text}}
        code = CHANGED if isinstance(error, FingerprintError) else FAILED
        sys.stderr.write(f"packnet {args.command}: {text}\n")
        if not args.json:
            return code
    result = json.dumps(data, indent=2) if args.json else text
    return _show(result, args, print_fn) or code


@contextlib.contextmanager
def _warned(args: argparse.Namespace) -> Iterator[None]:
    """Tells of warnings without the line of code that they are from."""

    def show(message: Warning, *rest: Any) -> None:
        line = " ".join(command_line.in_flags(message, args).split())
        sys.stderr.write(f"warning: {line}\n")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _show(
    result: str, args: argparse.Namespace, print_fn: Callable[[str], Any]
) -> int:
    """Prints a result, and returns the exit code."""
    try:
        print_fn(result)
        if sys.stdout is not None:
            sys.stdout.flush()
        return 0
    except BrokenPipeError:
        code = CLOSED
    except OSError as error:
        code = FAILED
        sys.stderr.write(
            f"packnet {args.command}: The result cannot be printed: "
            f"{error.strerror}. Make room, or have it printed elsewhere. "
            "Received: a full standard output\n"
        )
    # Python would print what is left once more at its end.
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


# The commands. Each returns what it found as data and as text.


def _inspect(args: argparse.Namespace) -> tuple[Any, str]:
    model, file = _load(args)
    rounded = archive.is_rounded(file) if cli_inputs.is_pack(file) else None
    found = inspection.inspect(model, file, rounded)
    if args.report:
        found.write(args.report)
    return found.to_dict(), str(found)


def _verify(args: argparse.Namespace) -> tuple[Any, str]:
    model, file = _load(args)
    proofs = model.verify()
    data = {
        "path": str(file),
        "tasks": {name: proof._asdict() for name, proof in proofs.items()},
    }
    lines = [
        f"{proof.fingerprint}  {name}  ({proof.entries:,} entries of "
        f"{proof.variables} variables)"
        for name, proof in proofs.items()
    ]
    return data, "\n".join(lines or ["No task is frozen yet."])


def _export(args: argparse.Namespace) -> tuple[Any, str]:
    names = data = None
    if args.class_names is not None:
        names = cli_inputs.read_names(args.class_names)
    if args.representative_data is not None:
        data = cli_inputs.read_arrays(args.representative_data)
    cli_inputs.refuse_input(args)
    model, _ = _load(args)
    if args.task is None:
        model.export(args.output)
        return _written(args.output)
    model.export_task(
        args.task,
        args.output,
        format=args.format,
        class_names=names,
        quantize=args.quantize,
        representative_data=cli_inputs.arrange(data, model.backbone.input),
    )
    return _written(args.output)


def _pack(args: argparse.Namespace) -> tuple[Any, str]:
    cli_inputs.refuse_input(args)
    model, _ = _load(args)
    archive.save_pack(model, args.output, args.dtype)
    data, text = _written(args.output)
    rounded = archive.is_rounded(args.output)
    if rounded:
        text += (
            f"\nValues were rounded to {args.dtype}, which is lossy: outputs "
            "and fingerprints are others than before."
        )
    return {**data, "rounded": rounded, "lossy": rounded}, text


def _unpack(args: argparse.Namespace) -> tuple[Any, str]:
    model, _ = _load(args)
    model.save(args.output)
    return _written(args.output)


def _delta(args: argparse.Namespace) -> tuple[Any, str]:
    cli_inputs.refuse_input(args)
    model, _ = _load(args)
    task_delta.save_task(model, args.task, args.output)
    return _written(args.output)


def _apply(args: argparse.Namespace) -> tuple[Any, str]:
    model, _ = _load(args)
    task_delta.load_task(model, args.delta, args.max_bytes, not args.trust)
    return _save(model, args.output)


def _remove(args: argparse.Namespace) -> tuple[Any, str]:
    model, _ = _load(args)
    model.remove_task(args.task, also=args.also)
    return _save(model, args.output)


def _plan(args: argparse.Namespace) -> tuple[Any, str]:
    tasks: Any = list(args.tasks)
    if any(weight is not None for weight in args.tasks.values()):
        tasks = {
            name: 1.0 if weight is None else weight
            for name, weight in args.tasks.items()
        }
    planned = plan(
        cli_inputs.network(args),
        tasks,
        sparsities=args.sparsities or None,
        future=args.future,
        share=args.share,
        units=args.units or None,
    )
    capacity = planned.capacity.to_dict()
    capacity["heads"].update(dict.fromkeys(planned.uncounted))
    data = {
        "sparsities": planned.sparsities,
        "capacity": capacity,
        "future": list(planned.future),
        "bytes": planned.bytes,
        "uncounted_heads": list(planned.uncounted),
    }
    return data, str(planned)


_COMMANDS = {
    "inspect": _inspect,
    "verify": _verify,
    "export": _export,
    "pack": _pack,
    "unpack": _unpack,
    "delta": _delta,
    "apply": _apply,
    "remove": _remove,
    "plan": _plan,
}


# What is read and written.


def _load(args: argparse.Namespace) -> tuple[PackNetModel, pathlib.Path]:
    return cli_inputs.load(args.path, args.max_bytes, not args.trust)


def _save(model: PackNetModel, path: str) -> tuple[Any, str]:
    """Saves a model in the format that the suffix names."""
    if pathlib.Path(path).suffix == ".keras":
        model.save(path)
    else:
        archive.save_pack(model, path)
    return _written(path)


def _written(path: str) -> tuple[Any, str]:
    """Tells what was written, and how large it is."""
    size = sizes.on_disk(path)
    return {"written": path, "bytes": size}, f"Written: {path} ({size:,} bytes)"
