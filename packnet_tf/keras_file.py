"""Looking at a `.keras` file before Keras does, as it may come from anyone.

Keras writes an archive of three members, none of them compressed, or a folder
of the same files. Whatever else is there, is refused.
"""

import json
import os
import pathlib
import stat
import struct
import zipfile
from typing import Any
from typing import BinaryIO

from packnet_tf import configurations
from packnet_tf import hdf5_file
from packnet_tf.errors import FileError

_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"
_MEMBERS = frozenset({"metadata.json", _CONFIG, _WEIGHTS})
_ASSETS = "assets/"  # Of layers that are registered, and keep files.
_BLOCK = 2**20
_MAX_DIRECTORY = 2**20
_MAX_FILES = 2**14
_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q4sLQL")


def check(filepath: "str | os.PathLike[str]", safe_mode: bool = True) -> int:
    """Checks that a file is what Keras writes for a model of known classes.

    Nothing is made of it, and no more of it is in memory than its
    configuration. The values of its weights are not looked at.

    Args:
        filepath: A `.keras` file, or the folder that
            `model.save(..., zipped=False)` writes.
        safe_mode: Whether it is looked at what classes the model has.

    Returns:
        How many bytes the arrays of its weights have.

    Raises:
        FileError: If it is anything else, or damaged.
    """
    try:
        if os.path.isdir(filepath):
            return _check_folder(pathlib.Path(filepath), safe_mode)
        if not str(filepath).endswith(".keras"):
            raise ValueError(
                "its name does not end in `.keras`, by which Keras goes"
            )
        with _open(filepath) as file:
            return _check_archive(file, safe_mode)
    except FileError as error:
        raise FileError(f"{error}, in the file {str(filepath)!r}") from error
    except (
        OSError,
        ValueError,
        TypeError,
        NotImplementedError,
        RecursionError,
        RuntimeError,
        zipfile.BadZipFile,
    ) as error:
        raise FileError(
            f"This is no `.keras` file that `model.save()` wrote: {error}. Go "
            "back to a file that is whole. "
            f"Received: filepath={str(filepath)!r}"
        ) from error


def check_weights(filepath: "str | os.PathLike[str]") -> int:
    """Checks that a file is what Keras writes for the weights of a model.

    Args:
        filepath: A `.weights.h5` file.

    Returns:
        How many bytes its arrays have.

    Raises:
        FileError: If it is anything else, or damaged.
    """
    try:
        with _open(filepath) as file:
            return hdf5_file.check(file)
    except (OSError, ValueError) as error:
        raise FileError(
            "This is no `.weights.h5` file that `model.save_weights()` wrote: "
            f"{error}. Go back to a file that is whole. "
            f"Received: filepath={str(filepath)!r}"
        ) from error


def _open(filepath: "str | os.PathLike[str]") -> BinaryIO:
    """Opens a file, and nothing else: a pipe may never open, or never end."""
    _expect(stat.S_ISREG(os.stat(filepath).st_mode), "it is no file")
    return open(filepath, "rb")


def _check_folder(path: pathlib.Path, safe_mode: bool) -> int:
    """Checks a model that is a folder of files."""
    _expect((path / _CONFIG).is_file(), f"it has no file '{_CONFIG}'")
    sizes: dict[str, int] = {}
    for each in path.rglob("*"):
        mode = each.lstat().st_mode
        name = each.relative_to(path).as_posix()
        if stat.S_ISDIR(mode) and f"{name}/".startswith(_ASSETS):
            continue
        _expect(stat.S_ISREG(mode), f"{name!r} is no file")
        _check_name(name)
        sizes[name] = each.lstat().st_size
        _expect(len(sizes) <= _MAX_FILES, "it has too many files")
    _check_names(list(sizes))
    _check_json(path, "metadata.json", sizes)
    config = _check_json(path, _CONFIG, sizes)
    if safe_mode:
        configurations.check(config)
    with open(path / _WEIGHTS, "rb") as file:
        return hdf5_file.check(file, 0, sizes[_WEIGHTS])


def _check_json(path: pathlib.Path, name: str, sizes: dict[str, int]) -> Any:
    with open(path / name, "rb") as file:
        return _parse(file, sizes[name], sum(sizes.values()), name)


def _check_archive(file: BinaryIO, safe_mode: bool) -> int:
    """Checks a model that is an archive."""
    size = file.seek(0, os.SEEK_END)
    directory = _check_end(file, size)
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        _check_names([member.filename for member in members])
        starts: dict[str, int] = {}
        taken: list[tuple[int, int]] = []
        for member in members:
            _check_member(member)
            start = _find(file, member)
            starts[member.filename] = start
            taken.append((member.header_offset, start + member.file_size))
        taken.sort()
        ends = [0, *(end for _, end in taken)]
        begins = [*(begin for begin, _ in taken), directory]
        _expect(
            all(end <= begin for end, begin in zip(ends, begins)),
            "its members overlap",
        )
        for member in members:
            if member.filename not in (_CONFIG, "metadata.json"):
                _check_sum(archive, member)
        for name in ("metadata.json", _CONFIG):
            member = archive.getinfo(name)
            with archive.open(member) as opened:
                config = _parse(opened, member.file_size, size, name)
        if safe_mode:
            configurations.check(config)
        weights = archive.getinfo(_WEIGHTS)
        return hdf5_file.check(file, starts[_WEIGHTS], weights.file_size)


def _check_names(names: list[str]) -> None:
    """Checks which members there are."""
    for name in names:
        _check_name(name)
    _expect(len(names) == len(set(names)), "it has a member twice")
    missing = sorted(_MEMBERS - set(names))
    _expect(not missing, f"it has no member {missing}")


def _check_name(name: str) -> None:
    """Checks that a member is one of Keras, and leads out of no folder."""
    _expect(
        name in _MEMBERS
        or (
            name.startswith(_ASSETS)
            and not {"", ".", ".."} & set(name.split("/"))
            and not set(name) & set("\\:\0")
        ),
        f"it has a member {name[:80]!r}",
    )


def _check_end(file: BinaryIO, size: int) -> int:
    """Finds where the directory of an archive begins, which must be small.

    `zipfile` reads all of it into memory, whatever its size.
    """
    _expect(size >= _END.size, "it is too short")
    file.seek(size - _END.size)
    mark, *_, length, start, comment = _END.unpack(file.read(_END.size))
    _expect((mark, comment) == (b"PK\5\6", 0), "it does not end as an archive")
    end = size - _END.size
    if size >= _END.size + _END_64.size:
        file.seek(end - _END_64.size)
        mark, *_, length_64, start_64, locator, _, at, _ = _END_64.unpack(
            file.read(_END_64.size)
        )
        if locator == b"PK\6\7":
            end -= _END_64.size
            _expect(
                mark == b"PK\6\6" and at == end,
                "it does not end as an archive",
            )
            length, start = length_64, start_64
    _expect(start + length == end, "it does not end as an archive")
    _expect(length <= _MAX_DIRECTORY, "it has too many members")
    return start


def _check_member(member: zipfile.ZipInfo) -> None:
    name = member.filename[:80]
    _expect(
        member.compress_type == zipfile.ZIP_STORED
        and member.compress_size == member.file_size,
        f"its member {name!r} is compressed, which Keras never does",
    )
    _expect(not member.flag_bits & 0x1, f"its member {name!r} is encrypted")
    mode = member.external_attr >> 16
    _expect(
        not member.is_dir() and stat.S_IFMT(mode) in (0, stat.S_IFREG),
        f"its member {name!r} is no file",
    )


def _find(file: BinaryIO, member: zipfile.ZipInfo) -> int:
    """Finds where the bytes of a member begin."""
    file.seek(member.header_offset)
    header = file.read(30)
    _expect(
        len(header) == 30 and header[:4] == b"PK\3\4",
        f"its member {member.filename!r} is not there",
    )
    return member.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))


def _check_sum(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Reads a member to its end, where its check sum is compared."""
    with archive.open(member) as opened:
        size = 0
        while block := opened.read(_BLOCK):
            size += len(block)
    _expect(
        size == member.file_size, f"its member {member.filename!r} is cut off"
    )


def _parse(file: Any, size: int, whole: int, name: str) -> Any:
    """Reads a JSON file that takes a bounded part of the memory.

    A value takes some hundred bytes, an empty one in the file three.

    Args:
        file: The opened file.
        size: How many bytes it has.
        whole: How many bytes it has with all that belongs to it.
        name: Its name.

    Returns:
        What it holds.
    """
    _expect(size <= 2**24 + whole // 4, f"its {name!r} has {size} bytes")
    content = file.read(size + 1)
    _expect(len(content) == size, f"its {name!r} is cut off")
    values = sum(content.count(mark) for mark in (b",", b"[", b"{"))
    _expect(values <= 2**19 + whole // 128, f"its {name!r} has {values} values")
    config = json.loads(content.decode("ascii"))
    _expect(isinstance(config, dict), f"its {name!r} holds no object")
    return config


def _expect(condition: object, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)
