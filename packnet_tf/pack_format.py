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
# Read and looked at, a text of JSON takes up to fifty times its size.
_MAX_TEXT = 4 << 20
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


class Listed(NamedTuple):
    """A section as the directory lists it."""

    kind: int
    checksum: int
    size: int


def check_text(length: int, size: int) -> None:
    """Checks the length of a description.

    Args:
        length: Of its text, in bytes.
        size: Of the file, in bytes.

    Raises:
        FileError: If it is too long.
    """
    limit = _MAX_TEXT + size // _TEXT_SHARE
    if length > limit:
        raise FileError(
            f"The description of a file of {size} bytes may have {limit} "
            "bytes. Save the model as `.keras`, or start a second one. "
            f"Received: {length} bytes"
        )
