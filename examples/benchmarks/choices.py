"""What the flags of all benchmarks let users choose, and how they are read.

Nothing here imports TensorFlow: `--help` and mistakes in flags are answered
at once.
"""

from collections.abc import Iterable
from typing import Any

import in_turn
from absl import flags

FLAGS = flags.FLAGS

APPLICATIONS = ("vgg16", "resnet50", "mobilenetv2")
NETWORKS = ("cnn", "transformer", *APPLICATIONS)
FIXED_SIZES = {"cnn": 28, "transformer": 64}
OPTIMIZERS = ("sgd", "adam", "adamw")
JIT_COMPILE = {"auto": "auto", "true": True, "false": False}


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


def define_networks(default: Iterable[str]) -> None:
    """Defines `--networks`."""
    flags.DEFINE_list(
        "networks", list(default), f"Networks of {', '.join(NETWORKS)}."
    )


def define_sizes(default: Iterable[str]) -> None:
    """Defines `--sizes`."""
    flags.DEFINE_list(
        "sizes",
        list(default),
        "Height and width of the images, for all networks but cnn (28) and "
        "transformer (sequences of 64).",
    )


def define_optimizers(default: Iterable[str]) -> None:
    """Defines `--optimizers`."""
    flags.DEFINE_list(
        "optimizers",
        list(default),
        f"Optimizers of {', '.join(OPTIMIZERS)}; sgd has momentum.",
    )


def define_batch_size() -> None:
    """Defines `--batch_size`, `None` for what `default_batch_size` says."""
    flags.DEFINE_integer(
        "batch_size",
        None,
        "Examples per step. Defaults to 32 for cnn and transformer, 16 for "
        "images up to 64 pixels and 4 for larger ones.",
        lower_bound=1,
    )


def define_jit_compile() -> None:
    """Defines `--jit_compile`."""
    flags.DEFINE_enum(
        "jit_compile",
        "auto",
        list(JIT_COMPILE),
        "As `compile` takes it, for both models.",
    )


def define_isolate() -> None:
    """Defines `--isolate`."""
    flags.DEFINE_bool(
        "isolate", True, "Measure each cell in a process of its own."
    )


def networks_and_sizes() -> list[tuple[str, int]]:
    """Returns the networks to measure, each at its sizes.

    Reads `--networks` and `--sizes`, which the program defines.
    """
    networks = choose("networks", NETWORKS, quick=["cnn"])
    sizes = numbers("sizes", int, 32, 1024, quick=["64"])
    return [
        (network, size)
        for network in networks
        for size in (
            [FIXED_SIZES[network]] if network in FIXED_SIZES else sizes
        )
    ]


def flags_of(network: str, size: int) -> dict[str, object]:
    """Returns the flags that choose one network at one size."""
    if network in FIXED_SIZES:
        return {"networks": network}
    return {"networks": network, "sizes": size}


def default_batch_size(network: str, size: int) -> int:
    """Returns how many examples a training step takes."""
    if network in FIXED_SIZES:
        return 32
    return 16 if size <= 64 else 4
