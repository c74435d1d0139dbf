"""Reading the container of pack files and task deltas.

Sizes are held against the real size of the file before memory is taken, and
each byte is under a checksum.
"""

import contextlib
import json
import os
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any
from typing import BinaryIO

from packnet_tf import pack_format
from packnet_tf.errors import FileError
from packnet_tf.pack_format import Listed
from packnet_tf.pack_format import check_length
from packnet_tf.pack_format import check_text
from packnet_tf.pack_format import damaged

_PIECE = 1 << 20  # Bytes read at a time where all that counts is their sum.


class SectionReader:
    """Reads one section from beginning to end.

    Args:
        file: A file that stands where the section begins.
        size: How many bytes the section has.
        checksum: Their CRC-32.

    Attributes:
        size: How many bytes the section has.
        left: How many are not read yet.
    """

    def __init__(self, file: BinaryIO, size: int, checksum: int) -> None:
        self._file = file
        self._checksum = checksum
        self._found = 0
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
        self._found = zlib.crc32(content, self._found)
        return content

    def finish(self) -> None:
        """Checks that nothing is left, and the checksum of what was read.

        Raises:
            FileError: If something is left, or the checksum is another.
        """
        if self.left:
            raise damaged(
                "a section is too long", f"{self.left} bytes more than expected"
            )
        if self._found != self._checksum:
            raise damaged(
                "a section fails its checksum",
                f"{self._found:#010x}, expected {self._checksum:#010x}",
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
        wanted = pack_format.KINDS[kind]
        head = file.read(pack_format.HEAD.size)
        if len(head) < pack_format.HEAD.size or not head.startswith(
            pack_format.MAGIC
        ):
            raise FileError(
                f"This is not {wanted} of packnet_tf. Pass the path of one. "
                f"Received: a file of {self.size} bytes that begins with "
                f"{head[: len(pack_format.MAGIC)]!r}"
            )
        _, version, found, count, size = pack_format.HEAD.unpack(head)
        if version != pack_format.VERSION:
            raise FileError(
                "This packnet_tf reads version "
                f"{pack_format.VERSION} of the format. Update packnet_tf, or "
                "write the file again. Received: "
                f"version={version}"
            )
        if size != self.size:
            raise damaged(
                "its size is another than when it was written",
                f"{self.size} bytes, expected {size}",
            )
        room = size - pack_format.HEAD.size - pack_format.CHECKSUM.size
        if count > min(
            room // pack_format.SECTION.size, pack_format.MAX_SECTIONS
        ):
            raise damaged(
                "it cannot have so many sections",
                f"count={count} in {size} bytes",
            )
        directory = file.read(count * pack_format.SECTION.size)
        (checksum,) = pack_format.CHECKSUM.unpack(
            file.read(pack_format.CHECKSUM.size)
        )
        if zlib.crc32(head + directory) != checksum:
            raise damaged("its head fails its checksum", f"{checksum:#010x}")
        if found != kind:
            advice = "Update packnet_tf, or write the file again."
            if found in pack_format.READERS:
                reader = pack_format.READERS[found]
                advice = f"Load this with `packnet_tf.{reader}`."
            what = pack_format.KINDS.get(found, "another kind")
            raise FileError(
                f"Expected {wanted}. {advice} Received: {what}, kind={found}"
            )
        self._listed = [
            Listed(*x) for x in pack_format.SECTION.iter_unpack(directory)
        ]
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
        self._file.seek(self._begin)
        for each in self._listed:
            section = SectionReader(self._file, each.size, each.checksum)
            while section.left:
                section.read(min(section.left, _PIECE))
            section.finish()
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
        return SectionReader(self._file, listed.size, listed.checksum)

    def description(self) -> dict[str, Any]:
        """Reads the description, which comes first.

        Returns:
            What JSON holds, of which nothing is checked yet.

        Raises:
            FileError: If it is not the JSON of a dict, or too long.
        """
        section = self.section(pack_format.DESCRIPTION)
        (length,) = pack_format.LENGTH.unpack(
            section.read(pack_format.LENGTH.size)
        )
        check_length(length)
        packed = section.read(section.left)
        section.finish()
        try:
            unpacker = zlib.decompressobj()
            text = unpacker.decompress(packed, length + 1)
            if len(text) != length or not unpacker.eof or unpacker.unused_data:
                raise damaged(
                    "its description has another length",
                    f"{len(text)} bytes, expected {length}",
                )
            check_text(text)
            description = json.loads(text)
        except (zlib.error, ValueError, RecursionError) as error:
            raise damaged("its description is not JSON", str(error)) from error
        if not isinstance(description, dict):
            raise damaged(
                "its description is not a dict", type(description).__name__
            )
        return description


@contextlib.contextmanager
def reading(
    path: "str | os.PathLike[str]", kind: int, ahead: bool = False
) -> Iterator[Reader]:
    """Opens a file, of which each section is to be read to its end.

    Args:
        path: The file.
        kind: `PACK` or `DELTA`.
        ahead: Whether to check the checksums of all sections before one is
            read, and not each when it was.

    Yields:
        What reads its sections.

    Raises:
        FileError: If it cannot be read, is not of that kind, or not whole.
    """
    with _open(path, kind) as file:
        try:
            reader = Reader(file, kind)
            if ahead:
                reader.check()
            try:
                yield reader
            except FileError:
                reader.check()  # If one fails, that is why.
                raise
        except FileError as error:
            raise FileError(f"{error}, path={str(path)!r}") from error
        except OSError as error:
            raise FileError(
                f"Cannot read {pack_format.KINDS[kind]}: "
                f"{error.strerror or error}. Pass one that can be read. "
                f"Received: path={str(path)!r}"
            ) from error


def _open(path: "str | os.PathLike[str]", kind: int) -> BinaryIO:
    try:
        file = pathlib.Path(path)
        if file.is_file():  # A pipe may never end.
            return open(path, "rb")
        reason = "it is no file" if file.exists() else "there is no such file"
    except (OSError, TypeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    raise FileError(
        f"Cannot open {pack_format.KINDS[kind]}: {reason}. Pass the path of "
        f"one. Received: path={str(path)!r}"
    )
