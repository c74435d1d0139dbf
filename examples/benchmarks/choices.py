"""What the flags of several benchmarks let users choose."""

import results
from absl import flags

FLAGS = flags.FLAGS

APPLICATIONS = ("vgg16", "resnet50", "mobilenetv2")
NETWORKS = ("cnn", "transformer", *APPLICATIONS)
FIXED_SIZES = {"cnn": 28, "transformer": 64}
OPTIMIZERS = ("sgd", "adam", "adamw")
JIT_COMPILE = {"auto": "auto", "true": True, "false": False}

SIZES_HELP = (
    "Height and width of the images, for all networks but cnn (28) and "
    "transformer (sequences of 64)."
)


def networks_and_sizes() -> list[tuple[str, int]]:
    """Returns the networks to measure, each at its sizes.

    Reads `--networks` and `--sizes`, which the program defines.
    """
    networks = results.choose("networks", NETWORKS, quick=["cnn"])
    sizes = results.numbers("sizes", int, 32, 1024, quick=["64"])
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
