"""Taking pack files and deltas apart, and putting them together again."""

import json
import struct
import zlib

HEAD = struct.Struct("<8sHHIQ")
SECTION = struct.Struct("<IIQ")
LENGTH = struct.Struct("<Q")


def take_apart(content):
    """Returns the kind of a file and its sections, kind and content."""
    _, _, kind, count, _ = HEAD.unpack_from(content)
    place = HEAD.size + count * SECTION.size + 4
    sections = []
    for number in range(count):
        what, _, size = SECTION.unpack_from(
            content, HEAD.size + number * SECTION.size
        )
        sections.append((what, content[place : place + size]))
        place += size
    return kind, sections


def put_together(kind, sections, version=1, count=None, size=None):
    """Returns a file with checksums that are right."""
    directory = b"".join(
        SECTION.pack(what, zlib.crc32(part), len(part))
        for what, part in sections
    )
    body = b"".join(part for _, part in sections)
    if size is None:
        size = HEAD.size + len(directory) + 4 + len(body)
    count = len(sections) if count is None else count
    head = HEAD.pack(b"\x89PACK\r\n\x1a", version, kind, count, size)
    before = head + directory
    return before + struct.pack("<I", zlib.crc32(before)) + body


def describe(content):
    """Returns what the description of a file says."""
    _, sections = take_apart(content)
    return json.loads(zlib.decompress(sections[0][1][LENGTH.size :]))


def with_description(content, description):
    """Returns a file with another description, checksums made right."""
    kind, sections = take_apart(content)
    text = description
    if not isinstance(text, bytes):
        text = json.dumps(description).encode()
    part = LENGTH.pack(len(text)) + zlib.compress(text)
    return put_together(kind, [(1, part), *sections[1:]])
