"""The container of pack files and task deltas: sections with checksums.

All numbers are little-endian and unsigned:

    magic        8 bytes   89 50 41 43 4B 0D 0A 1A
    version      u16       1
    kind         u16       1 for a pack, 2 for a task delta
    count        u32       how many sections there are
    size         u64       bytes of the whole file
    directory    for each section: its kind u32, its crc32 u32, its size u64
    checksum     u32       crc32 of all bytes before it
    sections     one behind the other, as the directory lists them

A section is a description (1), an owner map (2) or values (3). The first is
the description: the size of a JSON text as u64, then the text in UTF-8,
compressed with zlib. docs/pack_format.md says what the sections hold.

Nothing in a file is taken for true: sizes are held against the real size of
the file before memory is taken, and each byte is under a checksum.
"""

import contextlib
import json
import os
import pathlib
import struct
import zlib
from collections.abc import Iterator
from typing import Any
from typing import BinaryIO
from typing import NamedTuple

from packnet_tf import files
from packnet_tf.errors import FileError

MAGIC = b"\x89PACK\r\n\x1a"
VERSION = 1
PACK = 1
DELTA = 2
DESCRIPTION = 1
OWNERS = 2
VALUES = 3

_HEAD = struct.Struct("<8sHHIQ")
_SECTION = struct.Struct("<IIQ")
_CHECKSUM = struct.Struct("<I")
_LENGTH = struct.Struct("<Q")
_KINDS = {PACK: "a pack file", DELTA: "a task delta"}
_READERS = {PACK: "load_pack", DELTA: "load_task"}
_MAX_SECTIONS = 1 << 20
_PIECE = 1 << 20  # Bytes read at a time where all that counts is their sum.
# Read as Python objects, a text of JSON takes up to thirty times its size.
_MAX_TEXT = 8 << 20
_TEXT_SHARE = 16  # Plus this part of the file's size.


def damaged(what: str, received: str) -> FileError:
    """Makes the error for a file that is not what it should be.

    Args:
        what: What is wrong with it.
        received: What was found instead.

    Returns:
        The error, to be raised.
    """
    return FileError(
        f"The file is damaged or was not written by packnet_tf: {what}. Get "
        f"or write it again. Received: {received}"
    )


class _Listed(NamedTuple):
    """A section as the directory lists it."""

    kind: int
    checksum: int
    size: int


class SectionWriter:
    """Writes one section.

    Args:
        file: Where to write.

    Attributes:
        size: How many bytes were written.
        checksum: Their CRC-32.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = 0
        self.checksum = 0

    def write(self, content: "bytes | memoryview") -> None:
        """Appends bytes.

        Args:
            content: The bytes.
        """
        self._file.write(content)
        self.size += len(content)
        self.checksum = zlib.crc32(content, self.checksum)


class Writer:
    """Writes the sections of a file, and then what stands before them.

    Args:
        file: A file to write, which can seek.
        kind: `PACK` or `DELTA`.
        count: How many sections there will be.
    """

    def __init__(self, file: BinaryIO, kind: int, count: int) -> None:
        self._file = file
        self._kind = kind
        self._count = count
        self._listed: list[_Listed] = []
        self._text = 0
        file.write(bytes(_HEAD.size + count * _SECTION.size + _CHECKSUM.size))

    @contextlib.contextmanager
    def section(self, kind: int) -> Iterator[SectionWriter]:
        """Writes the next section.

        Args:
            kind: `DESCRIPTION`, `OWNERS` or `VALUES`.

        Yields:
            What writes it.
        """
        section = SectionWriter(self._file)
        yield section
        self._listed.append(_Listed(kind, section.checksum, section.size))

    def describe(self, description: dict[str, Any]) -> None:
        """Writes the description, which comes first.

        Args:
            description: What JSON can hold.
        """
        text = json.dumps(description, separators=(",", ":")).encode()
        self._text = len(text)
        with self.section(DESCRIPTION) as section:
            section.write(_LENGTH.pack(len(text)))
            section.write(zlib.compress(text, 9))

    def finish(self) -> None:
        """Writes the head and the directory.

        Raises:
            FileError: If the description is too long to be read again.
        """
        size = self._file.tell()
        if len(self._listed) != self._count:
            raise ValueError(f"{len(self._listed)} of {self._count} sections")
        _check_text(self._text, size)
        before = _HEAD.pack(MAGIC, VERSION, self._kind, self._count, size)
        before += b"".join(
            _SECTION.pack(each.kind, each.checksum, each.size)
            for each in self._listed
        )
        self._file.seek(0)
        self._file.write(before + _CHECKSUM.pack(zlib.crc32(before)))


@contextlib.contextmanager
def writing(
    path: "str | os.PathLike[str]", kind: int, count: int
) -> Iterator[Writer]:
    """Writes a file all or nothing.

    Args:
        path: The file. What is there already stays until the new one is
            complete.
        kind: `PACK` or `DELTA`.
        count: How many sections there will be.

    Yields:
        What writes the sections.

    Raises:
        FileError: If it cannot be written.
    """
    with files.replacing(path) as new:
        try:
            with open(new, "wb") as file:
                writer = Writer(file, kind, count)
                yield writer
                writer.finish()
        except FileError:
            raise
        except OSError as error:
            raise FileError(
                f"Cannot write {_KINDS[kind]}: {error.strerror or error}. "
                "Make room, or choose another folder. "
                f"Received: path={str(path)!r}"
            ) from error


class SectionReader:
    """Reads one section from beginning to end.

    Args:
        file: A file that stands where the section begins.
        size: How many bytes the section has.

    Attributes:
        size: How many bytes the section has.
        left: How many are not read yet.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self.size = size
        self.left = size

    def read(self, size: int) -> bytes:
        """Returns the next bytes of the section.

        Args:
            size: How many.

        Returns:
            Exactly as many.

        Raises:
            FileError: If there are fewer.
        """
        if not 0 <= size <= self.left:
            raise damaged(
                "a section ends too soon",
                f"{self.left} bytes, expected {size}",
            )
        content = self._file.read(size)
        if len(content) != size:
            raise damaged(
                "it ends too soon", f"{len(content)} bytes, expected {size}"
            )
        self.left -= size
        return content

    def finish(self) -> None:
        """Checks that nothing is left.

        Raises:
            FileError: If there is.
        """
        if self.left:
            raise damaged(
                "a section is too long", f"{self.left} bytes more than expected"
            )


class Reader:
    """Reads the sections of a file, in their order.

    Args:
        file: The file, at its beginning.
        kind: `PACK` or `DELTA`.

    Attributes:
        size: How many bytes the file has.
        sections: The kind and size of each section.

    Raises:
        FileError: If the file is not of that kind, or not whole.
    """

    def __init__(self, file: BinaryIO, kind: int) -> None:
        self._file = file
        self.size = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size or not head.startswith(MAGIC):
            raise FileError(
                f"This is not {_KINDS[kind]} of packnet_tf. Pass the path of "
                f"one. Received: a file of {self.size} bytes that begins with "
                f"{head[: len(MAGIC)]!r}"
            )
        _, version, found, count, size = _HEAD.unpack(head)
        if version != VERSION:
            raise FileError(
                f"This packnet_tf reads version {VERSION} of the format. "
                "Update packnet_tf, or write the file again. Received: "
                f"version={version}"
            )
        if size != self.size:
            raise damaged(
                "its size is another than when it was written",
                f"{self.size} bytes, expected {size}",
            )
        room = size - _HEAD.size - _CHECKSUM.size
        if count > min(room // _SECTION.size, _MAX_SECTIONS):
            raise damaged(
                "it cannot have so many sections",
                f"count={count} in {size} bytes",
            )
        directory = file.read(count * _SECTION.size)
        (checksum,) = _CHECKSUM.unpack(file.read(_CHECKSUM.size))
        if zlib.crc32(head + directory) != checksum:
            raise damaged("its head fails its checksum", f"{checksum:#010x}")
        if found != kind:
            raise FileError(
                f"Expected {_KINDS[kind]}. "
                + (
                    f"Load this with `packnet_tf.{_READERS[found]}`. "
                    if found in _READERS
                    else "Update packnet_tf, or write the file again. "
                )
                + f"Received: {_KINDS.get(found, 'another kind')}, kind={found}"
            )
        self._listed = [_Listed(*x) for x in _SECTION.iter_unpack(directory)]
        self.sections = [(each.kind, each.size) for each in self._listed]
        self._next = 0
        self._begin = file.tell()
        end = self._begin + sum(each.size for each in self._listed)
        if end != size:
            raise damaged(
                "its sections are not as long as the file",
                f"sections up to byte {end} in {size} bytes",
            )

    def check(self) -> None:
        """Checks the checksums of all sections, in little memory.

        Raises:
            FileError: If one fails.
        """
        for number, each in enumerate(self._listed):
            section = SectionReader(self._file, each.size)
            checksum = 0
            while section.left:
                piece = section.read(min(section.left, _PIECE))
                checksum = zlib.crc32(piece, checksum)
            if checksum != each.checksum:
                raise damaged(
                    f"section {number} fails its checksum",
                    f"{checksum:#010x}, expected {each.checksum:#010x}",
                )
        self._file.seek(self._begin)

    def section(self, kind: int) -> SectionReader:
        """Goes on to the next section.

        Args:
            kind: `DESCRIPTION`, `OWNERS` or `VALUES`.

        Returns:
            What reads it.

        Raises:
            FileError: If there is none, or it is of another kind.
        """
        if self._next == len(self._listed):
            raise damaged("a section is missing", f"{self._next} sections")
        listed = self._listed[self._next]
        if listed.kind != kind:
            raise damaged(
                f"section {self._next} is out of place",
                f"kind {listed.kind}, expected {kind}",
            )
        self._next += 1
        return SectionReader(self._file, listed.size)

    def description(self) -> dict[str, Any]:
        """Reads the description, which comes first.

        Returns:
            What JSON holds, of which nothing is checked yet.

        Raises:
            FileError: If it is not the JSON of a dict, or too long.
        """
        section = self.section(DESCRIPTION)
        (length,) = _LENGTH.unpack(section.read(_LENGTH.size))
        _check_text(length, self.size)
        packed = section.read(section.left)
        try:
            unpacker = zlib.decompressobj()
            text = unpacker.decompress(packed, length + 1)
            if len(text) != length or not unpacker.eof or unpacker.unused_data:
                raise damaged(
                    "its description has another length",
                    f"{len(text)} bytes, expected {length}",
                )
            description = json.loads(text)
        except (zlib.error, ValueError, RecursionError) as error:
            raise damaged("its description is not JSON", str(error)) from error
        if not isinstance(description, dict):
            raise damaged(
                "its description is not a dict", type(description).__name__
            )
        return description


@contextlib.contextmanager
def reading(path: "str | os.PathLike[str]", kind: int) -> Iterator[Reader]:
    """Opens a file and checks its checksums.

    Args:
        path: The file.
        kind: `PACK` or `DELTA`.

    Yields:
        What reads its sections.

    Raises:
        FileError: If it cannot be read, is not of that kind, or not whole.
    """
    with _open(path, kind) as file:
        try:
            reader = Reader(file, kind)
            reader.check()
            yield reader
        except FileError as error:
            raise FileError(f"{error}, path={str(path)!r}") from error
        except OSError as error:
            raise FileError(
                f"Cannot read {_KINDS[kind]}: {error.strerror or error}. Pass "
                f"one that can be read. Received: path={str(path)!r}"
            ) from error


def _open(path: "str | os.PathLike[str]", kind: int) -> BinaryIO:
    try:
        if pathlib.Path(path).is_file():  # A pipe may never end.
            return open(path, "rb")
        reason = "there is no such file"
    except (OSError, TypeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    raise FileError(
        f"Cannot open {_KINDS[kind]}: {reason}. Pass the path of one. "
        f"Received: path={str(path)!r}"
    )


def _check_text(length: int, size: int) -> None:
    """Checks the length of a description, for a file of some size."""
    limit = _MAX_TEXT + size // _TEXT_SHARE
    if length > limit:
        raise FileError(
            f"The description of a file of {size} bytes may have {limit} "
            "bytes. Save the model as `.keras`, or start a second one. "
            f"Received: {length} bytes"
        )
