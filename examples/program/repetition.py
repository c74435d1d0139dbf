"""The repeats of an experiment: one for each seed and order of the tasks."""

import dataclasses
import math

import numpy as np
from absl import flags
from program import flags_data  # noqa: F401
from program import flags_run  # noqa: F401

from packnet_tf.errors import ArgumentError

FLAGS = flags.FLAGS

_MAX_SEED = 2**31


@dataclasses.dataclass(frozen=True)
class Repeat:
    """One run of all methods.

    Attributes:
        name: Name of the repeat.
        folder: Where it is in the run folder.
        seed: Of weights, shuffling and dropout.
        order: Which place in `--tasks` comes first, second, ...
    """

    name: str
    folder: str
    seed: int
    order: tuple[int, ...]


def from_flags() -> list[Repeat]:
    """Returns the repeats, for each order and seed.

    Raises:
        ArgumentError: If seeds are no numbers, or one comes twice, or if there
            are not so many orders.
    """
    if not all(text.isdecimal() for text in FLAGS.seeds) or not FLAGS.seeds:
        raise ArgumentError(
            "--seeds takes whole numbers from 0, separated by commas. "
            f"Received: {','.join(FLAGS.seeds)!r}"
        )
    seeds = [int(text) for text in FLAGS.seeds]
    if len(set(seeds)) != len(seeds) or max(seeds) >= _MAX_SEED:
        raise ArgumentError(
            f"--seeds takes different numbers below {_MAX_SEED}. "
            f"Received: {','.join(FLAGS.seeds)!r}"
        )
    found = []
    for place, order in enumerate(_orders(len(FLAGS.tasks), FLAGS.orders)):
        for seed in seeds:
            name = f"seed{seed}" if not place else f"order{place}_seed{seed}"
            folder = "." if not found else name
            found.append(Repeat(name, folder, seed, order))
    return found


def _orders(tasks: int, count: int) -> list[tuple[int, ...]]:
    """Returns the given order, then others drawn at random, all different."""
    most = math.factorial(tasks)
    if count > most:
        raise ArgumentError(
            f"{tasks} {'task has' if tasks == 1 else 'tasks have'} no more "
            f"than {most} {'order' if most == 1 else 'orders'}; set --orders "
            f"to that or less. Received: --orders={count}"
        )
    found = {tuple(range(tasks)): None}
    draws = 0
    while len(found) < count:
        draws += 1
        drawn = np.random.default_rng(draws).permutation(tasks)
        found[tuple(drawn.tolist())] = None
    return list(found)
