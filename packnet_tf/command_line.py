"""The flags of the command line `packnet`, and what they mean together."""

import argparse
import math
import pathlib
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

from absl.flags import argparse_flags

from packnet_tf import export
from packnet_tf import flag_words
from packnet_tf import selection
from packnet_tf.errors import ArgumentError

_MODELS = (".keras", ".packnet")
_NO_FLAGS = ("check", "command", "delta", "imports", "path", "refuse", "trust")
_CUSTOMS = {"pack": ".packnet", "delta": ".packtask"}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parses a command line, and checks all that can be told from it alone.

    Args:
        argv: The name of the program, the command and its arguments.

    Returns:
        The arguments, and as `command` what to do with them.

    Raises:
        SystemExit: If it is not understood; with code 2.
    """
    args = _make_parser().parse_args(argv[1:])
    try:
        args.check(args)
    except ArgumentError as error:
        args.refuse(in_flags(error, args))
    return args


def in_flags(message: "Exception | Warning", args: argparse.Namespace) -> str:
    """Returns what an error or a warning says, in flags of the command.

    Args:
        message: The error or warning.
        args: The command line, as `parse` returns it.

    Returns:
        The text.
    """
    flags = {
        name: value
        for name, value in vars(args).items()
        if name not in _NO_FLAGS
    }
    return flag_words.translate(str(message), flags)


# What flags mean together.


def _check_nothing(args: argparse.Namespace) -> None:
    """Takes any flags."""


def _check_report(args: argparse.Namespace) -> None:
    if args.report is not None and not pathlib.Path(args.report).suffix:
        raise ArgumentError(
            "Let --report end in .html for a page, or in the suffix of a "
            f"picture such as .png. Received: --report={args.report}"
        )


def _check_export(args: argparse.Namespace) -> None:
    format = export.find_format(args.output, args.format)
    if args.task is not None:
        export.check_quantize(format, args.quantize, args.representative_data)
        return
    if format != export.SAVED_MODEL:
        raise ArgumentError(
            "All tasks together are a SavedModel. For a file name the one "
            f"task with --task. Received: --output={args.output}, a file of "
            f"format {format!r}, and no --task"
        )
    for option in ("class_names", "quantize", "representative_data"):
        if getattr(args, option) is not None:
            raise ArgumentError(
                f"--{option} is for one task. Name it with --task. "
                "Received: no --task"
            )


def _check_keras(args: argparse.Namespace) -> None:
    _check_output(args, _MODELS[:1])


def _check_aside(args: argparse.Namespace) -> None:
    """Takes no name that Keras would take for its own."""
    if pathlib.Path(args.output).suffix.lower() == _MODELS[0]:
        raise ArgumentError(
            f"What `{args.command}` writes is no {_MODELS[0]} file. Let "
            "--output end otherwise, by custom in "
            f"{_CUSTOMS[args.command]}. Received: --output={args.output}"
        )


def _check_output(
    args: argparse.Namespace, suffixes: Sequence[str] = _MODELS
) -> None:
    suffix = pathlib.Path(args.output).suffix
    # Keras goes by its own, in lower case alone.
    if suffix.lower() != _MODELS[0]:
        suffix = suffix.lower()
    if suffix not in suffixes:
        raise ArgumentError(
            f"Let --output end in {' or '.join(suffixes)}. "
            f"Received: --output={args.output}"
        )


def _check_plan(args: argparse.Namespace) -> None:
    tasks, sparsities = args.tasks, args.sparsities
    weighted = [name for name, weight in tasks.items() if weight is not None]
    if not tasks and not args.future:
        raise ArgumentError(
            "There is nothing to plan. Name the tasks to come. "
            "Received: no --tasks and no --future"
        )
    unknown = sorted(set(args.units) - set(tasks))
    if unknown:
        raise ArgumentError(
            "--units are of tasks to come, which --tasks names. "
            f"Received: --units for {unknown}, --tasks {list(tasks)}"
        )
    if sparsities and (weighted or len(sparsities) != len(tasks)):
        raise ArgumentError(
            "--sparsities has one number for each of --tasks, which then have "
            f"no weights. Received: {len(sparsities)} sparsities for tasks "
            f"{list(tasks)}, with weights {weighted}"
        )
    if args.share is not None and (sparsities or not args.future):
        raise ArgumentError(
            "--share is what each of the --future tasks can own at least, for "
            "which sparsities are found. Received: "
            f"--future={args.future}, --sparsities={sparsities}"
        )


# What one flag may be.


def _refusal(expected: str, received: Any) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"{expected} Received: {received!r}")


def _names(text: str) -> list[str]:
    names = text.split(",") if text else []
    if not all(names):
        raise _refusal("Separate names by one comma each.", text)
    return names


def _module(text: str) -> str:
    if not all(part.isidentifier() for part in text.split(".")):
        raise _refusal("Name a module as `import` does: my.module.", text)
    return text


def _pairs(text: str) -> dict[str, str | None]:
    """Reads names, each perhaps with a number behind a colon."""
    pairs: dict[str, str | None] = {}
    for part in _names(text):
        name, colon, number = part.partition(":")
        if not name:
            raise _refusal("A name goes before each colon.", part)
        if name in pairs:
            raise _refusal(f"Give {name!r} once.", text)
        pairs[name] = number if colon else None
    return pairs


def _weights(text: str) -> dict[str, float | None]:
    return {
        name: None if weight is None else _weight(weight)
        for name, weight in _pairs(text).items()
    }


def _weight(text: str) -> float:
    return _number(text, float, lambda n: 0 < n < math.inf, "more than 0")


def _units(text: str) -> dict[str, int]:
    found = {}
    for name, number in _pairs(text).items():
        if number is None:
            raise _refusal("Each name is followed by its classes: a:5.", name)
        found[name] = _positive(number)
    return found


def _positive(text: str) -> int:
    return _number(text, int, lambda n: n > 0, "a whole number from 1")


def _count(text: str) -> int:
    return _number(text, int, lambda n: n >= 0, "a whole number from 0")


def _share(text: str) -> float:
    return _number(text, float, lambda n: 0 < n < 1, "between 0 and 1")


def _sparsities(text: str) -> list[float]:
    try:
        return [selection.check_fraction(float(each)) for each in _names(text)]
    except ValueError:
        raise _refusal("Sparsities are numbers in [0, 1).", text) from None


def _number(
    text: str,
    kind: Callable[[str], Any],
    is_within: Callable[[Any], bool],
    expected: str,
) -> Any:
    try:
        number = kind(text)
    except ValueError:
        number = None
    if number is None or not is_within(number):
        raise _refusal(f"Expected a number, {expected}.", text)
    return number


# The commands.


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse_flags.ArgumentParser(
        prog="packnet",
        description="Looks at packed models, proves, converts and ships them.",
        epilog="A model is a .keras file, a pack file, or a run folder: one "
        "that holds packed.keras, as examples/fine_grained.py writes it, or "
        "the checkpoint_dir of sequence.run, with its progress.json. One with "
        "layers of your own, or of a package such as keras-cv, takes "
        "--import=my.module behind the command; one that brings code, as in a "
        "Lambda, --trust.",
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def add(
        name: str,
        text: str,
        check: Callable[[argparse.Namespace], None] = _check_nothing,
    ) -> argparse.ArgumentParser:
        # The flags of absl go before the command. Given to each command
        # too, they would clash with its own: other programs define `--json`.
        command = commands.add_parser(
            name, help=text, description=text, inherited_absl_flags=None
        )
        command.set_defaults(check=check, refuse=command.error)
        command.add_argument(
            "path",
            help="A .keras file, a pack file, or a run folder: one that holds "
            "packed.keras, or the checkpoint_dir of sequence.run, with its "
            "progress.json."
            + " Or a name of keras.applications."
            * (name == "plan"),
        )
        command.add_argument(
            "--json", action="store_true", help="Print JSON instead of text."
        )
        command.add_argument(
            "--max_bytes",
            type=_positive,
            help="The most memory that the variables of the file may take.",
        )
        command.add_argument(
            "--import",
            dest="imports",
            metavar="MODULE",
            type=_module,
            action="append",
            default=[],
            help="A module that registers layers of the model with Keras, as "
            "keras_cv does or one of your own, in the current folder or "
            "installed. It is run. May be given several times.",
        )
        command.add_argument(
            "--trust",
            action="store_true",
            help="Opens a file that you trust, whatever it brings (safe_mode="
            "False): it can run any code, as a Lambda does.",
        )
        return command

    def output(command: argparse.ArgumentParser, text: str) -> None:
        command.add_argument("--output", "-o", required=True, help=text)

    def task(command: argparse.ArgumentParser, required: bool = True) -> None:
        command.add_argument("--task", required=required, help="Its name.")

    looking = add("inspect", "Shows tasks, capacity and sizes.", _check_report)
    looking.add_argument(
        "--report", help="A page (.html) or picture (.png, .svg) to write."
    )
    add("verify", "Proves that no frozen task has changed.")
    exporting = add(
        "export",
        "Writes one task, or all, for others to serve.",
        _check_export,
    )
    task(exporting, required=False)
    output(
        exporting,
        "The folder of a SavedModel; for one task also a .keras or .tflite "
        "file.",
    )
    exporting.add_argument(
        "--format",
        choices=["tf_saved_model", "keras", "litert"],
        help="If the suffix does not tell.",
    )
    exporting.add_argument(
        "--class_names", help="A text file with the name of a class per line."
    )
    exporting.add_argument(
        "--quantize", choices=["float16", "int8"], help="Of a LiteRT file."
    )
    exporting.add_argument(
        "--representative_data",
        help="For int8: a .npy file of some hundred examples, or a .npz file "
        "of such by the names of several inputs.",
    )
    pack = add(
        "pack", "Writes a pack file, the smallest there is.", _check_aside
    )
    output(pack, "The file, by custom *.packnet.")
    pack.add_argument(
        "--dtype", choices=["bfloat16"], help="Rounds: half of the size, lossy."
    )
    unpack = add(
        "unpack", "Writes a .keras file, to train further.", _check_keras
    )
    output(unpack, "The .keras file.")
    delta = add(
        "delta", "Writes what one task adds to those before.", _check_aside
    )
    task(delta)
    output(delta, "The file, by custom *.packtask.")
    apply = add("apply", "Adds a task from what `delta` wrote.", _check_output)
    apply.add_argument("delta", help="The file that `delta` wrote.")
    output(apply, "The .keras or .packnet file to write.")
    remove = add(
        "remove", "Removes the newest task, or several.", _check_output
    )
    task(remove)
    remove.add_argument(
        "--also",
        type=_names,
        default=[],
        help="The later tasks, which build on it, separated by commas.",
    )
    output(remove, "The .keras or .packnet file to write.")
    planning = add("plan", "Plans how tasks share the weights.", _check_plan)
    planning.add_argument(
        "--tasks",
        type=_weights,
        required=True,
        help="Names of the tasks to come, separated by commas; NAME:WEIGHT to "
        "share by weights.",
    )
    planning.add_argument(
        "--future",
        type=_count,
        default=0,
        help="How many come after those.",
    )
    planning.add_argument(
        "--share", type=_share, help="What each of these can own at least."
    )
    planning.add_argument(
        "--sparsities",
        type=_sparsities,
        default=[],
        help="One for each task, to see what they lead to.",
    )
    planning.add_argument(
        "--units",
        type=_units,
        default={},
        help="NAME:CLASSES of the tasks, for the size of their heads.",
    )
    return parser
