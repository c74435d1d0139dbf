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

import struct
from typing import NamedTuple

from packnet_tf.errors import FileError

MAGIC = b"\x89PACK\r\n\x1a"
VERSION = 1
PACK = 1
DELTA = 2
DESCRIPTION = 1
OWNERS = 2
VALUES = 3

HEAD = struct.Struct("<8sHHIQ")
SECTION = struct.Struct("<IIQ")
CHECKSUM = struct.Struct("<I")
LENGTH = struct.Struct("<Q")
KINDS = {PACK: "a pack file", DELTA: "a task delta"}
READERS = {PACK: "load_pack", DELTA: "load_task"}
MAX_SECTIONS = 1 << 20
# Which bound the memory: a value of JSON takes up to two hundred bytes when it
# is read. They do not depend on the file, so that they are known before it is.
MAX_TEXT = 16 << 20
MAX_VALUES = 1 << 19


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


class Listed(NamedTuple):
    """A section as the directory lists it."""

    kind: int
    checksum: int
    size: int


def check_length(length: int) -> None:
    """Checks the length of a description, before there is memory for it.

    Args:
        length: Of its text, in bytes.

    Raises:
        FileError: If it is too long.
    """
    if length > MAX_TEXT:
        raise _too_long(f"{length} bytes")


def check_text(text: bytes) -> None:
    """Checks that a description can be read in little memory.

    Args:
        text: The JSON text.

    Raises:
        FileError: If it is too long, or of too many values.
    """
    check_length(len(text))
    values = sum(text.count(sign) for sign in (b",", b"[", b"{"))
    if values > MAX_VALUES:
        raise _too_long(f"{values} values in {len(text)} bytes")


def _too_long(received: str) -> FileError:
    return FileError(
        f"The description of a file may have {MAX_TEXT} bytes and "
        f"{MAX_VALUES} values. Save the model as `.keras`, or start a second "
        f"one. Received: {received}"
    )
