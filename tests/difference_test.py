import json
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from packnet_tf import difference
from packnet_tf.difference import Sketch
from packnet_tf.difference import count
from packnet_tf.difference import describe
from packnet_tf.difference import sketch
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import PackNetError

_quick = settings(max_examples=60, deadline=None, database=None)
_DTYPES = [
    "bool",
    "int8",
    "uint8",
    "int32",
    "uint32",
    "int64",
    "float16",
    ml_dtypes.bfloat16,
    "float32",
    "float64",
]
_each_dtype = pytest.mark.parametrize(
    "dtype", _DTYPES, ids=lambda dtype: np.dtype(dtype).name
)
# Around the size from which cells are shared, one more level, and a chunk.
_SIZES = [1, 2, 127, 128, 129, 256, 257, 1024, 1025, 65536, 65537, 200_000]


def _bits(value):
    """Views a flat array as unsigned integers, to change them bit by bit."""
    return value.view(f"u{value.dtype.itemsize}")


def _flipped(value, places, bit=0):
    changed = value.copy()
    _bits(changed)[places] ^= _bits(changed).dtype.type(1 << bit)
    return changed


def _random(size, dtype="float32", seed=0):
    value = np.random.default_rng(seed).normal(size=size)
    return value.astype(np.float32).astype(dtype)


@pytest.mark.parametrize("size", _SIZES)
def test_one_entry_is_always_exactly_one(size):
    value = _random(size)
    before = sketch(value)
    generator = np.random.default_rng(1)
    places = {0, size // 2, size - 1, *generator.integers(0, size, 30).tolist()}
    for place in places:
        bit = generator.integers(0, 32)
        after = sketch(_flipped(value, place, bit))
        assert count(before, after) == 1
        assert describe(before, after) == f"in 1 entry of {size:,}"


def test_one_entry_is_one_wherever_it_is():
    value = np.zeros(300, np.float32)
    before = sketch(value)
    for place in range(300):
        for bit in (0, 31):
            assert count(before, sketch(_flipped(value, place, bit))) == 1


@_each_dtype
def test_every_dtype_is_seen_bit_by_bit(dtype):
    value = np.zeros(16, dtype)
    before = sketch(value)
    assert before.dtype == value.dtype.name
    bits = 1 if dtype == "bool" else 8 * value.dtype.itemsize
    for bit in range(bits):
        after = sketch(_flipped(value, [3, 5], bit))
        assert after != before
        assert count(before, after) == 2


@_each_dtype
@pytest.mark.parametrize("size", [128, 1000, 40_000])
def test_a_like_change_of_many_entries_does_not_cancel(dtype, size):
    value = np.zeros(size, dtype)
    before = sketch(value)
    for bit in {0, 8 * value.dtype.itemsize - 1} if dtype != "bool" else {0}:
        for share in (1.0, 0.3):
            places = np.random.default_rng(0).permutation(size)
            places = places[: round(share * size)]
            number = count(before, sketch(_flipped(value, places, bit)))
            assert number == pytest.approx(len(places), rel=0.25)


def test_values_count_as_bits():
    value = np.zeros(4, np.float32)
    assert count(sketch(value), sketch(-value)) == 4
    nan = np.full(4, np.nan, np.float32)
    assert sketch(nan) == sketch(nan.copy())
    assert count(sketch(nan), sketch(_flipped(nan, [0, 2]))) == 2


@pytest.mark.parametrize("changed", [2, 3, 5, 10])
def test_a_handful_is_nearly_exact(changed):
    value = _random(10_000)
    before = sketch(value)
    generator = np.random.default_rng(0)
    numbers = []
    for _ in range(50):
        places = generator.choice(10_000, changed, replace=False)
        numbers.append(count(before, sketch(_flipped(value, places))))
    off = np.abs(np.subtract(numbers, changed))
    assert np.median(off) == 0
    assert np.mean(off <= 1) > 0.9
    assert np.mean(numbers) == pytest.approx(changed, rel=0.05)


@pytest.mark.parametrize(
    ("size", "changed"),
    [
        (300, 30),
        (300, 150),
        (2000, 1000),
        (50_000, 300),
        (50_000, 5_000),
        (50_000, 50_000),
        (1_000_000, 1_000),
        (1_000_000, 30_000),
        (1_000_000, 900_000),
    ],
)
def test_many_are_estimated(size, changed):
    value = _random(size)
    before = sketch(value)
    generator = np.random.default_rng(0)
    ratios = []
    for _ in range(6 if size > 100_000 else 40):
        places = generator.choice(size, changed, replace=False)
        after = sketch(_flipped(value, places, bit=31))
        ratios.append(count(before, after) / changed)
    assert np.mean(np.abs(np.subtract(ratios, 1)) < 0.2) >= 0.9
    if changed < size / 2:
        # The more entries change, the more alike are the samples of them.
        assert np.mean(ratios) == pytest.approx(1, abs=0.06)


@given(
    size=st.integers(1, 128),
    seed=st.integers(0, 1000),
    share=st.floats(0, 1),
)
@_quick
def test_small_variables_are_counted_exactly(size, seed, share):
    value = _random(size, seed=seed)
    mine = np.random.default_rng(seed).random(size) < share
    mine[seed % size] = True
    after = sketch(_flipped(value, np.flatnonzero(mine)))
    assert count(sketch(value), after) == np.count_nonzero(mine)


def test_only_what_the_task_owns_counts():
    generator = np.random.default_rng(0)
    value = _random(5000).reshape(50, 100)
    owner = generator.integers(0, 4, value.shape).astype(np.uint8)
    before = [sketch(value, owner, task) for task in (1, 2, 3)]
    assert [each.entries for each in before] == (
        np.bincount(owner.reshape(-1))[1:].tolist()
    )
    changed = np.where(owner == 2, np.float32(9), value)
    given_on = np.where(owner == 0, np.uint8(4), owner)
    after = [sketch(changed, given_on, task) for task in (1, 2, 3)]
    assert [one == other for one, other in zip(before, after)] == (
        [True, False, True]
    )
    owned = before[1].entries
    assert count(before[1], after[1]) == pytest.approx(owned, rel=0.2)
    assert f"entries of {owned:,}" in describe(before[1], after[1])


def test_entries_that_change_hands_count():
    value = _random(5000)
    owner = np.ones(5000, np.uint8)
    moved = owner.copy()
    moved[:700] = 2
    before, after = sketch(value, owner, 1), sketch(value, moved, 1)
    assert count(before, after) == pytest.approx(700, rel=0.2)
    assert describe(before, after).startswith("in about ")
    assert describe(before, after).endswith(
        " entries: the task owned 5,000 and owns 4,300 now"
    )
    nothing = sketch(value, owner, 2)
    assert count(nothing, sketch(value, moved, 2)) == 700
    for number in (4999, 2500, 130):
        less = np.where(np.arange(5000) < number, 0, owner).astype(np.uint8)
        assert count(before, sketch(value, less, 1)) >= number


@pytest.mark.parametrize("chunk", [1, 7, 128, 1000])
def test_chunks_do_not_matter(monkeypatch, chunk):
    value = _random(1000)
    owner = np.random.default_rng(0).integers(0, 3, 1000).astype(np.uint8)
    before = sketch(value), sketch(value, owner, 2)
    monkeypatch.setattr(difference, "_CHUNK", chunk)
    assert (sketch(value), sketch(value, owner, 2)) == before


def test_layout_and_byte_order_do_not_matter():
    value = _random(600).reshape(20, 30)
    before = sketch(value)
    assert sketch(np.asfortranarray(value)) == before
    assert sketch(value.astype(">f4")) == before
    assert sketch(value.astype("<f4")) == before


def _mixed(number):
    number ^= number >> 32
    number = number * 0xFF51AFD7ED558CCD % 2**64
    number ^= number >> 32
    number = number * 0xC4CEB9FE1A85EC53 % 2**64
    return number ^ (number >> 32)


@pytest.mark.parametrize(("size", "levels"), [(100, 0), (200, 1), (5000, 4)])
def test_sketches_are_those_of_files_that_exist(size, levels):
    value = _random(size)
    owner = np.random.default_rng(1).integers(0, 2, size).astype(np.uint8)
    sums = [0] * (levels * 128 or size)
    for place in np.flatnonzero(owner == 1).tolist():
        pick = _mixed(place + 1)
        level = min((64 - pick.bit_length()) // 2, levels - 1)
        cell = level * 128 + pick % 128 if levels else place
        sums[cell] += _mixed(pick ^ int(_bits(value)[place])) >> 48
    width = 1 if levels else 2
    cells = b"".join(
        (total % 256**width).to_bytes(width, "little") for total in sums
    )
    assert sketch(value, owner, 1).cells == cells


@pytest.mark.parametrize(
    ("size", "limit"), [(0, 0), (1, 2), (64, 128), (512, 256), (100_000, 768)]
)
def test_a_sketch_is_small(size, limit):
    assert len(sketch(np.zeros(size, np.float32)).cells) <= limit


def test_a_sketch_takes_little_memory():
    value = np.zeros(4_000_000, np.float32)
    owner = np.ones(4_000_000, np.uint8)
    tracemalloc.start()
    try:
        sketch(value, owner, 1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8e6


def test_describe_tells_of_shape_and_dtype():
    value = np.zeros((2, 3), np.float32)
    before = sketch(value)
    assert describe(before, sketch(value.T)) == (
        "whose shape was (2, 3) and is (3, 2) now"
    )
    assert describe(before, sketch(value.astype("float16"))) == (
        "whose dtype was float32 and is float16 now"
    )


def test_describe_rounds_what_is_estimated():
    value = np.zeros(50_000, np.float32)
    text = describe(sketch(value), sketch(_flipped(value, slice(1200))))
    assert text in {
        f"in about {number:,} entries of 50,000"
        for number in range(1000, 1500, 100)
    }
    everything = describe(sketch(value), sketch(value + 1))
    number = int(everything.split()[2].replace(",", ""))
    assert 40_000 <= number <= 50_000


@pytest.mark.parametrize("shape", [(), (0,), (3,), (7, 200), (2, 0)], ids=str)
def test_a_sketch_survives_json(shape):
    before = sketch(np.ones(shape, np.float32))
    config = json.loads(json.dumps(before.to_config()))
    assert Sketch.from_config(config) == before


@pytest.mark.parametrize(
    "change",
    [
        {"shape": None},
        {"shape": [7, 2000]},
        {"shape": [7]},
        {"shape": [-7, -200]},
        {"shape": [7.0, 200.0]},
        {"shape": [True, 1400]},
        {"shape": ["7", "200"]},
        {"shape": "7, 200"},
        {"shape": [2**60, 2**60]},
        {"shape": [10**4000]},
        {"dtype": 32},
        {"dtype": None},
        {"entries": -1},
        {"entries": 1401},
        {"entries": 7.0},
        {"entries": True},
        {"entries": None},
        {"cells": ""},
        {"cells": None},
        {"cells": []},
        {"cells": "A"},
        {"cells": "\u00e4" * 512},
        {"cells": "A" * 508 + "\n AA"},
        {"cells": "A" * 100_000},
        {"more": 1},
    ],
    ids=lambda change: str(change)[:30],
)
def test_a_sketch_refuses_what_is_not_whole(change):
    config = sketch(np.zeros((7, 200), np.float32)).to_config()
    with pytest.raises(ArgumentError, match="Received: ") as info:
        Sketch.from_config({**config, **change})
    assert isinstance(info.value, PackNetError)
    assert len(str(info.value)) < 500


def test_a_sketch_refuses_base64_with_a_line_end():
    config = sketch(np.zeros((7, 200), np.float32)).to_config()
    with pytest.raises(ArgumentError, match="Received: "):
        Sketch.from_config({**config, "cells": config["cells"] + "\n"})


@pytest.mark.parametrize("config", [None, [], "sketch", {}])
def test_a_sketch_refuses_what_is_no_sketch(config):
    with pytest.raises(ArgumentError, match="Received: "):
        Sketch.from_config(config)
