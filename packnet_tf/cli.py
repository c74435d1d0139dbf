"""The command line: `packnet COMMAND PATH ...`.

A path is a `.keras` file, a pack file, or a run folder: one that holds
`packed.keras`, or the `checkpoint_dir` of `sequence.run`. Results go to
standard output, as text or, with `--json`, as one JSON value; errors go to
standard error. What a command writes replaces its target all or nothing, so
that it may be the file that was read; `export`, `pack` and `delta`, which write
less than was read, refuse that.

Exit codes: 0 if all is well; 1 if the file or what is asked of it will not do;
2 if the command line is not understood, which is told before any file is read;
3 if a task has changed since it was frozen.
"""

import argparse
import contextlib
import difflib
import importlib
import inspect
import json
import os
import pathlib
import sys
import zipfile
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from absl import app

from packnet_tf import archive
from packnet_tf import command_line
from packnet_tf import files
from packnet_tf import inspection
from packnet_tf import loading
from packnet_tf import pack_format
from packnet_tf import progress
from packnet_tf import sizes
from packnet_tf import task_delta
from packnet_tf.errors import FileError
from packnet_tf.errors import FingerprintError
from packnet_tf.errors import PackageError
from packnet_tf.errors import PackNetError
from packnet_tf.model import PackNetModel
from packnet_tf.plan import plan

FAILED = 1
CHANGED = 3
_IN_RUN = "packed.keras"
_PACKS = (".packnet", ".packtask")
_AS_FLAGS = {
    "`safe_mode=False`": "`--trust`",
    "Import what registers it first": "Name what registers it with `--import`",
}


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
        for target in (vars(args).get("output"), vars(args).get("report")):
            files.check_local(target or "")
        with _imported(args.imports):
            data, text = _COMMANDS[args.command](args)
    except (PackNetError, OSError) as error:
        message = str(error)
        for argument, flag in _AS_FLAGS.items():
            message = message.replace(argument, flag)
        if args.json:
            kind = type(error).__name__
            failure = {"error": {"kind": kind, "message": message}}
            print_fn(json.dumps(failure, indent=2))
        sys.stderr.write(f"packnet {args.command}: {message}\n")
        return CHANGED if isinstance(error, FingerprintError) else FAILED
    print_fn(json.dumps(data, indent=2) if args.json else text)
    return 0


def load(
    path: "str | pathlib.Path",
    max_bytes: int | None = None,
    safe_mode: bool = True,
) -> tuple[PackNetModel, pathlib.Path]:
    """Loads a packed model from any file that holds one.

    Args:
        path: A `.keras` file, a pack file, or a run folder.
        max_bytes: As for `load_pack` and `load_model`.
        safe_mode: As for `load_pack` and `load_model`.

    Returns:
        The model, and the file that it came from.

    Raises:
        FileError: If there is none, or it cannot be loaded.
        FingerprintError: If a frozen task is not what it was.
    """
    file = _find(path)
    load_file = archive.load_pack if _is_pack(file) else loading.load_model
    return load_file(file, max_bytes, safe_mode), file


# The commands. Each returns what it found as data and as text.


def _inspect(args: argparse.Namespace) -> tuple[Any, str]:
    model, file = _load(args)
    found = inspection.inspect(model, file)
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
        names = _read_names(args.class_names)
    if args.representative_data is not None:
        data = _read_arrays(args.representative_data)
    _refuse_input(args)
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
        representative_data=_arrange(data, model.backbone.input),
    )
    return _written(args.output)


def _pack(args: argparse.Namespace) -> tuple[Any, str]:
    _refuse_input(args)
    model, _ = _load(args)
    archive.save_pack(model, args.output, args.dtype)
    return _written(args.output)


def _unpack(args: argparse.Namespace) -> tuple[Any, str]:
    model, _ = _load(args)
    model.save(args.output)
    return _written(args.output)


def _delta(args: argparse.Namespace) -> tuple[Any, str]:
    _refuse_input(args)
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


# What is read.


@contextlib.contextmanager
def _imported(names: Sequence[str]) -> Iterator[None]:
    """Imports modules, and finds them in the current folder meanwhile."""
    added = [os.getcwd()] if names else []
    sys.path[:0] = added
    try:
        for name in names:
            _import(name)
        yield
    finally:
        for folder in added:
            with contextlib.suppress(ValueError):  # A module took it out.
                sys.path.remove(folder)


def _import(name: str) -> None:
    try:
        # What it prints is no result.
        with contextlib.redirect_stdout(sys.stderr):
            importlib.import_module(name)
    # Whatever the code of a user raises.
    except (Exception, SystemExit) as error:
        raise PackageError(
            f"Cannot import the module: {type(error).__name__}: {error}. Name "
            "it as `import` does, and install it or be in the folder that it "
            f"is in. Received: --import={name}, in {os.getcwd()!r}"
        ) from error


def _load(args: argparse.Namespace) -> tuple[PackNetModel, pathlib.Path]:
    return load(args.path, args.max_bytes, not args.trust)


def _find(path: "str | pathlib.Path") -> pathlib.Path:
    """Returns the file that a path names, or the folder of a Keras model."""
    file = pathlib.Path(path)
    if not file.exists():
        raise FileError(
            "There is no such file or folder. Check the path. "
            f"Received: path={str(path)!r}"
        )
    if not file.is_dir():
        return file
    if (file / _IN_RUN).exists():
        return file / _IN_RUN
    found = progress.read(file)
    if found is not None:
        return file / found.model
    if (file / "config.json").exists():  # Saved with `zipped=False`.
        return file
    raise FileError(
        f"This is no run folder. One holds {_IN_RUN!r}, as of "
        "examples/fine_grained.py once a task is learned, or is the "
        "`checkpoint_dir` of `sequence.run`, with its 'progress.json'. Pass "
        "the path of one, or of a file. "
        f"Received: path={str(path)!r}, a folder without them"
    )


def _is_pack(file: pathlib.Path) -> bool:
    """Tells by its first bytes, or else by its name, who can read a file."""
    if file.is_dir():
        return False
    begin = b""
    if file.is_file():
        with file.open("rb") as content:
            begin = content.read(len(pack_format.MAGIC))
    if begin == pack_format.MAGIC or file.suffix.lower() in _PACKS:
        return True
    if file.suffix != ".keras":
        raise FileError(
            "A packed model is in a `.keras` file, or in a pack file, which "
            "begins with other bytes. Pass the path of one. "
            f"Received: path={str(file)!r}, which begins with {begin!r}"
        )
    return False


def _refuse_input(args: argparse.Namespace) -> None:
    """Checks that the model that is read would not be overwritten."""
    file = _find(args.path)
    output = pathlib.Path(os.path.realpath(args.output))
    # A model may be a folder, which the output may be within.
    for place in (output, *output.parents):
        if place.exists() and place.samefile(file):
            raise FileError(
                f"What `{args.command}` writes has less in it than the model "
                "that it reads, and would replace that. Choose another "
                f"--output. Received: --output={args.output}, for the model "
                f"{str(file)!r}"
            )


def _network(args: argparse.Namespace) -> keras.Model:
    """Returns what is to be planned: a file's model, or one of Keras."""
    if os.path.exists(args.path):
        file = _find(args.path)
        load_file = archive.load_pack if _is_pack(file) else loading.load_any
        return load_file(file, args.max_bytes, not args.trust)
    known = {
        name.casefold(): (name, make)
        for name, make in inspect.getmembers(
            keras.applications, inspect.isfunction
        )
    }
    asked = args.path.casefold()
    if asked not in known:
        near = difflib.get_close_matches(asked, known) or ["vgg16", "resnet50"]
        raise FileError(
            "There is no such file or folder, and no such network in "
            "keras.applications. Check the path, or give a name of those, "
            f"such as {' or '.join(known[name][0] for name in near)}. "
            f"Received: path={args.path!r}"
        )
    return known[asked][1](weights=None)


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


# What is written.


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
