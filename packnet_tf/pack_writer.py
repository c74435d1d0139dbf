"""Writing the container of pack files and task deltas."""

import contextlib
import json
import os
import zlib
from collections.abc import Iterator
from typing import Any
from typing import BinaryIO

from packnet_tf import files
from packnet_tf import pack_format
from packnet_tf.errors import FileError
from packnet_tf.pack_format import Listed
from packnet_tf.pack_format import check_text


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

    Attributes:
        size: How many bytes the file has, once it is finished.
    """

    def __init__(self, file: BinaryIO, kind: int, count: int) -> None:
        self._file = file
        self._kind = kind
        self._count = count
        self.size = 0
        self._listed: list[Listed] = []
        file.write(
            bytes(
                pack_format.HEAD.size
                + count * pack_format.SECTION.size
                + pack_format.CHECKSUM.size
            )
        )

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
        self._listed.append(Listed(kind, section.checksum, section.size))

    def describe(self, description: dict[str, Any]) -> None:
        """Writes the description, which comes first.

        Args:
            description: What JSON can hold.

        Raises:
            FileError: If it is too long to be read again.
        """
        text = json.dumps(description, separators=(",", ":")).encode()
        check_text(text)
        with self.section(pack_format.DESCRIPTION) as section:
            section.write(pack_format.LENGTH.pack(len(text)))
            section.write(zlib.compress(text, 9))

    def finish(self) -> None:
        """Writes the head and the directory."""
        self.size = self._file.tell()
        if len(self._listed) != self._count:
            raise ValueError(f"{len(self._listed)} of {self._count} sections")
        before = pack_format.HEAD.pack(
            pack_format.MAGIC,
            pack_format.VERSION,
            self._kind,
            self._count,
            self.size,
        )
        before += b"".join(
            pack_format.SECTION.pack(each.kind, each.checksum, each.size)
            for each in self._listed
        )
        self._file.seek(0)
        self._file.write(before + pack_format.CHECKSUM.pack(zlib.crc32(before)))


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
                f"Cannot write {pack_format.KINDS[kind]}: "
                f"{error.strerror or error}. Make room, or choose another "
                f"folder. Received: path={str(path)!r}"
            ) from error
