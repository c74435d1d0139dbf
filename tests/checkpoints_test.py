"""Checkpoints of plain networks: all or nothing, and damage is told."""

import json

import numpy as np
import pytest
from methods import checkpoints

from packnet_tf.errors import FileError

ARRAYS = {
    "trunk/0": np.arange(6, dtype=np.float32).reshape(2, 3) / 7,
    "trunk/1": np.array([np.nan, -0.0, np.inf], np.float16),
    "optimizer/0": np.array(3, np.int64),
    "empty": np.zeros((0, 2), np.uint32),
}
PROGRESS = {"group": 1, "history": {"one": [{"loss": 0.1 + 0.2}]}, "none": None}


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "progress" / "individual" / "one.npz"
    checkpoints.write(path, ARRAYS, PROGRESS)
    arrays, progress = checkpoints.read(path)
    assert progress == PROGRESS
    assert list(arrays) == list(ARRAYS)
    for name, value in ARRAYS.items():
        assert arrays[name].dtype == value.dtype
        assert arrays[name].shape == value.shape
        assert arrays[name].tobytes() == value.tobytes()
    assert [each.name for each in path.parent.iterdir()] == ["one.npz"]


def test_no_file_is_no_checkpoint(tmp_path):
    assert checkpoints.read(tmp_path / "none.npz") is None


class Unwritable:
    """Fails while it is made an array, after others are written."""

    def __array__(self, *arguments, **kwargs):
        raise OSError("no space left")


def test_a_failed_write_leaves_the_one_before(tmp_path):
    path = tmp_path / "one.npz"
    checkpoints.write(path, ARRAYS, PROGRESS)
    before = path.read_bytes()
    with pytest.raises(OSError, match="no space"):
        checkpoints.write(path, {**ARRAYS, "x": Unwritable()}, {"group": 2})
    with pytest.raises(TypeError):
        checkpoints.write(path, ARRAYS, {"group": object()})
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["one.npz"]


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "progress").write_text("a file")
    with pytest.raises(FileError, match="progress"):
        checkpoints.write(tmp_path / "progress" / "a.npz", ARRAYS, PROGRESS)


def flip(path):
    data = bytearray(path.read_bytes())
    place = data.index(ARRAYS["trunk/0"].tobytes())
    data[place] ^= 1
    path.write_bytes(data)


def as_array(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "start": lambda path: path.write_bytes(path.read_bytes()[:40]),
    "bit": flip,
    "text": lambda path: path.write_text("no archive"),
    "array": as_array,
    "nothing": lambda path: np.savez(path),
    "no_progress": lambda path: np.savez(path, **{"trunk/0": np.zeros(2)}),
    "no_json": lambda path: np.savez(path, progress=np.zeros(3, np.uint8)),
    "object": lambda path: np.savez(
        path,
        progress=np.frombuffer(json.dumps({}).encode(), np.uint8),
        x=np.array([{}]),
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_told(kind, tmp_path):
    path = tmp_path / "one.npz"
    checkpoints.write(path, ARRAYS, PROGRESS)
    DAMAGE[kind](path)
    with pytest.raises(FileError, match=r"damaged.*Received: .*one\.npz"):
        checkpoints.read(path)
