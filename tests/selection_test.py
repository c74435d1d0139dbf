import fractions
import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from packnet_tf import ownership
from packnet_tf import selection
from packnet_tf.errors import ArgumentError

_quick = settings(max_examples=60, deadline=None, database=None)

_SPECIAL = [0.0, -0.0, 1.0, -1.0, 2.0, math.inf, -math.inf, math.nan]
_FEW = st.sampled_from(_SPECIAL)
_PERCENT = st.integers(0, 99).map(lambda percent: percent / 100)


def _scores(shape):
    """Draws scores: with many ties, with any floats, or all equal."""
    return st.one_of(
        hnp.arrays(np.float32, shape, elements=_FEW),
        hnp.arrays(np.float64, shape, elements=_FEW | st.floats()),
        hnp.arrays(
            np.float32,
            shape,
            elements=st.floats(width=32, allow_subnormal=False),
        ),
        _FEW.map(lambda value: np.full(shape, value, np.float32)),
    )


def _ranking(scores):
    """Ranks flat indices by score, by index where equal, NaN last."""
    flat = [float(score) for score in scores.reshape(-1)]
    return sorted(
        range(len(flat)),
        key=lambda i: (1, 0.0) if math.isnan(flat[i]) else (0, flat[i]),
    )


def _choice(scores, owner, task, count):
    """Chooses the lowest entries of a task one by one."""
    owners = owner.reshape(-1)
    mine = [i for i in _ranking(scores) if owners[i] == task]
    released = np.zeros(owner.size, bool)
    released[mine[:count]] = True
    return released.reshape(owner.shape)


@pytest.mark.parametrize(
    "fraction",
    [
        0,
        0.0,
        0.5,
        0.999999,
        1e-12,
        np.float64(0.7),
        np.array(0.5),
        np.array(0.25, np.float32),
        np.int64(0),
        fractions.Fraction(1, 4),
    ],
)
def test_check_fraction_returns_a_python_float(fraction):
    checked = selection.check_fraction(fraction)
    assert type(checked) is float
    assert checked == float(fraction)


def test_check_fraction_takes_float32():
    checked = selection.check_fraction(np.float32(0.7))
    assert type(checked) is float
    assert checked == pytest.approx(0.7, rel=1e-7)


@pytest.mark.parametrize(
    "fraction",
    [
        1.0,
        1,
        -0.1,
        -1,
        75,
        100.0,
        math.nextafter(0.0, -1.0),
        math.nan,
        math.inf,
        -math.inf,
        np.float32(1.0),
        np.float32("nan"),
        np.array(75),
        np.array(-0.5),
    ],
)
def test_check_fraction_refuses_numbers_outside_of_the_range(fraction):
    with pytest.raises(ArgumentError, match=r"\[0, 1\)") as info:
        selection.check_fraction(fraction)
    assert f"Received: {fraction}" in str(info.value)


@pytest.mark.parametrize(
    "fraction",
    [
        True,
        False,
        np.True_,
        "0.5",
        "75%",
        b"0.5",
        None,
        0.5j,
        [0.5],
        (0.5,),
        np.array([0.5]),
        {},
        object(),
    ],
)
def test_check_fraction_refuses_what_is_no_number(fraction):
    with pytest.raises(ArgumentError, match="is a number in") as info:
        selection.check_fraction(fraction)
    assert f"Received: {fraction!r}" in str(info.value)


@pytest.mark.parametrize(
    "fraction",
    [
        np.str_("0.5"),
        np.str_("half"),
        np.array("0.5"),
        np.array(False),
        np.array(None),
        np.complex64(0.5),
    ],
    ids=repr,
)
def test_check_fraction_refuses_numpy_scalars_that_are_no_numbers(fraction):
    with pytest.raises(ArgumentError, match="Received:"):
        selection.check_fraction(fraction)


@pytest.mark.parametrize(
    "fraction", [fractions.Fraction(75), 10**400], ids=["fraction", "huge"]
)
def test_check_fraction_refuses_uncommon_numbers(fraction):
    with pytest.raises(ArgumentError, match="Received:"):
        selection.check_fraction(fraction)


@pytest.mark.parametrize(
    ("percentage", "hint"),
    [
        (75, "For 75 percent pass 0.75."),
        (50.0, "For 50 percent pass 0.5."),
        (12.5, "For 12.5 percent pass 0.125."),
        (np.array(75), "For 75 percent pass 0.75."),
    ],
)
def test_check_fraction_hints_at_the_fraction(percentage, hint):
    with pytest.raises(ArgumentError) as info:
        selection.check_fraction(percentage)
    assert hint in str(info.value)


@pytest.mark.parametrize("fraction", [1.0, 100, -0.1, math.nan, math.inf])
def test_check_fraction_hints_only_at_percentages(fraction):
    with pytest.raises(ArgumentError) as info:
        selection.check_fraction(fraction)
    assert "percent pass" not in str(info.value)


@given(scores=st.integers(0, 200).flatmap(_scores))
@_quick
def test_lowest_matches_oracle_for_every_count(scores):
    before = scores.tobytes()
    ranking = _ranking(scores)
    expected = np.zeros(scores.shape, bool)
    for count in range(scores.size + 1):
        if count:
            expected[ranking[count - 1]] = True
        chosen = selection.lowest(scores, count)
        assert chosen.dtype == bool
        np.testing.assert_array_equal(chosen, expected)
    assert scores.tobytes() == before


@given(scores=_scores(40), count=st.integers(0, 40))
@_quick
def test_lowest_agrees_with_numpy_sorting(scores, count):
    expected = np.zeros(scores.shape, bool)
    expected[np.argsort(scores, kind="stable")[:count]] = True
    np.testing.assert_array_equal(selection.lowest(scores, count), expected)


@pytest.mark.parametrize(
    "dtype", [np.float16, ml_dtypes.bfloat16, np.float64, np.int32]
)
def test_lowest_takes_every_dtype(dtype):
    scores = np.array([3, 1, 2, 1, 0, 3, 1], dtype)
    chosen = selection.lowest(scores, 3)
    np.testing.assert_array_equal(np.flatnonzero(chosen), [1, 3, 4])


def test_lowest_treats_zeros_of_both_signs_as_equal():
    scores = np.array([0.0, -0.0, 0.0, -0.0], np.float32)
    chosen = selection.lowest(scores, 2)
    np.testing.assert_array_equal(chosen, [True, True, False, False])


def test_lowest_takes_nan_last():
    scores = np.array([np.nan, np.inf, np.nan, -np.inf], np.float32)
    order = [3, 1, 0, 2]
    for count in range(5):
        chosen = np.flatnonzero(selection.lowest(scores, count))
        np.testing.assert_array_equal(chosen, sorted(order[:count]))


def test_lowest_takes_nan_last_in_bfloat16():
    scores = np.array([np.nan, 1, 0, np.nan, 2, 0], ml_dtypes.bfloat16)
    order = [2, 5, 1, 4, 0, 3]
    for count in range(7):
        chosen = np.flatnonzero(selection.lowest(scores, count))
        np.testing.assert_array_equal(chosen, sorted(order[:count]))


@given(data=st.data())
@_quick
def test_release_lowest_matches_oracle(data):
    shape = data.draw(hnp.array_shapes(max_dims=4, max_side=5))
    owner = data.draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, 3)))
    scores = data.draw(_scores(shape))
    fraction = data.draw(_PERCENT)
    pool = int(np.sum((owner == 0) | (owner == 3)))
    count = round(fraction * pool) - int(np.sum(owner == 0))
    assert selection.release_count([owner], 3, fraction) == count
    if count < 0:
        with pytest.raises(ArgumentError, match="higher fraction"):
            selection.release_lowest(scores, owner, 3, fraction)
        return
    released = selection.release_lowest(scores, owner, 3, fraction)
    assert released.dtype == bool
    np.testing.assert_array_equal(released, _choice(scores, owner, 3, count))


@given(
    scores=_scores((4, 5, 6)),
    fraction=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 99),
)
@_quick
def test_release_lowest_leaves_frozen_and_free_alone(scores, fraction, seed):
    generator = np.random.default_rng(seed)
    owner = generator.integers(1, 5, (4, 5, 6)).astype(np.uint8)
    before = owner.copy()
    pool = ownership.pool_size(owner, 4)
    released = selection.release_lowest(scores, owner, 4, fraction)
    assert np.count_nonzero(released) == round(fraction * pool)
    assert np.all(owner[released] == 4)
    np.testing.assert_array_equal(owner, before)


@given(first=_PERCENT, second=_PERCENT, size=st.integers(1, 60))
@_quick
def test_release_lowest_is_cumulative(first, second, size):
    first, second = sorted([first, second])
    generator = np.random.default_rng(size)
    owner = np.full(size, 2, np.uint8)
    for fraction in (first, second):
        # Ranked anew each time: what was released before does not return.
        scores = generator.normal(size=size)
        was_free = owner == 0
        released = selection.release_lowest(scores, owner, 2, fraction)
        assert not np.any(released & was_free)
        owner = ownership.release(owner, released)
        assert np.count_nonzero(owner == 0) == round(fraction * size)
        assert ownership.pool_size(owner, 2) == size


def test_release_lowest_asked_twice_releases_nothing_more():
    scores = np.arange(10.0)
    owner = np.ones(10, np.uint8)
    owner = ownership.release(
        owner, selection.release_lowest(scores, owner, 1, 0.5)
    )
    assert not selection.release_lowest(scores, owner, 1, 0.5).any()


@pytest.mark.parametrize("fraction", [0, 0.0, 0.04, 0.05])
def test_release_lowest_may_round_to_zero(fraction):
    owner = np.full((2, 5), 1, np.uint8)
    released = selection.release_lowest(np.zeros((2, 5)), owner, 1, fraction)
    assert not released.any()


@pytest.mark.parametrize(
    ("fraction", "count"),
    [(0.0, 0), (0.3, 0), (0.5, 0), (0.51, 1), (0.75, 1), (0.999, 1)],
)
def test_release_lowest_from_a_pool_of_one(fraction, count):
    owner = np.array([1, 1, 2, 1], np.uint8)
    released = selection.release_lowest(np.zeros(4), owner, 2, fraction)
    assert np.count_nonzero(released) == count
    assert not released[owner == 1].any()


@pytest.mark.parametrize(
    ("pool", "fraction", "count"),
    [(3, 0.5, 2), (5, 0.5, 2), (7, 0.5, 4), (10, 0.75, 8), (5, 0.7, 4)],
)
def test_release_lowest_rounds_as_python_does(pool, fraction, count):
    owner = np.full(pool, 1, np.uint8)
    released = selection.release_lowest(np.zeros(pool), owner, 1, fraction)
    assert np.count_nonzero(released) == count


@pytest.mark.parametrize("shape", [(0,), (3, 0, 2)])
def test_release_lowest_of_nothing_is_nothing(shape):
    released = selection.release_lowest(
        np.zeros(shape), np.zeros(shape, np.uint8), 1, 0.5
    )
    assert released.shape == shape


def test_release_lowest_from_an_empty_pool_is_nothing():
    owner = np.full((2, 3), 1, np.uint8)
    assert not selection.release_lowest(np.zeros((2, 3)), owner, 2, 0.9).any()


def test_release_lowest_refuses_a_lower_fraction():
    owner = np.array([0, 0, 0, 1, 1, 1], np.uint8)
    with pytest.raises(ArgumentError) as info:
        selection.release_lowest(np.zeros(6), owner, 1, 0.2)
    assert "Received: fraction=0.2, which is 2 weights" in str(info.value)


@pytest.mark.parametrize("fraction", [75, 1.0, -0.1, math.nan, True, "0.5"])
def test_release_lowest_refuses_what_is_no_fraction(fraction):
    with pytest.raises(ArgumentError, match="Received:"):
        selection.release_lowest(np.zeros(4), np.ones(4, np.uint8), 1, fraction)


def test_release_lowest_breaks_ties_by_lowest_flat_index():
    owner = np.full((2, 3, 2, 3), 2, np.uint8)
    owner[0, 1] = 1
    scores = np.full(owner.shape, 0.25, np.float32)
    released = selection.release_lowest(scores, owner, 2, 0.5)
    mine = np.flatnonzero(owner == 2)
    np.testing.assert_array_equal(np.flatnonzero(released), mine[:15])


def test_release_lowest_ignores_the_memory_layout():
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 4, (3, 4, 5, 2)).astype(np.float32)
    owner = generator.integers(1, 3, scores.shape).astype(np.uint8)
    expected = selection.release_lowest(scores, owner, 2, 0.5)
    released = selection.release_lowest(
        np.asfortranarray(scores), np.asfortranarray(owner), 2, 0.5
    )
    np.testing.assert_array_equal(released, expected)


@given(data=st.data())
@_quick
def test_release_lowest_of_all_matches_oracle(data):
    shapes = data.draw(
        st.lists(
            hnp.array_shapes(max_dims=3, max_side=4), min_size=1, max_size=4
        )
    )
    owners = [
        data.draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, 3)))
        for shape in shapes
    ]
    scores = [data.draw(_scores(shape)) for shape in shapes]
    fraction = data.draw(_PERCENT)
    # One long weight, ranked one by one.
    owner = np.concatenate([owner.reshape(-1) for owner in owners])
    flat = np.concatenate([score.reshape(-1) for score in scores])
    pool = int(np.sum((owner == 0) | (owner == 3)))
    count = round(fraction * pool) - int(np.sum(owner == 0))
    assert selection.release_count(owners, 3, fraction) == count
    if count < 0:
        with pytest.raises(ArgumentError, match="higher fraction"):
            selection.release_lowest_of_all(scores, owners, 3, fraction)
        return
    released = selection.release_lowest_of_all(
        iter(scores), owners, 3, fraction
    )
    assert [part.shape for part in released] == shapes
    assert all(part.dtype == bool for part in released)
    np.testing.assert_array_equal(
        np.concatenate([part.reshape(-1) for part in released]),
        _choice(flat, owner, 3, count),
    )


def test_release_lowest_of_all_breaks_ties_by_order_then_index():
    owners = [np.ones(4, np.uint8), np.ones((2, 3), np.uint8)]
    scores = [np.zeros(4), np.zeros((2, 3))]
    first, second = selection.release_lowest_of_all(scores, owners, 1, 0.6)
    np.testing.assert_array_equal(first, [True] * 4)
    np.testing.assert_array_equal(second, [[True, True, False], [False] * 3])


def test_release_lowest_of_all_takes_different_dtypes():
    scores = [
        np.array([3, 0.5, np.nan], ml_dtypes.bfloat16),
        np.array([2, 0.25, 4], np.float16),
        np.array([1, np.nan, 0.125], np.float64),
        np.array([7, 0, 9], np.int32),
    ]
    owners = [np.ones(3, np.uint8) for _ in scores]
    released = selection.release_lowest_of_all(scores, owners, 1, 0.5)
    chosen = np.flatnonzero(np.concatenate(released))
    np.testing.assert_array_equal(chosen, [1, 3, 4, 6, 8, 10])


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_check_scope_returns_it(scope):
    assert selection.check_scope(scope) == scope


@pytest.mark.parametrize("scope", ["layers", "", None, 1, ["layer"], "GLOBAL"])
def test_check_scope_refuses_others(scope):
    with pytest.raises(ArgumentError, match="Received: scope="):
        selection.check_scope(scope)
