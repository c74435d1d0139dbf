import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from reporting import transfer

from packnet_tf.errors import ArgumentError

# Powers of two, so that what is computed by hand is exact.
MATRIX = [
    [0.5, None, None],
    [0.75, 0.5, None],
    [0.25, 0.375, 1.0],
]
ALONE = [[0.5, None, None], [None, 0.25, None], [None, None, 0.5]]
JOINT = [[None] * 3, [None] * 3, [0.5, 0.75, 1.0]]


def test_measures_computed_by_hand():
    assert transfer.learned_accuracies(MATRIX) == [0.5, 0.5, 1.0]
    assert transfer.final_accuracies(MATRIX) == [0.25, 0.375, 1.0]
    assert transfer.mean_final_accuracy(MATRIX) == 1.625 / 3
    assert transfer.average_accuracies(MATRIX) == [0.5, 0.625, 1.625 / 3]
    # The best of the first task was reached after the second.
    assert transfer.forgetting(MATRIX) == (0.5 + 0.125) / 2
    assert transfer.backward_transfer(MATRIX) == (-0.25 - 0.125) / 2
    assert transfer.forward_transfer(MATRIX, [0.0, 0.25, 0.5]) == 0.375


def test_nan_and_none_are_the_same():
    array = np.array(MATRIX, np.float64)
    assert np.isnan(array[0, 1])
    for name in (
        "learned_accuracies",
        "final_accuracies",
        "average_accuracies",
        "forgetting",
        "backward_transfer",
    ):
        function = getattr(transfer, name)
        assert function(array) == function(MATRIX)
    assert transfer.learned_accuracies([[math.nan]]) == [None]


def test_a_task_that_gains_is_forgotten_less_than_nothing():
    matrix = [[0.25, None], [0.75, 0.5]]
    assert transfer.forgetting(matrix) == -0.5
    assert transfer.backward_transfer(matrix) == 0.5


def test_a_single_task_has_no_transfer():
    matrix = [[0.5]]
    assert transfer.mean_final_accuracy(matrix) == 0.5
    assert transfer.forgetting(matrix) is None
    assert transfer.backward_transfer(matrix) is None
    assert transfer.forward_transfer(matrix, [0.5]) is None


def test_what_is_partly_known_gives_no_guess():
    matrix = [[0.5, None, None], [None, 0.5, None], [0.5, 0.5, 0.5]]
    assert transfer.forgetting(matrix) is None
    assert transfer.backward_transfer(matrix) == 0.0
    assert transfer.average_accuracies(matrix) == [0.5, None, 0.5]
    stopped = [[0.5, None], [None, None]]
    assert transfer.mean_final_accuracy(stopped) is None
    assert transfer.forgetting(stopped) is None


def test_joint_has_an_end_and_nothing_else():
    found = transfer.measure(
        "joint", {"joint": JOINT, "individual": ALONE}, ["a", "b", "c"]
    )
    assert found.at_end == {"a": 0.5, "b": 0.75, "c": 1.0}
    assert found.mean == 0.75
    assert found.averages == [None, None, 0.75]
    assert set(found.after_learning.values()) == {None}
    assert found.forgetting is found.backward is found.forward is None


def test_a_joint_network_of_two_tasks_has_no_forward_transfer():
    matrix = [[None, None], [0.5, 0.75]]
    assert transfer.forward_transfer(matrix, [0.5, 0.5]) is None


def test_individual_networks_are_measured_as_one_method():
    found = transfer.measure("individual", {"individual": ALONE}, "abc")
    assert found.at_end == {"a": 0.5, "b": 0.25, "c": 0.5}
    assert found.after_learning == found.at_end
    assert found.averages == [0.5, 0.375, 1.25 / 3]
    assert found.forgetting is found.backward is found.forward is None


def test_forward_needs_the_individual_networks():
    found = transfer.measure("ewc", {"ewc": MATRIX}, "abc")
    assert found.forward is None
    both = {"ewc": MATRIX, "individual": ALONE}
    assert transfer.measure("ewc", both, "abc").forward == 0.375


accuracies = st.floats(0.0, 1.0)


@st.composite
def matrices(draw, unchanging=False):
    size = draw(st.integers(1, 6))
    matrix = [[None] * size for _ in range(size)]
    for i in range(size):
        for j in range(i + 1):
            keeps = unchanging and i > j
            matrix[i][j] = matrix[i - 1][j] if keeps else draw(accuracies)
    return matrix


@given(matrices(unchanging=True))
@settings(deadline=None)
def test_what_never_changes_forgets_exactly_nothing(matrix):
    assert transfer.changes(matrix) == [False] * len(matrix)
    if len(matrix) > 1:
        assert transfer.forgetting(matrix) == 0.0
        assert transfer.backward_transfer(matrix) == 0.0


@given(matrices())
@settings(deadline=None)
def test_forgetting_is_at_least_what_was_lost(matrix):
    lost, moved = (
        transfer.forgetting(matrix),
        transfer.backward_transfer(matrix),
    )
    assert (lost is None) == (moved is None) == (len(matrix) == 1)
    if lost is not None:
        if len(matrix) == 2:  # Nothing in between to be better.
            assert lost == -moved
        assert -1.0 <= -moved <= lost <= 1.0


def test_a_change_of_one_bit_is_told():
    close = float(np.nextafter(0.5, 1.0))
    for row in (1, 2):
        matrix = [[0.5, None, None], [0.5, 0.5, None], [0.5, 0.5, 0.5]]
        assert transfer.changes(matrix) == [False] * 3
        matrix[row][0] = close
        assert transfer.changes(matrix) == [True, False, False]
    assert transfer.changes([[0.5, None], [None, 0.5]]) == [None, False]


@pytest.mark.parametrize(
    "matrix",
    [[], [[]], [[0.5, 0.5]], [[0.5], [0.5, 0.5]], [[93.5]], [[-0.1]], [["x"]]],
)
def test_what_is_no_matrix_is_refused(matrix):
    with pytest.raises(ArgumentError, match="Received"):
        transfer.forgetting(matrix)


def test_lengths_that_differ_are_refused():
    with pytest.raises(ArgumentError, match="3 rows for a, b"):
        transfer.measure("ewc", {"ewc": MATRIX}, ["a", "b"])
    with pytest.raises(ArgumentError, match="for 3 tasks"):
        transfer.forward_transfer(MATRIX, [0.5])


def test_spread_is_that_of_a_sample():
    assert transfer.spread([1.0, 3.0]) == transfer.Spread(2.0, 2**0.5, 2)
    assert transfer.spread([0.5]) == transfer.Spread(0.5, None, 1)
    assert transfer.spread([None, 0.5, math.nan]).count == 1
    assert transfer.spread([None]) is None
    assert transfer.spread([]) is None
    # Neither is exact when sums are rounded.
    assert transfer.spread([0.1] * 3) == transfer.Spread(0.1, 0.0, 3)
    values = [0.9396, 0.857, 0.97]
    found = transfer.spread(values)
    assert found.deviation == pytest.approx(np.std(values, ddof=1), rel=1e-12)
    assert found.mean == statistics.mean(values)


def test_repeats_are_gathered_by_name():
    found = transfer.by_task(
        [{"a": 0.25, "b": 0.5}, {"b": 1.0, "a": 0.75}, {"b": None}]
    )
    assert found["a"].mean == 0.5
    assert found["b"].mean == 0.75
    assert found["b"].count == 2


def test_confusion_counts_rows_of_true_classes():
    labels = np.array([0, 0, 1, 2, 2, 2], np.int32)
    predicted = np.array([0, 1, 1, 0, 0, 2], np.int32)
    np.testing.assert_array_equal(
        transfer.confusion(labels, predicted, 4),
        [[1, 1, 0, 0], [0, 1, 0, 0], [2, 0, 1, 0], [0, 0, 0, 0]],
    )
    assert transfer.most_confused(labels, predicted, 9) == [
        (2, 0, 2),
        (0, 1, 1),
    ]
    assert transfer.most_confused(labels, predicted, 1) == [(2, 0, 2)]
    assert transfer.most_confused(labels, labels, 9) == []
