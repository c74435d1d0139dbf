"""The command line: `packnet COMMAND PATH ...`.

A path is a `.keras` file, a pack file, or the folder of a run that holds
`packed.keras`. Results go to standard output, as text or, with `--json`, as one
JSON value; errors go to standard error. What a command writes replaces its
target all or nothing, so that it may be the file that was read.

Exit codes: 0 if all is well; 1 if the file or what is asked of it will not do;
2 if the command line is not understood; 3 if a task has changed since it was
frozen.
"""

import argparse
import inspect
import json
import pathlib
import sys
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import keras
from absl import app
from absl.flags import argparse_flags

from packnet_tf import archive
from packnet_tf import inspection
from packnet_tf import loading
from packnet_tf import pack_format
from packnet_tf import task_delta
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import FingerprintError
from packnet_tf.errors import PackNetError
from packnet_tf.model import PackNetModel
from packnet_tf.plan import plan

FAILED = 1
CHANGED = 3
_IN_RUN = "packed.keras"


def run() -> None:
    """Runs the command line of this process, and exits."""
    app.run(main, flags_parser=parse)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parses a command line.

    Args:
        argv: The name of the program, the command and its arguments.

    Returns:
        The arguments, and as `run` what to do with them.
    """
    return _make_parser().parse_args(argv[1:])


def main(
    args: argparse.Namespace, print_fn: Callable[[str], Any] = print
) -> int:
    """Does what a command line asks for.

    Args:
        args: What `parse` returned.
        print_fn: Takes the results. Errors go to standard error.

    Returns:
        The exit code.
    """
    try:
        data, text = args.do(args)
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
    model, _ = load(args.path, args.max_bytes)
    if args.task is None:
        for option in ("format", "class_names", "quantize"):
            if getattr(args, option):
                raise ArgumentError(
                    f"--{option} is for one task. Name it with --task. "
                    "Received: no --task"
                )
        model.export(args.output)
    else:
        names = None
        if args.class_names:
            text = pathlib.Path(args.class_names).read_text(encoding="utf-8")
            names = text.splitlines()
        model.export_task(
            args.task,
            args.output,
            format=args.format,
            class_names=names,
            quantize=args.quantize,
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
    tasks, weights = _pairs("tasks", args.tasks, 1.0)
    weighted = any(":" in text for text in args.tasks)
    _, units = _pairs("units", args.units, 0.0)
    counts = {name: round(value) for name, value in units.items()}
    sparsities = [_number("sparsities", text) for text in args.sparsities]
    planned = plan(
        _network(args),
        weights if weighted else tasks,
        sparsities=sparsities or None,
        future=args.future,
        share=args.share,
        units=counts or None,
    )
    data = {
        "sparsities": planned.sparsities,
        "capacity": planned.capacity.to_dict(),
        "future": list(planned.future),
        "bytes": planned.bytes,
    }
    return data, str(planned)


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


def _pairs(
    option: str, texts: list[str], default: float
) -> tuple[list[str], dict[str, float]]:
    """Reads names, each perhaps with a number behind a colon."""
    pairs = {}
    for text in texts:
        name, colon, number = text.partition(":")
        pairs[name] = _number(option, number) if colon else default
    return list(pairs), pairs


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ArgumentError(
            f"--{option} takes numbers. Received: {text!r}"
        ) from None


def _save(model: PackNetModel, path: str) -> tuple[Any, str]:
    """Saves a model in the format that the suffix names."""
    suffix = pathlib.Path(path).suffix
    if suffix == ".keras":
        model.save(path)
    elif suffix == ".packnet":
        archive.save_pack(model, path)
    else:
        raise ArgumentError(
            "Let --output end in `.keras` or `.packnet`. "
            f"Received: output={path!r}"
        )
    return _written(path)


def _written(path: str) -> tuple[Any, str]:
    """Tells what was written, and how large it is."""
    place = pathlib.Path(path)
    files = place.rglob("*") if place.is_dir() else [place]
    size = sum(file.stat().st_size for file in files if file.is_file())
    return {"written": path, "bytes": size}, f"Written: {path} ({size:,} bytes)"


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse_flags.ArgumentParser(
        prog="packnet",
        description="Looks at packed models, proves, converts and ships them.",
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def add(
        name: str, do: Callable[[argparse.Namespace], Any], text: str
    ) -> argparse.ArgumentParser:
        # The flags of absl go before the command. Given to each command
        # too, they would clash with its own: other programs define `--json`.
        command = commands.add_parser(
            name, help=text, description=text, inherited_absl_flags=None
        )
        command.set_defaults(do=do)
        command.add_argument(
            "path",
            help="A .keras file, a pack file, or the folder of a run."
            + " Or a name of keras.applications." * (name == "plan"),
        )
        command.add_argument(
            "--json", action="store_true", help="Print JSON instead of text."
        )
        command.add_argument(
            "--max_bytes",
            type=int,
            help="The most memory that the variables of the file may take.",
        )
        return command

    def output(command: argparse.ArgumentParser, text: str) -> None:
        command.add_argument("--output", "-o", required=True, help=text)

    def task(command: argparse.ArgumentParser, required: bool = True) -> None:
        command.add_argument("--task", required=required, help="Its name.")

    looking = add("inspect", _inspect, "Shows tasks, capacity and sizes.")
    looking.add_argument(
        "--report", help="A page (.html) or picture (.png, .svg) to write."
    )
    add("verify", _verify, "Proves that no frozen task has changed.")
    export = add(
        "export", _export, "Writes one task, or all, for others to serve."
    )
    task(export, required=False)
    output(
        export,
        "The folder of a SavedModel; for one task also a .keras or .tflite "
        "file.",
    )
    export.add_argument(
        "--format",
        choices=["tf_saved_model", "keras", "litert"],
        help="If the suffix does not tell.",
    )
    export.add_argument(
        "--class_names", help="A text file with the name of a class per line."
    )
    export.add_argument(
        "--quantize", choices=["float16"], help="Of a .tflite file."
    )
    pack = add("pack", _pack, "Writes a pack file, the smallest there is.")
    output(pack, "The file, by custom *.packnet.")
    pack.add_argument(
        "--dtype", choices=["bfloat16"], help="Rounds: half of the size, lossy."
    )
    unpack = add("unpack", _unpack, "Writes a .keras file, to train further.")
    output(unpack, "The .keras file.")
    delta = add("delta", _delta, "Writes what one task adds to those before.")
    task(delta)
    output(delta, "The file, by custom *.packtask.")
    apply = add("apply", _apply, "Adds a task from what `delta` wrote.")
    apply.add_argument("delta", help="The file that `delta` wrote.")
    output(apply, "The .keras or .packnet file to write.")
    remove = add("remove", _remove, "Removes the newest task, or several.")
    task(remove)
    remove.add_argument(
        "--also",
        type=_names,
        default=[],
        help="The later tasks, which build on it, separated by commas.",
    )
    output(remove, "The .keras or .packnet file to write.")
    planning = add("plan", _plan, "Plans how tasks share the weights.")
    planning.add_argument(
        "--tasks",
        type=_names,
        required=True,
        help="Names of the tasks to come, separated by commas; NAME:WEIGHT to "
        "share by weights.",
    )
    planning.add_argument(
        "--future", type=int, default=0, help="How many come after those."
    )
    planning.add_argument(
        "--share", type=float, help="What each of these can own at least."
    )
    planning.add_argument(
        "--sparsities",
        type=_names,
        default=[],
        help="One for each task, to see what they lead to.",
    )
    planning.add_argument(
        "--units",
        type=_names,
        default=[],
        help="NAME:CLASSES of the tasks, for the size of their heads.",
    )
    return parser
