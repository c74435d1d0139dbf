import io
import zlib

import keras
import numpy as np
import pytest
from helpers import same_bits

from packnet_tf import behind
from packnet_tf import pack_reader
from packnet_tf import pack_writer
from packnet_tf import value_streams
from packnet_tf.errors import FileError
from packnet_tf.pack_format import VALUES

SHAPE = (3, 5, 7)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    monkeypatch.setattr(value_streams, "_PIECE", 16)
    monkeypatch.setattr(value_streams, "_BLOCK", 32)
    monkeypatch.setattr(value_streams, "_PICKED", 5)


@pytest.fixture
def values():
    return np.random.default_rng(0).normal(size=SHAPE).astype("float32")


@pytest.fixture
def owner():
    return np.random.default_rng(1).integers(0, 4, SHAPE).astype("uint8")


def variable(array):
    return keras.Variable(array, dtype=array.dtype.name)


def written(write, *args):
    """Returns the bytes of a section."""
    file = io.BytesIO()
    with behind.calling() as call:
        write(pack_writer.SectionWriter(file, VALUES, call), *args)
    return file.getvalue()


def section(content):
    checksum = zlib.crc32(content)
    return pack_reader.SectionReader(
        io.BytesIO(content), len(content), checksum
    )


def owned(owner):
    return owner != 0


def by_two(owner):
    return owner == 2


def test_values_come_back(values):
    content = written(value_streams.write_values, values, "float32")
    held = variable(np.zeros(SHAPE, np.float32))
    value_streams.read_values(section(content), held, "float32")
    assert same_bits(held.numpy(), values)


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_owned_values_alone_come_back(rows, values, owner):
    owner[:rows] = 1  # So that all of a piece is owned.
    content = written(
        value_streams.write_values, values, "float32", owner, owned
    )
    others = np.where(owner != 0, values, np.float32(7))
    assert content == written(
        value_streams.write_values, others, "float32", owner, owned
    )
    held = variable(np.ones(SHAPE, np.float32))
    value_streams.read_values(
        section(content), held, "float32", variable(owner), owned
    )
    assert same_bits(held.numpy(), np.where(owner != 0, values, np.float32(0)))


def test_others_keep_their_values(values, owner):
    content = written(
        value_streams.write_values, values, "float32", owner, by_two
    )
    before = np.full(SHAPE, 3, np.float32)
    held = variable(before)
    value_streams.read_values(
        section(content), held, "float32", variable(owner), by_two, others=True
    )
    assert same_bits(held.numpy(), np.where(owner == 2, values, before))


def test_an_owner_map_comes_back(owner):
    content = written(value_streams.write_owners, owner, 4)
    held = variable(np.zeros(SHAPE, np.uint8))
    value_streams.read_owners(section(content), held, 4)
    assert same_bits(held.numpy(), owner)


def test_a_task_gets_its_free_entries(owner):
    def letters(block):
        return (block[(block == 0) | (block >= 2)] == 2).view(np.uint8)

    content = written(value_streams.write_owners, owner, 2, letters)
    held = variable(np.where(owner == 1, owner, np.uint8(0)))
    value_streams.read_owners(section(content), held, 2, 2)
    expected = np.where(owner <= 2, owner, np.uint8(0))
    assert same_bits(held.numpy(), expected)


@pytest.mark.parametrize("change", [lambda c: c[:-4], lambda c: c + bytes(4)])
def test_too_few_or_too_many_values_are_refused(change, values, owner):
    held = variable(values)
    content = written(value_streams.write_values, values, "float32")
    with pytest.raises(FileError, match=r"too soon|too long"):
        value_streams.read_values(section(change(content)), held, "float32")
    content = written(
        value_streams.write_values, values, "float32", owner, owned
    )
    with pytest.raises(FileError, match=r"too soon|too long"):
        value_streams.read_values(
            section(change(content)), held, "float32", variable(owner), owned
        )


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c[:-1],
        lambda c: c + b"\0",
        lambda c: b"\xff" * 4 + c[4:],
        lambda c: bytes(4) + c[4:],
        lambda c: c[:4] + b"\xff" * 30 + c[34:],
    ],
)
def test_what_is_no_owner_map_is_refused(change, owner):
    content = written(value_streams.write_owners, owner, 4)
    held = variable(owner)
    with pytest.raises(FileError, match=r"too soon|too long|cannot be read"):
        value_streams.read_owners(section(change(content)), held, 4)
