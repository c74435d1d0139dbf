import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from packnet_tf import ranking

_quick = settings(max_examples=60, deadline=None, database=None)

# Long enough to be sampled, and read in several blocks.
_SIZES = st.integers(150_000, 220_000)
_DTYPES = st.sampled_from(
    [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int32, bool]
)


def _with(values, generator, value, share):
    values[generator.random(values.size) < share] = value
    return values


AWKWARD = {
    "uniform": lambda g, n: g.random(n),
    "normal": lambda g, n: g.normal(size=n) * 100,
    "heavy_tails": lambda g, n: g.standard_cauchy(n),
    "equal": lambda g, n: np.full(n, 3.0),
    "two_values": lambda g, n: g.integers(0, 2, n) * 1.0,
    "many_ties": lambda g, n: g.integers(0, 50, n) * 1.0,
    "sorted": lambda g, n: np.arange(n) / 8,
    "reversed": lambda g, n: -np.arange(n) / 8,
    "zeros": lambda g, n: _with(g.normal(size=n), g, 0.0, 0.6),
    "both_zeros": lambda g, n: np.copysign(0.0, g.normal(size=n)),
    "few_nan": lambda g, n: _with(g.random(n), g, np.nan, 0.001),
    "most_nan": lambda g, n: _with(g.random(n), g, np.nan, 0.8),
    "infinite": lambda g, n: _with(
        _with(g.random(n), g, -np.inf, 0.3), g, np.inf, 0.3
    ),
    "all_nan": lambda g, n: np.full(n, np.nan),
    "one_apart": lambda g, n: np.append(np.ones(n - 1), 0.0),
}


def _draw(name, generator, size, dtype):
    values = AWKWARD[name](generator, size)
    if np.dtype(dtype).kind in "ib":
        values = np.nan_to_num(values, posinf=1e6, neginf=-1e6)
    with np.errstate(over="ignore"):  # Of float16, which then is infinite.
        return values.astype(dtype)


def _choice(scores, owned, count):
    """Sorts all, which is slow and plain."""
    if scores.dtype == ml_dtypes.bfloat16:
        scores = scores.astype(np.float32)
    mine = np.flatnonzero(owned)
    chosen = np.zeros(scores.size, bool)
    chosen[mine[np.argsort(scores[mine], kind="stable")[:count]]] = True
    return chosen


def _lowest(ranked, count, sizes):
    bits = ranked.lowest(count)
    return np.concatenate(
        [
            np.unpackbits(part, count=size).astype(bool)
            for part, size in zip(bits, sizes, strict=True)
        ]
    )


@pytest.fixture(scope="module", params=["few", "many"])
def amount(request):
    """Ranks by arrays of all scores, or by passes over blocks."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "many":
            patch.setattr(ranking, "_FEW", 0)
        yield


@pytest.mark.usefixtures("amount")
@pytest.mark.parametrize("name", AWKWARD)
@given(
    size=_SIZES,
    dtype=_DTYPES,
    share=st.sampled_from([0.001, 0.2, 0.5, 1.0]),
    fraction=st.floats(0, 1) | st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=10, deadline=None, database=None)
def test_lowest_is_what_sorting_finds(name, size, dtype, share, fraction, seed):
    generator = np.random.default_rng(seed)
    scores = _draw(name, generator, size, dtype)
    owner = np.where(generator.random(size) < share, 2, 1).astype(np.uint8)
    before = scores.tobytes(), owner.tobytes()
    scores.flags.writeable = owner.flags.writeable = False
    ranked = ranking.Ranked([scores], [owner], 2)
    assert ranked.size == np.count_nonzero(owner == 2)
    for count in {0, round(fraction * ranked.size), ranked.size}:
        np.testing.assert_array_equal(
            _lowest(ranked, count, [size]), _choice(scores, owner == 2, count)
        )
    assert (scores.tobytes(), owner.tobytes()) == before


@pytest.mark.usefixtures("amount")
@given(
    names=st.lists(st.sampled_from(sorted(AWKWARD)), min_size=1, max_size=4),
    dtype=st.sampled_from([np.float32, np.float64]),
    share=st.sampled_from([0.1, 0.5, 1.0]),
    fraction=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
@_quick
def test_lowest_of_several_weights_is_that_of_one(
    names, dtype, share, fraction, seed
):
    generator = np.random.default_rng(seed)
    sizes = [int(generator.integers(1, 90_000)) for _ in names]
    scores = [
        _draw(name, generator, size, dtype) for name, size in zip(names, sizes)
    ]
    owners = [
        np.where(generator.random(size) < share, 3, 0).astype(np.uint8)
        for size in sizes
    ]
    ranked = ranking.Ranked(iter(scores), owners, 3)
    count = round(fraction * ranked.size)
    np.testing.assert_array_equal(
        _lowest(ranked, count, sizes),
        _choice(np.concatenate(scores), np.concatenate(owners) == 3, count),
    )


@pytest.mark.usefixtures("amount")
@pytest.mark.parametrize("fraction", [0.01, 0.25, 0.5, 0.99])
@pytest.mark.parametrize("value", [-9.0, 0.5, 9.0, np.nan])
def test_lowest_is_exact_where_the_sample_misleads(value, fraction):
    size = 200_000
    scores = np.random.default_rng(1).random(size, np.float32)
    # Where the sample is taken, today.
    scores[np.random.default_rng(0).integers(0, size, 2**11)] = value
    ranked = ranking.Ranked([scores], [np.ones(size, np.uint8)], 1)
    count = round(fraction * size)
    np.testing.assert_array_equal(
        _lowest(ranked, count, [size]),
        _choice(scores, np.ones(size, bool), count),
    )


@pytest.mark.usefixtures("amount")
def test_lowest_draws_nothing_from_the_global_generator():
    state = np.random.get_state()[1].tobytes()
    scores = np.random.default_rng(1).random(150_000, np.float32)
    ranking.Ranked([scores], [np.ones(150_000, np.uint8)], 1).lowest(9)
    assert np.random.get_state()[1].tobytes() == state


def test_few_entries_of_a_large_weight_take_little_memory():
    owner = np.zeros(20_000_000, np.uint8)
    owner[[5, 1_000_000, 19_999_999]] = 1
    scores = np.zeros(owner.size, np.float32)
    ranked = ranking.Ranked([scores], [owner], 1)
    chosen = _lowest(ranked, 2, [owner.size])
    np.testing.assert_array_equal(np.flatnonzero(chosen), [5, 1_000_000])
