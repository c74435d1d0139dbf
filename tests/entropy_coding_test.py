import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from packnet_tf import entropy_coding


def draw(size, probabilities, seed=0):
    generator = np.random.default_rng(seed)
    return generator.choice(len(probabilities), size, p=probabilities).astype(
        np.uint8
    )


def in_bytes(symbols):
    return entropy_coding.entropy(np.bincount(symbols)) / 8


arrays = st.integers(1, 256).flatmap(
    lambda alphabet: st.tuples(
        st.lists(st.integers(0, alphabet - 1), max_size=300),
        st.just(alphabet),
    )
)


@given(arrays)
@settings(deadline=None)
def test_what_is_coded_comes_back(example):
    numbers, alphabet = example
    symbols = np.array(numbers, np.uint8)
    content = entropy_coding.encode(symbols, alphabet)
    found = entropy_coding.decode(content, len(symbols), alphabet)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, symbols)


@pytest.mark.parametrize(
    ("probabilities", "size", "bound"),
    [
        ([0, 0.5, 0.125, 0.094, 0.281], 7 << 20, 1.01),
        ([0.5, 0.5], 1_000_003, 1.015),
        ([0.2, 0.3, 0.5], 100_000, 1.02),
        ([0.97, 0.01, 0.01, 0.01], 1_000_000, 1.02),
        ([1 / 256] * 256, 1_000_000, 1.015),
        ([0.999, 0.001], 1_000_000, 1.22),
    ],
    ids="paper bit three sparse bytes rare".split(),
)
def test_size_is_close_to_the_entropy(probabilities, size, bound):
    symbols = draw(size, probabilities)
    content = entropy_coding.encode(symbols, len(probabilities))
    assert len(content) <= bound * in_bytes(symbols)
    np.testing.assert_array_equal(
        entropy_coding.decode(content, size, len(probabilities)), symbols
    )


def test_equal_entries_take_no_room():
    symbols = np.full(10_000_000, 3, np.uint8)
    content = entropy_coding.encode(symbols, 5)
    assert len(content) < 50
    np.testing.assert_array_equal(
        entropy_coding.decode(content, len(symbols), 5), symbols
    )


@pytest.mark.parametrize("size", [0, 1, 1000, (1 << 17) - 1, 300_001])
def test_counts_are_those_of_the_numbers(size):
    symbols = np.random.default_rng(0).integers(3, 256, size, np.uint8)
    expected = [np.count_nonzero(symbols == number) for number in range(256)]
    assert entropy_coding.count(symbols).tolist() == expected


@pytest.mark.parametrize("size", [4096, 32_768, 1 << 22])
@pytest.mark.parametrize("share", [0.5, 0.001])
def test_no_array_takes_many_rows(size, share):
    symbols = draw(size, [1 - share, share])
    content = entropy_coding.encode(symbols, 2)
    lanes = int.from_bytes(content[:2], "little")
    assert size / 8 <= 2048 * lanes


def test_entropy_is_that_of_the_frequencies():
    assert entropy_coding.entropy(np.array([8, 8, 0])) == 16.0
    assert entropy_coding.entropy(np.array([5])) == 0.0


@pytest.mark.parametrize("alphabet", [0, 257])
def test_an_alphabet_has_1_to_256_letters(alphabet):
    with pytest.raises(ValueError, match="alphabet"):
        entropy_coding.encode(np.zeros(3, np.uint8), alphabet)


def test_a_number_outside_of_the_alphabet_is_refused():
    with pytest.raises(ValueError, match="5 in an alphabet of 5"):
        entropy_coding.encode(np.array([1, 5], np.uint8), 5)


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_damaged_bytes_are_refused_or_decode_to_something(data):
    size = data.draw(st.sampled_from([1, 40, 2000]))
    symbols = draw(size, [0.4, 0.3, 0.3])
    content = bytearray(entropy_coding.encode(symbols, 3))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= data.draw(st.integers(1, 255))
    del content[data.draw(st.integers(0, 2 * len(content))) :]
    try:
        found = entropy_coding.decode(bytes(content), size, 3)
    except ValueError:
        return
    assert found.shape == (size,)
    assert found.max() < 3


def change(content, place, value):
    changed = bytearray(content)
    changed[place : place + len(value)] = value
    return bytes(changed)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda c: c[:-1], "cut off"),
        (lambda c: c + b"\0", "1 bytes too many"),
        (lambda c: change(c, 0, b"\0\0"), "lanes"),
        (lambda c: change(c, 0, b"\xff\xff"), "65535 lanes"),
        (lambda c: change(c, 2, b"\xff\xff\xff\xff"), "entries of 600"),
        (lambda c: change(c, 18, b"\xff\xff\xff\xff"), "cut off"),
        (lambda c: change(c, len(c) - 2, b"\xff\xff"), "words|lanes|count"),
    ],
    ids="short long no_lanes many_lanes counts words last".split(),
)
def test_what_is_wrong_is_told(damage, reason):
    content = entropy_coding.encode(draw(600, [0.4, 0.3, 0.3]), 3)
    assert content[:2] == b"\1\0"  # One lane, so that the places are right.
    with pytest.raises(ValueError, match=reason):
        entropy_coding.decode(damage(content), 600, 3)


def test_few_lanes_for_many_entries_are_refused_at_once():
    size = 6 << 20
    symbols = draw(size, [0.5, 0.5])
    content = entropy_coding.encode(symbols, 2)
    with pytest.raises(ValueError, match="1 lanes"):
        entropy_coding.decode(change(content, 0, b"\1\0"), size, 2)
