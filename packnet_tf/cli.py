"""The command line: `packnet COMMAND PATH ...`.

A path is a `.keras` file, a pack file, or the folder of a run that holds
`packed.keras`. Results go to standard output, as text or, with `--json`, as one
JSON value; errors go to standard error. What a command writes replaces its
target all or nothing, so that it may be the file that was read.

Exit codes: 0 if all is well; 1 if the file or what is asked of it will not do;
2 if the command line is not understood, which is told before any file is read;
3 if a task has changed since it was frozen.
"""

import argparse
import inspect
import json
import pathlib
import sys
import zipfile
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from absl import app

from packnet_tf import archive
from packnet_tf import command_line
from packnet_tf import inspection
from packnet_tf import loading
from packnet_tf import pack_format
from packnet_tf import sizes
from packnet_tf import task_delta
from packnet_tf.errors import FileError
from packnet_tf.errors import FingerprintError
from packnet_tf.errors import PackNetError
from packnet_tf.model import PackNetModel
from packnet_tf.plan import plan

FAILED = 1
CHANGED = 3
_IN_RUN = "packed.keras"


def run() -> None:
    """Runs the command line of this process, and exits."""
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
    try:
        data, text = _COMMANDS[args.command](args)
    except (PackNetError, OSError) as error:
        kind = type(error).__name__
        if args.json:
            failure = {"error": {"kind": kind, "message": str(error)}}
            print_fn(json.dumps(failure, indent=2))
        sys.stderr.write(f"packnet {args.command}: {error}\n")
        return CHANGED if isinstance(error, FingerprintError) else FAILED
    print_fn(json.dumps(data, indent=2) if args.json else text)
    return 0


def load(
    path: "str | pathlib.Path", max_bytes: int | None = None
) -> tuple[PackNetModel, pathlib.Path]:
    """Loads a packed model from any file that holds one.

    Args:
        path: A `.keras` file, a pack file, or the folder of a run.
        max_bytes: As for `load_pack` and `load_model`.

    Returns:
        The model, and the file that it came from.

    Raises:
        FileError: If there is none, or it cannot be loaded.
        FingerprintError: If a frozen task is not what it was.
    """
    file = pathlib.Path(path)
    if file.is_dir() and (file / _IN_RUN).exists():
        file = file / _IN_RUN
    begin = b""
    if file.is_file():
        with file.open("rb") as content:
            begin = content.read(len(pack_format.MAGIC))
    if begin == pack_format.MAGIC:
        return archive.load_pack(file, max_bytes), file
    return loading.load_model(file, max_bytes), file


# The commands. Each returns what it found as data and as text.


def _inspect(args: argparse.Namespace) -> tuple[Any, str]:
    model, file = load(args.path, args.max_bytes)
    found = inspection.inspect(model, file)
    if args.report:
        found.write(args.report)
    return found.to_dict(), str(found)


def _verify(args: argparse.Namespace) -> tuple[Any, str]:
    model, file = load(args.path, args.max_bytes)
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
        names = _read_names(args.class_names)
    if args.representative_data is not None:
        data = _read_arrays(args.representative_data)
    model, _ = load(args.path, args.max_bytes)
    if args.task is None:
        model.export(args.output)
        return _written(args.output)
    model.export_task(
        args.task,
        args.output,
        format=args.format,
        class_names=names,
        quantize=args.quantize,
        representative_data=_arrange(data, model.backbone.input),
    )
    return _written(args.output)


def _pack(args: argparse.Namespace) -> tuple[Any, str]:
    model, _ = load(args.path, args.max_bytes)
    archive.save_pack(model, args.output, args.dtype)
    return _written(args.output)


def _unpack(args: argparse.Namespace) -> tuple[Any, str]:
    model, _ = load(args.path, args.max_bytes)
    model.save(args.output)
    return _written(args.output)


def _delta(args: argparse.Namespace) -> tuple[Any, str]:
    model, _ = load(args.path, args.max_bytes)
    task_delta.save_task(model, args.task, args.output)
    return _written(args.output)


def _apply(args: argparse.Namespace) -> tuple[Any, str]:
    model, _ = load(args.path, args.max_bytes)
    task_delta.load_task(model, args.delta, args.max_bytes)
    return _save(model, args.output)


def _remove(args: argparse.Namespace) -> tuple[Any, str]:
    model, _ = load(args.path, args.max_bytes)
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
        _network(args),
        tasks,
        sparsities=args.sparsities or None,
        future=args.future,
        share=args.share,
        units=args.units or None,
    )
    data = {
        "sparsities": planned.sparsities,
        "capacity": planned.capacity.to_dict(),
        "future": list(planned.future),
        "bytes": planned.bytes,
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


# Helpers.


def _network(args: argparse.Namespace) -> keras.Model:
    """Returns what is to be planned: a file's model, or one of Keras."""
    path = pathlib.Path(args.path)
    known = getattr(keras.applications, args.path, None)
    if not path.exists() and inspect.isfunction(known):
        return known(weights=None)
    if path.suffix == ".keras" and path.is_file():
        return loading.load_any(path, args.max_bytes)
    return load(path, args.max_bytes)[0]


def _read_names(path: str) -> list[str]:
    """Reads the names of classes, one per line."""
    try:
        return pathlib.Path(path).read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise FileError(
            "--class_names is a text file in UTF-8, the name of a class per "
            f"line. Received: {path!r}: {error}"
        ) from error


def _read_arrays(path: str) -> "np.ndarray | dict[str, np.ndarray]":
    """Reads an array, or several by their names."""
    try:
        # Given a path, it leaves files open that are no archive.
        with open(path, "rb") as file:
            found = np.load(file, allow_pickle=False)
            return found if isinstance(found, np.ndarray) else dict(found)
    except (EOFError, ValueError, zipfile.BadZipFile) as error:
        raise FileError(
            "--representative_data is a file of numpy.save (.npy) or, of "
            "arrays by the names of the inputs, of numpy.savez (.npz). "
            f"Received: {path!r}: {error}"
        ) from error


def _arrange(data: Any, inputs: Any) -> Any:
    """Puts arrays into the structure of a network's inputs."""
    if not isinstance(data, dict):
        return data
    names = [x.name for x in keras.tree.flatten(inputs)]
    if sorted(data) != sorted(names):
        raise FileError(
            "--representative_data has an array for each input, by its name: "
            f"{names}. Received: {list(data)}"
        )
    return keras.tree.pack_sequence_as(inputs, [data[name] for name in names])


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
