"""Writing the container of pack files and task deltas."""

import contextlib
import json
import os
import zlib
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any
from typing import BinaryIO

from packnet_tf import behind
from packnet_tf import files
from packnet_tf import pack_format
from packnet_tf.errors import FileError
from packnet_tf.pack_format import Listed
from packnet_tf.pack_format import check_text


class SectionWriter:
    """Writes one section.

    Args:
        file: Where to write.
        kind: `DESCRIPTION`, `OWNERS` or `VALUES`.
        call: What has functions called, in order, as of `behind.calling`.

    Attributes:
        listed: The section as the directory lists it, once all calls are made.
    """

    def __init__(
        self, file: BinaryIO, kind: int, call: Callable[..., None]
    ) -> None:
        self._file = file
        self._call = call
        self.listed = Listed(kind, 0, 0)

    def write(self, *pieces: "bytes | memoryview") -> None:
        """Appends bytes.

        Args:
            *pieces: The bytes. They must stay as they are from here on.
        """
        self._call(self._write, pieces)

    def _write(self, pieces: "tuple[bytes | memoryview, ...]") -> None:
        kind, checksum, size = self.listed
        for piece in pieces:
            self._file.write(piece)
            checksum = zlib.crc32(piece, checksum)
            size += len(piece)
        self.listed = Listed(kind, checksum, size)


class Writer:
    """Writes the sections of a file, and then what stands before them.

    Args:
        file: A file to write, which can seek.
        kind: `PACK` or `DELTA`.
        count: How many sections there will be.
        call: What has functions called, in order, as of `behind.calling`.

    Attributes:
        size: How many bytes the file has, once it is finished.
    """

    def __init__(
        self,
        file: BinaryIO,
        kind: int,
        count: int,
        call: Callable[..., None],
    ) -> None:
        self._file = file
        self._kind = kind
        self._count = count
        self._call = call
        self.size = 0
        self._sections: list[SectionWriter] = []
        file.write(
            bytes(
                pack_format.HEAD.size
                + count * pack_format.SECTION.size
                + pack_format.CHECKSUM.size
            )
        )

    def section(self, kind: int) -> SectionWriter:
        """Begins the next section, which ends where another one begins.

        Args:
            kind: `DESCRIPTION`, `OWNERS` or `VALUES`.

        Returns:
            What writes it.
        """
        section = SectionWriter(self._file, kind, self._call)
        self._sections.append(section)
        return section

    def describe(self, description: dict[str, Any]) -> None:
        """Writes the description, which comes first.

        Args:
            description: What JSON can hold.

        Raises:
            FileError: If it is too long to be read again.
        """
        text = json.dumps(description, separators=(",", ":")).encode()
        check_text(text)
        self.section(pack_format.DESCRIPTION).write(
            pack_format.LENGTH.pack(len(text)), zlib.compress(text, 9)
        )

    def finish(self) -> None:
        """Writes the head and the directory, when all calls are made."""
        self.size = self._file.tell()
        if len(self._sections) != self._count:
            raise ValueError(f"{len(self._sections)} of {self._count} sections")
        before = pack_format.HEAD.pack(
            pack_format.MAGIC,
            pack_format.VERSION,
            self._kind,
            self._count,
            self.size,
        )
        before += b"".join(
            pack_format.SECTION.pack(
                section.listed.kind,
                section.listed.checksum,
                section.listed.size,
            )
            for section in self._sections
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
                with behind.calling() as call:
                    writer = Writer(file, kind, count, call)
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
