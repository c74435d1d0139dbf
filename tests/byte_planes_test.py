import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from packnet_tf import byte_planes


def there_and_back(content, width):
    coded = io.BytesIO(b"".join(byte_planes.encode(content, width)))
    count = len(content) // width
    planes = byte_planes.read(coded.read, count, width)
    found = byte_planes.decode(planes, count)
    assert coded.read() == b""
    return found


def coded(values):
    pieces = byte_planes.encode(values.tobytes(), values.itemsize)
    return b"".join(pieces)


@given(st.sampled_from([1, 2, 4, 8]), st.binary(max_size=600))
@settings(deadline=None)
def test_any_bytes_come_back(width, content):
    content = content[: len(content) // width * width]
    assert there_and_back(content, width) == content


@pytest.mark.parametrize("kind", ["normal", "rounded", "zero", "ids"])
def test_numbers_come_back(kind):
    values = {
        "normal": lambda g: g.standard_normal(50_000, dtype="float32"),
        "rounded": lambda g: g.integers(-9, 9, 50_000).astype("float32"),
        "zero": lambda g: np.zeros(50_000, "float32"),
        "ids": lambda g: g.integers(0, 1000, 50_000),
    }[kind](np.random.default_rng(0))
    found = there_and_back(values.tobytes(), values.itemsize)
    assert found == values.tobytes()


def test_weights_lose_a_seventh_of_their_size():
    generator = np.random.default_rng(0)
    values = 0.05 * generator.standard_normal(1_000_000, dtype="float32")
    assert len(coded(values)) < 0.86 * values.nbytes


def test_what_has_few_bits_takes_few_bytes():
    values = np.random.default_rng(0).integers(0, 4, 1_000_000)
    assert len(coded(values)) < 0.27 * len(values)


def test_random_bytes_stay_as_they_are():
    content = np.random.default_rng(0).bytes(100_000)
    assert len(b"".join(byte_planes.encode(content, 1))) == len(content) + 4


def test_few_numbers_stay_as_they_are():
    assert len(coded(np.zeros(4095, np.uint8))) == 4095 + 4
    assert len(coded(np.zeros(4096, np.uint8))) < 4096


@pytest.mark.parametrize(
    "content",
    [b"\5\0\0\0abcde", b"\3\0\0\0abc", b"\xff\xff\xff\xff"],
    ids="longer shorter huge".split(),
)
def test_planes_of_another_size_are_refused(content):
    def there_and_back():
        read = io.BytesIO(content).read
        return byte_planes.decode(byte_planes.read(read, 4, 1), 4)

    with pytest.raises(ValueError, match=r"plane|cut off"):
        there_and_back()
