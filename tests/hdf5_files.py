"""HDF5 files in which several things lead to the same place."""

import io
import struct

import h5py

SUPERBLOCK = 56  # The entry of the root follows.
SYMBOL = struct.Struct("<QQII16s")
HEAP = struct.Struct("<4sB3sQQQ")
_END = 40  # Where the size of the file stands.


def write(fill):
    """Returns the bytes of an HDF5 file."""
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        fill(file)
    return content.getvalue()


def symbols(content):
    """Yields where each entry of a group is."""
    at = content.find(b"SNOD")
    while at >= 0:
        (count,) = struct.unpack_from("<H", content, at + 6)
        for place in range(count):
            yield at + 8 + SYMBOL.size * place
        at = content.find(b"SNOD", at + 1)


def header(content, at=SUPERBLOCK):
    """Returns the address of the object that an entry names."""
    return SYMBOL.unpack_from(content, at)[1]


def linked(count, target):
    """Returns a file whose root has many names for one group.

    Args:
        count: How many names.
        target: "/" for the root itself, or the name of another group.
    """

    def fill(file):
        file.require_group(target)
        for place in range(count):
            file[f"name_{place:06}"] = file[target]

    content = bytearray(write(fill))
    for at in {SUPERBLOCK, *symbols(content)}:
        # Each of them is said to have one name.
        struct.pack_into("<I", content, header(content, at) + 4, 1)
    return content


def append(content, more):
    """Appends bytes to a file; returns where they are."""
    at = len(content)
    content += more
    struct.pack_into("<Q", content, _END, len(content))
    return at


def with_free_list(content, size):
    """Gives the last group of a file a heap of nothing but free places."""
    free = b"".join(
        struct.pack("<QQ", place, 16) for place in range(16, size, 16)
    )
    free += struct.pack("<QQ", 1, 16)
    data = append(content, free)
    at = content.rfind(b"HEAP")
    HEAP.pack_into(content, at, b"HEAP", 0, bytes(3), size, 0, data)
    return content


def with_texts(content, count):
    """Gives each attribute of a file a large heap of texts of its own."""
    at = content.find(b"GCOL")
    address = struct.pack("<Q", at)
    texts = b"".join(
        struct.pack("<HHIQ", index, 1, 0, 0) for index in range(1, count)
    )
    place = content.find(address)
    while place >= 0:
        (index,) = struct.unpack_from("<I", content, place + 8)
        new = append(
            content,
            struct.pack("<4sB3sQ", b"GCOL", 1, bytes(3), 16 * count) + texts,
        )
        struct.pack_into("<IQI", content, place - 4, 0, new, index)
        place = content.find(address, place + 1)
    return content


def alias(content, draw):
    """Lets some addresses in a file lead where others do.

    Args:
        content: The bytes of the file.
        draw: A `random.Random`.

    Returns:
        Other bytes.
    """
    content = bytearray(content)
    known = {header(content, at) for at in symbols(content)}
    for mark in (b"TREE", b"HEAP", b"SNOD", b"GCOL"):
        at = content.find(mark)
        while at >= 0:
            known.add(at)
            at = content.find(mark, at + 1)
    places = [
        at
        for at in range(SUPERBLOCK, len(content) - 7, 8)
        if struct.unpack_from("<Q", content, at)[0] in known
    ]
    kind = draw.randrange(3)
    if kind == 0:  # A name for another thing, whole.
        entries = list(symbols(content))
        for _ in range(draw.choice((1, 2, len(entries)))):
            one, other = draw.choice(entries), draw.choice(entries)
            content[one + 8 : one + 40] = content[other + 8 : other + 40]
    elif kind == 1:  # Many names for one thing.
        entries = list(symbols(content))
        other = draw.choice([SUPERBLOCK, *entries])
        for one in draw.sample(entries, len(entries) // 2):
            content[one + 8 : one + 40] = content[other + 8 : other + 40]
    else:
        known = sorted(known)
        for at in draw.sample(places, draw.choice((1, 1, 2, 9))):
            struct.pack_into("<Q", content, at, draw.choice(known))
    return bytes(content)
