"""Measures what was learned and what was kept, from matrices of accuracies.

A matrix has a row and a column per task, both in the order of learning. Row `i`
holds the accuracies, in [0, 1], on the test parts after the task of row `i` was
learned. What is not known is `None` or NaN, and a measure that would need it
is `None`: nothing is guessed.
"""

import dataclasses
import statistics
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np

from packnet_tf.errors import ArgumentError

Matrix = Sequence[Sequence[float | None]] | np.ndarray
Values = list[float | None]

INDIVIDUAL = "individual"
JOINT = "joint"


@dataclasses.dataclass(frozen=True)
class Spread:
    """A value over repeats.

    Attributes:
        mean: Of those repeats where it is known.
        deviation: Sample standard deviation (divided by one less than there
            are), `None` for a single value.
        count: How many are known.
    """

    mean: float
    deviation: float | None
    count: int


@dataclasses.dataclass(frozen=True)
class Measures:
    """All that a matrix tells of a method.

    Attributes:
        after_learning: Accuracy right after learning, by task.
        at_end: Accuracy after the last task, by task.
        mean: Mean of `at_end`.
        averages: Mean over the tasks learned so far, after each task.
        forgetting: As `forgetting` returns it.
        backward: As `backward_transfer` returns it.
        forward: As `forward_transfer` returns it.
    """

    after_learning: dict[str, float | None]
    at_end: dict[str, float | None]
    mean: float | None
    averages: Values
    forgetting: float | None
    backward: float | None
    forward: float | None


def measure(
    method: str, matrices: Mapping[str, Matrix], order: Sequence[str]
) -> Measures:
    """Takes all measures of one method in one repeat.

    Individual networks are measured as if they were one method: each stays as
    it is while the others are learned. That they forget nothing says nothing,
    so it is left out, as is what a joint network had "right after learning"
    a task, since it learns all at once.

    Args:
        method: Name of the method.
        matrices: The matrices of all methods of the repeat, by name.
        order: Names of the tasks as they were learned.

    Returns:
        The measures.

    Raises:
        ArgumentError: If a matrix is none, or is not of these tasks.
    """
    matrix = _checked(matrices[method])
    if len(order) != len(matrix):
        raise ArgumentError(
            "A matrix has a row per task. "
            f"Received: {len(matrix)} rows for {', '.join(order)}"
        )
    alone = method == INDIVIDUAL
    if alone:
        matrix = np.tril(np.broadcast_to(np.diagonal(matrix), matrix.shape))
    learned = learned_accuracies(matrix)
    if method == JOINT:
        learned = [None] * len(order)
    separate = matrices.get(INDIVIDUAL)
    return Measures(
        dict(zip(order, learned)),
        dict(zip(order, final_accuracies(matrix))),
        mean_final_accuracy(matrix),
        average_accuracies(matrix),
        None if alone else forgetting(matrix),
        None if alone else backward_transfer(matrix),
        None
        if alone or separate is None
        else forward_transfer(matrix, learned_accuracies(separate)),
    )


def learned_accuracies(matrix: Matrix) -> Values:
    """Returns the accuracy on each task right after it was learned.

    Args:
        matrix: Accuracies in [0, 1], of shape `(tasks, tasks)`.
    """
    return _listed(np.diagonal(_checked(matrix)))


def final_accuracies(matrix: Matrix) -> Values:
    """Returns the accuracy on each task after the last one was learned.

    Args:
        matrix: Accuracies in [0, 1], of shape `(tasks, tasks)`.
    """
    return _listed(_checked(matrix)[-1])


def mean_final_accuracy(matrix: Matrix) -> float | None:
    """Returns the mean over all tasks after the last one was learned.

    Args:
        matrix: Accuracies in [0, 1], of shape `(tasks, tasks)`.
    """
    return _mean(final_accuracies(matrix))


def average_accuracies(matrix: Matrix) -> Values:
    """Returns, after each task, the mean over the tasks learned so far.

    Args:
        matrix: Accuracies in [0, 1], of shape `(tasks, tasks)`.
    """
    rows = _checked(matrix)
    return [_mean(_listed(row[: i + 1])) for i, row in enumerate(rows)]


def forgetting(matrix: Matrix) -> float | None:
    """Returns how much of the best accuracy was lost, averaged over tasks.

    The mean, over all tasks but the last, of the best accuracy from learning
    the task until before the last one was learned, minus that at the end.

    Args:
        matrix: Accuracies in [0, 1], of shape `(tasks, tasks)`.

    Returns:
        A float in [-1, 1]; below 0 where tasks gained. `None` for a single
        task. Exactly 0 where nothing ever changed.

    Reference:
        - [Chaudhry et al., 2018](https://arxiv.org/abs/1801.10112)
    """
    rows = _checked(matrix)
    # The maximum with NaN is NaN: the best of what is partly known is not.
    return _mean(
        _listed(
            np.array(
                [
                    rows[i:-1, i].max() - rows[-1, i]
                    for i in range(len(rows) - 1)
                ]
            )
        )
    )


def backward_transfer(matrix: Matrix) -> float | None:
    """Returns how later tasks changed earlier ones, averaged over tasks.

    The mean, over all tasks but the last, of the accuracy at the end minus that
    right after learning.

    Args:
        matrix: Accuracies in [0, 1], of shape `(tasks, tasks)`.

    Returns:
        A float in [-1, 1]; below 0 where tasks lost. `None` for a single task.

    Reference:
        - [Lopez-Paz and Ranzato, 2017](https://arxiv.org/abs/1706.08840)
    """
    rows = _checked(matrix)
    return _mean(_listed((rows[-1] - np.diagonal(rows))[:-1]))


def forward_transfer(
    matrix: Matrix, individual: Sequence[float | None]
) -> float | None:
    """Returns what having learned other tasks first did for the later ones.

    The mean, over all tasks but the first, of the accuracy right after learning
    minus that of a network trained on the task alone.

    Lopez-Paz and Ranzato take the accuracy on a task before it is learned
    instead, against that of an untrained network. Here that has no meaning:
    each task has a head of its own, which is not there before, or random, so
    whatever the backbone knows, the answers would be guesses.

    Args:
        matrix: Accuracies in [0, 1], of shape `(tasks, tasks)`.
        individual: Accuracies of the individual networks, in the same order.

    Returns:
        A float in [-1, 1]; above 0 where it helped. `None` for a single task
        and where tasks were not learned one by one.

    Raises:
        ArgumentError: If there is not one individual network per task.
    """
    learned = np.diagonal(_checked(matrix))
    alone = np.array(individual, np.float64)
    if alone.shape != learned.shape:
        raise ArgumentError(
            "Forward transfer compares with one individual network per task. "
            f"Received: {alone.shape} for {len(learned)} tasks"
        )
    if np.isnan(learned[0]):
        return None
    return _mean(_listed((learned - alone)[1:]))


def changes(matrix: Matrix) -> list[bool | None]:
    """Tells of each task whether its accuracy changed after it was learned.

    Args:
        matrix: Accuracies in [0, 1], of shape `(tasks, tasks)`.

    Returns:
        For each task `True` if any later accuracy differs by a single bit,
        `None` if that right after learning or that at the end is not known.
    """
    rows = _checked(matrix)
    found: list[bool | None] = []
    for i in range(len(rows)):
        later = rows[i:, i]
        known = later[~np.isnan(later)]
        if len(np.unique(known)) > 1:
            found.append(True)
        else:
            found.append(None if np.isnan(later[[0, -1]]).any() else False)
    return found


def spread(values: Iterable[float | None]) -> Spread | None:
    """Returns mean and sample standard deviation of what is known.

    Args:
        values: One per repeat.

    Returns:
        Both, or `None` if nothing is known. Equal values give a deviation of
        exactly 0.
    """
    known = [float(value) for value in values if value is not None]
    known = [value for value in known if not np.isnan(value)]
    if not known:
        return None
    deviation = statistics.stdev(known) if len(known) > 1 else None
    return Spread(statistics.mean(known), deviation, len(known))


def by_task(
    repeats: Iterable[Mapping[str, float | None]],
) -> dict[str, Spread | None]:
    """Returns the spread over repeats for each task.

    Args:
        repeats: For each repeat values by the tasks' names, in any order.
    """
    gathered: dict[str, Values] = {}
    for values in repeats:
        for name, value in values.items():
            gathered.setdefault(name, []).append(value)
    return {name: spread(values) for name, values in gathered.items()}


def confusion(
    labels: np.ndarray, predicted: np.ndarray, classes: int
) -> np.ndarray:
    """Counts how often each class was taken for each.

    Args:
        labels: Int array of shape `(n,)`, in [0, classes).
        predicted: Int array of the same shape and range.
        classes: How many there are.

    Returns:
        Int64 array of shape `(classes, classes)`: rows are the true classes,
        columns the predicted ones.
    """
    pairs = labels.astype(np.int64) * classes + predicted
    counts = np.bincount(pairs, minlength=classes * classes)
    return counts.reshape(classes, classes)


def most_confused(
    labels: np.ndarray, predicted: np.ndarray, number: int
) -> list[tuple[int, int, int]]:
    """Returns the pairs of classes that were confused most often.

    Args:
        labels: Int array of shape `(n,)`.
        predicted: Int array of the same shape.
        number: At most so many.

    Returns:
        True class, predicted class and how often; most often first, then by
        the classes.
    """
    wrong = labels != predicted
    pairs, counts = np.unique(
        np.stack([labels[wrong], predicted[wrong]], axis=1),
        axis=0,
        return_counts=True,
    )
    first = np.argsort(-counts, kind="stable")[:number]
    return [(*pairs[i].tolist(), int(counts[i])) for i in first]


def _checked(matrix: Matrix) -> np.ndarray:
    try:
        rows = np.array(matrix, np.float64)
    except (TypeError, ValueError):
        rows = np.empty(0)
    known = rows[~np.isnan(rows)]
    if (
        rows.ndim != 2
        or rows.shape[0] != rows.shape[1]
        or not rows.size
        or ((known < 0.0) | (known > 1.0)).any()
    ):
        raise ArgumentError(
            "A matrix has a row and a column per task; it holds accuracies in "
            f"[0, 1], or None. Received: {matrix!r:.200}"
        )
    return rows


def _listed(values: np.ndarray) -> Values:
    return [None if np.isnan(value) else float(value) for value in values]


def _mean(values: Values) -> float | None:
    if not values or None in values:
        return None
    return statistics.mean(values)
