"""How many bytes a packed model takes, whole and in other forms."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Iterable
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from packnet_tf import entropy_coding
from packnet_tf import inventory


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes in bytes, of variables alone.

    Attributes:
        compact: What a pack file takes before it codes values: the weights
            that are owned, the entropy of the owner maps, heads, and what is
            not packed.
        paper: By the paper's formula: all weights, heads, and for each packed
            weight as many whole bits as tell its owners apart.
        separate: Of a network per task.
    """

    compact: int
    paper: int
    separate: int


def measure(
    entries: Iterable[inventory.Entry],
    heads: Iterable[keras.Model],
    layers: Mapping[str, tuple[int, ...]],
) -> Sizes:
    """Computes the sizes of a packed model.

    Args:
        entries: The backbone's variables, as `inventory.take` lists them.
        heads: The heads of task 1, 2, and so on.
        layers: For each packed weight, by its key, the number of free entries
            and of those of task 1, 2, ...; as `Capacity.layers` has it.

    Returns:
        `Sizes`.
    """
    of_heads = [_bytes(head.variables) for head in heads]
    tasks = len(of_heads)
    packed = dense = alone = free = 0
    widths = {}
    for entry in entries:
        size = _bytes([entry.variable])
        dense += size
        if entry.owner is not None:
            counts = layers[entry.key]
            widths[entry.key] = tf.as_dtype(entry.variable.dtype).size
            packed += sum(counts)
            free += counts[0]
        elif entry.protection == inventory.PER_TASK:
            alone += size * tasks
        else:
            alone += size
    bits = math.ceil(math.log2(max(tasks + bool(free), 1)))
    return Sizes(
        compact=compact(layers, widths, alone + sum(of_heads)),
        paper=math.ceil(dense + packed * bits / 8 + sum(of_heads)),
        separate=int(max(tasks, 1) * dense + sum(of_heads)),
    )


def compact(
    layers: Mapping[str, tuple[int, ...]], widths: Mapping[str, int], rest: int
) -> int:
    """Computes what a pack file takes before it codes values.

    Args:
        layers: As `Capacity.layers` has it.
        widths: How many bytes an entry of each packed weight takes.
        rest: How many bytes all takes that is not packed, heads included.

    Returns:
        The number of bytes: of what is owned, of owner maps coded to their
        entropy, and of the rest.
    """
    owned = sum(widths[key] * sum(row[1:]) for key, row in layers.items())
    bits = sum(entropy_coding.entropy(np.array(row)) for row in layers.values())
    return math.ceil(owned + bits / 8 + rest)


def on_disk(path: "str | os.PathLike[str]") -> int:
    """Adds up the bytes of a file, or of all files in a folder.

    Args:
        path: The file or folder.

    Returns:
        The number of bytes.
    """
    place = pathlib.Path(path)
    if not place.is_dir():
        return place.stat().st_size
    files = (file for file in place.rglob("*") if file.is_file())
    return sum(file.stat().st_size for file in files)


def _bytes(variables: Iterable[keras.Variable]) -> int:
    return sum(
        math.prod(v.shape) * tf.as_dtype(v.dtype).size for v in variables
    )
