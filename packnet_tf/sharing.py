"""Sparsities with which tasks share the weights of a network as wanted."""

import math
import warnings
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence

from packnet_tf.capacity import Capacity
from packnet_tf.errors import ArgumentError


def to_sparsities(weights: Sequence[float], rest: float = 0.0) -> list[float]:
    """Computes with which sparsities tasks share in proportion to weights.

    Args:
        weights: Of each task, in order; positive.
        rest: What is to be free after the last, by the same measure.

    Returns:
        The sparsity of each task.
    """
    return [
        1.0 - weight / (math.fsum(weights[place:]) + rest)
        for place, weight in enumerate(weights)
    ]


def reserve(
    now: Capacity, weights: Mapping[str, float], future: int, share: float
) -> list[float]:
    """Finds sparsities that leave a share to each of some future tasks.

    Args:
        now: Who owns what before.
        weights: The weight of each task to come, by its name, in order. The
            first may be the newest task, if it is not frozen.
        future: How many tasks come after those, at least one.
        share: What each of these can own at least, as a fraction of all
            packed weights.

    Returns:
        The sparsity of each task to come.

    Raises:
        ArgumentError: If there is not enough capacity.
    """
    # Without the last digits, in which 0.07 * 100 is more than 7.
    wanted = math.ceil(round(share * now.total, 6))
    pool = now.free + sum(now.owned.get(name, 0) for name in weights)
    total = math.fsum(weights.values())
    reserved = future * wanted
    while reserved < pool or (reserved == pool and not weights):
        rest = total * reserved / (pool - reserved) if weights else 0.0
        chosen = to_sparsities(list(weights.values()), rest)
        if max(chosen, default=0.0) >= 1.0:
            break
        after = now.after(dict(zip(weights, chosen)))
        if min(list(later(after, future).owned.values())[-future:]) >= wanted:
            return chosen
        # Each packed weight rounds for itself.
        reserved += len(now.layers)
    raise ArgumentError(
        f"There is not enough capacity for {future} future tasks of {wanted:,} "
        f"weights each, which are {share:g} of all. Ask for less, or take a "
        f"wider network. Received: share={share!r}, future={future}, where "
        f"{pool:,} of {now.total:,} weights are left to share out"
    )


def later(after: Capacity, future: int) -> Capacity:
    """Tells who will own what once future tasks share equally what is left.

    Args:
        after: Who owns what before.
        future: How many tasks that are.

    Returns:
        A `Capacity` with so many more tasks.
    """
    # No task can have such a name.
    return after.after(
        {
            f"future {place}": sparsity
            for place, sparsity in enumerate(to_sparsities([1.0] * future), 1)
        }
    )


def check_growing(now: Capacity, task: str, sparsity: float) -> None:
    """Checks that the newest task need not take weights back.

    Args:
        now: Who owns what.
        task: Name of the newest task.
        sparsity: What it is to be pruned to.

    Raises:
        ArgumentError: If it is pruned further already.
    """
    for key, row in now.layers.items():
        pool = row[0] + row[-1]
        if round(sparsity * pool) < row[0]:
            raise ArgumentError(
                f"Released weights do not come back: task '{task}' is pruned "
                "further already. Let it keep less. Received: "
                f"sparsity={sparsity:g}, where {row[0]:,} of {pool:,} entries "
                f"of {key!r} are released"
            )


def check_owned(after: Capacity, tasks: Iterable[str]) -> None:
    """Checks that all tasks will own something.

    Args:
        after: Who will own what.
        tasks: Names of the tasks to check.

    Raises:
        ArgumentError: If a task will own nothing at all. That it will own
            nothing in some of the packed weights is warned of.
    """
    poor = []
    for name in tasks:
        if not after.owned[name]:
            raise ArgumentError(
                f"There is not enough capacity: task '{name}' would own "
                "nothing. Let the tasks before it keep less, plan fewer of "
                "them, or take a wider network. If the newest task is not "
                "frozen yet, plan it first, to release more. Received: "
                f"0 of {after.total:,} weights for {name!r}"
            )
        column = after.tasks.index(name) + 1
        without = [key for key, row in after.layers.items() if not row[column]]
        if without:
            poor.append(f"'{name}' in {without}")
    if poor:
        warnings.warn(
            "As each packed weight is shared out for itself, some tasks will "
            f"own nothing in some of them: {'; '.join(poor)}.",
            stacklevel=3,
        )
