"""What is in a group of an HDF5 file: its tree, and the heap of its names."""

import itertools
import struct

from packnet_tf.hdf5_bytes import Bytes
from packnet_tf.hdf5_bytes import expect

UNDEFINED = 2**64 - 1  # The address of what is nowhere.
LEAF, INTERNAL = 8, 32  # Entries of a symbol node, children of a tree node.
_SYMBOL = struct.Struct("<QQII16s")
_NODE = struct.Struct("<4sBBH")
_TREE = struct.Struct("<4sBBHQQ")
_HEAP = struct.Struct("<4sB3sQQQ")
_MAX_NAME = 2**12

# The address of a name, that of a header, and the table that it must have.
Symbol = tuple[int, int, "bytes | None"]


def read_symbol(file: Bytes, address: int) -> Symbol:
    """Reads an entry that names an object.

    Args:
        file: The HDF5 file.
        address: Where the entry is.

    Returns:
        The address of its name in the heap, that of the object, and the
        table that the object has if it is a group and that is on record.

    Raises:
        ValueError: If it is none.
    """
    name, header, cache, zero, scratch = file.unpack(_SYMBOL, address)
    expect(cache in (0, 1) and not zero, "it holds a link")
    return name, header, scratch if cache else None


def read_group(file: Bytes, tree: int, heap: int, most: int) -> list[Symbol]:
    """Reads what is in a group.

    Args:
        file: The HDF5 file.
        tree: Address of its tree.
        heap: Address of its names.
        most: How many entries it may have.

    Returns:
        Its entries, as `read_symbol` returns them, in the order of names.

    Raises:
        ValueError: If it is damaged.
    """
    mark, version, zero, size, free, data = file.unpack(_HEAP, heap)
    expect(
        (mark, version, zero) == (b"HEAP", 0, bytes(3)) and size <= 2**24,
        "the names of a group are none",
    )
    file.take(heap, _HEAP.size)
    file.take(data, size)
    texts = file.read(data, size)
    _check_free(texts, free)
    entries, last = _read_tree(file, tree, texts, most), b""
    for place, _, _ in entries:
        name = _text(texts, place)
        expect(
            last < name and name not in (b".", b"..") and b"/" not in name,
            "the names of a group are not in order",
        )
        last = name
    return entries


def _check_free(texts: bytes, at: int) -> None:
    """Checks the places between names that hold none."""
    last = -1
    while at not in (1, UNDEFINED):
        expect(
            last < at <= len(texts) - 16 and at % 8 == 0,
            "the names of a group are cut off",
        )
        last = at
        at, size = struct.unpack_from("<QQ", texts, at)
        expect(
            16 <= size <= len(texts) - last,
            "the names of a group are cut off",
        )


def _read_tree(file: Bytes, root: int, texts: bytes, most: int) -> list[Symbol]:
    """Reads the entries of a group, in order."""
    entries: list[Symbol] = []
    left: list[tuple[int, int | None, bytes, bytes | None]]
    left = [(root, None, b"", None)]
    levels: dict[int, list[tuple[int, int, int]]] = {}
    while left:
        address, level, low, high = left.pop()
        if level == -1:
            found = _read_node(file, address)
            names = [_text(texts, name) for name, _, _ in found]
            expect(
                all(low < name <= high for name in names),
                "a group is out of order",
            )
            entries += found
            expect(len(entries) <= most, "it holds too many things")
            continue
        mark, kind, own, count, *sides = file.unpack(_TREE, address)
        levels.setdefault(own, []).append((address, *sides))
        expect(
            (mark, kind) == (b"TREE", 0)
            and (level is None or own == level)
            and own <= 8
            and count <= INTERNAL,
            "a group has no such tree",
        )
        file.take(address, _TREE.size + 8 * (2 * INTERNAL + 1))
        pairs = struct.unpack(
            f"<{2 * count + 1}Q",
            file.read(address + _TREE.size, 8 * (2 * count + 1)),
        )
        keys = [_text(texts, key) for key in pairs[::2]]
        expect(
            (level is None and not count)
            or all(one < other for one, other in itertools.pairwise(keys)),
            "a group is out of order",
        )
        expect(
            level is None or (keys[0] >= low and keys[-1] <= high),
            "a group is out of order",
        )
        left += reversed(
            list(zip(pairs[1::2], [own - 1] * count, keys, keys[1:]))
        )
    for nodes in levels.values():
        # The library walks along these, too.
        places = [UNDEFINED, *(node[0] for node in nodes), UNDEFINED]
        expect(
            nodes == list(zip(places[1:], places, places[2:])),
            "a group leads elsewhere",
        )
    return entries


def _read_node(file: Bytes, address: int) -> list[Symbol]:
    mark, version, zero, count = file.unpack(_NODE, address)
    expect(
        (mark, version, zero) == (b"SNOD", 1, 0) and 0 < count <= LEAF,
        "a group has no such node",
    )
    file.take(address, 8 + LEAF * _SYMBOL.size)
    return [
        read_symbol(file, address + 8 + _SYMBOL.size * place)
        for place in range(count)
    ]


def _text(texts: bytes, at: int) -> bytes:
    end = texts.find(b"\0", at, at + _MAX_NAME) if at < len(texts) else -1
    expect(end >= 0, "the names of a group are cut off")
    return texts[at:end]
