import io
import random
import struct

import h5py
import hdf5_files
import limits
import ml_dtypes
import numpy as np
import pytest
from hdf5_files import write

from packnet_tf import hdf5_file
from packnet_tf import hdf5_groups
from packnet_tf.hdf5_bytes import Bytes

VALUES = {
    "float": np.ones((3, 4), "float32"),
    "scalar": np.int64(3),
    "bool": np.ones(2, bool),
    "empty": np.ones((0, 4), "float32"),
    "owner": np.ones((5, 5, 2), "uint8"),
    "half": np.ones(7, "float16"),
}


def check(content, *args):
    return hdf5_file.check(io.BytesIO(content), *args)


GROUPS = 9  # More than go into one node of the tree of their names.


def plain(file):
    for place in range(GROUPS):
        group = file.create_group(f"layers/dense_{place}/vars")
        group.attrs["name"] = f"dense_{place}"
        for name, value in VALUES.items():
            group[name] = value
    bfloat16 = file.create_dataset("b", data=np.ones(9, ml_dtypes.bfloat16))
    bfloat16.attrs["dtype"] = "bfloat16"


SIZE = GROUPS * sum(value.nbytes for value in VALUES.values()) + 18


def test_check_counts_the_bytes_of_all_arrays():
    assert check(write(plain)) == SIZE


def test_check_reads_a_file_within_a_file():
    content = write(plain)
    whole = b"before" + content + b"after"
    assert check(whole, 6, len(content)) == SIZE


def test_check_takes_a_large_group():
    def fill(file):
        for place in range(3000):
            file[str(place)] = np.float32(place)

    assert check(write(fill)) == 3000 * 4


def refer(file):
    file["a"] = np.ones(3)
    file["b"] = file["a"].ref


def grow(file):
    file.create_dataset("a", (3,), "f4", maxshape=(None,), chunks=(3,))


def virtual(file):
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "a", (3,))
    file.create_virtual_dataset("a", layout)


def link_hard(file):
    file["a"] = np.ones(3)
    file["b"] = file["a"]


def loop(file):
    file.create_group("a")["again"] = file["/"]


def set_item(name, value):
    def fill(file):
        file[name] = value

    return fill


def set_attribute(value):
    def fill(file):
        file.attrs["a"] = value

    return fill


@pytest.mark.parametrize(
    "fill",
    [
        set_item("a", h5py.SoftLink("/b")),
        set_item("a", h5py.ExternalLink("/etc/passwd", "/b")),
        set_item("a", "text"),
        set_item("a", np.ones(3, "complex64")),
        set_item("a", np.ones(3, ">f4")),
        set_item("a", np.ones(3, [("x", "f4"), ("y", "i4")])),
        set_item("a", np.array([b"ab", b"c"])),
        set_item("a", np.dtype("f4")),
        set_attribute(3),
        set_attribute(np.ones(9)),
        set_attribute(np.bytes_("text")),
        lambda file: file.create_dataset("a", (2**40,), "f4"),
        lambda file: file.create_dataset("a", (3,), "f4", fillvalue=2),
        lambda file: file.create_dataset("a", (3,), "f4", chunks=(3,)),
        lambda file: file.create_dataset("a", data=[1.0], compression="gzip"),
        lambda file: file.create_dataset(
            "a", (3,), "f4", external=[("/etc/passwd", 0, 12)]
        ),
        lambda file: file.create_dataset("a", data=h5py.Empty("f4")),
        refer,
        grow,
        virtual,
        link_hard,
        loop,
    ],
)
def test_check_refuses_what_keras_never_writes(fill):
    with pytest.raises(ValueError, match=r"^(it|an|a|the|two) "):
        check(write(fill))


def test_check_refuses_another_version():
    content = io.BytesIO()
    with h5py.File(content, "w", libver="latest") as file:
        plain(file)
    with pytest.raises(ValueError, match="another version"):
        check(content.getvalue())


@pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n", bytes(999)])
def test_check_refuses_what_is_no_hdf5(content):
    with pytest.raises(ValueError, match=r"^it"):
        check(content)


def test_check_refuses_every_truncation():
    content = write(plain)
    for size in range(0, len(content), 509):
        with pytest.raises(ValueError, match=r"^(it|a) "):
            check(content[:size])


def values(content):
    """Reads all there is; returns bytes of arrays and names of attributes."""
    found = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            found[name] = item[()].tobytes()
        found[f"{name}/"] = sorted(item.attrs)

    with h5py.File(io.BytesIO(content)) as file:
        file.visititems(visit)
    return found


def test_what_check_lets_pass_the_library_reads():
    # It crashes on some files, so a failure may end the process.
    content = write(plain)
    draw = random.Random(5)
    used = [place for place, byte in enumerate(content) if byte]
    count, passed, whole = len(values(content)), 0, 0
    for _ in range(1500):
        damaged = bytearray(content)
        for _ in range(draw.choice((1, 1, 2, 5))):
            place = draw.choice(used)
            damaged[place] = draw.choice((0, 1, 127, 128, 255))
        try:
            size = check(bytes(damaged))
        except ValueError:
            continue
        found = values(bytes(damaged))
        arrays = [value for value in found.values() if isinstance(value, bytes)]
        assert size == sum(map(len, arrays))
        # Damage can make a group end early, and the rest go by no name.
        whole += size == SIZE and len(found) == count
        passed += 1
    assert passed > 100
    assert passed - whole < 0.05 * passed


class Counting(io.BytesIO):
    """A file that is not read over and over."""

    def __init__(self, content):
        super().__init__(content)
        self.left = 4 * len(content)

    def read(self, size=-1):
        found = super().read(size)
        self.left -= len(found)
        assert self.left >= 0, "the file was read four times"
        return found


def test_check_goes_no_second_time_where_many_names_lead():
    content = hdf5_files.with_free_list(hdf5_files.linked(5000, "a"), 2**20)
    with limits.within(30), pytest.raises(ValueError, match="two things"):
        hdf5_file.check(Counting(content))


@pytest.mark.parametrize("count", [50, 5000])
def test_check_keeps_no_entries_of_a_group_within_itself(count):
    content = hdf5_files.linked(count, "/")
    error, most = limits.peak(hdf5_file.check, Counting(content))
    assert "two things" in str(error)
    assert most < 8 * len(content) + 2**16


def test_check_keeps_little_of_large_heaps_of_texts():
    def fill(file):
        for place in range(8):
            file.create_group(str(place)).attrs["name"] = f"text {place}"
        file["!"] = np.ones(1, "complex64")  # Looked at last, and refused.

    content = hdf5_files.with_texts(bytearray(write(fill)), 2**14)
    assert len(content) > 8 * 2**14 * 16
    error, most = limits.peak(hdf5_file.check, Counting(content))
    assert "another dtype" in str(error)
    assert most < 2 * len(content)


def test_a_group_has_no_more_entries_than_there_may_be():
    content = hdf5_files.linked(100, "/")
    (*_, table) = hdf5_files.SYMBOL.unpack_from(content, hdf5_files.SUPERBLOCK)
    tree, heap = struct.unpack("<QQ", table)

    def read(most):
        file = Bytes(io.BytesIO(content), 0, len(content))
        return hdf5_groups.read_group(file, tree, heap, most)

    assert len(read(100)) == 100
    with pytest.raises(ValueError, match="too many"):
        read(99)
