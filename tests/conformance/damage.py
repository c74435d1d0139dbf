"""Ways to damage a file: by accident, or by someone who knows its format.

Each takes the bytes and a `random.Random`, and returns other bytes.
"""

import io
import json
import struct
import warnings
import zipfile

import hdf5_files
from damaged_calls import edit_calls

NAMES = (
    "../outside",
    "/packnet_tf_outside",
    "assets/../../outside",
    "assets\\..\\outside",
    "model.weights.npz",
    "config.json/",
    "a",
)
CLASSES = (
    ("os", "system"),
    ("builtins", "eval"),
    ("keras.layers", "Lambda"),
    ("keras.layers", "TFSMLayer"),
    ("keras.layers", "Dense"),
    ("keras.layers", "LSTM"),
    ("keras.layers", "Dropout"),
    ("keras.optimizers", "SGD"),
    ("keras.utils", "get_file"),
    ("nothing.at.all", "Thing"),
    ("packnet_tf.model", "PackNetModel"),
)


def truncate(content, draw):
    return content[: draw.randrange(len(content))]


def flip(content, draw):
    content = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 3, 20))):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return bytes(content)


def overwrite(content, draw):
    at = draw.randrange(len(content))
    size = draw.choice((1, 4, 8, 100))
    filler = draw.choice((b"\0", b"\xff", b"\x7f", b"A")) * size
    return content[:at] + filler + content[at + size :]


def cut(content, draw):
    begin, end = sorted(draw.randrange(len(content) + 1) for _ in range(2))
    return content[:begin] + content[end:]


def repeat(content, draw):
    begin, end = sorted(draw.randrange(len(content) + 1) for _ in range(2))
    return content[:end] + content[begin:]


def append(content, draw):
    return content + draw.randbytes(draw.choice((1, 22, 100, 5000)))


def unpack(content):
    """Returns the members of an archive, by name."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def pack(members, compression=zipfile.ZIP_STORED):
    """Makes an archive whose check sums are right."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of names that are there twice.
            for name, content in members:
                archive.writestr(name, content)
    return file.getvalue()


def replace(content, name, new):
    """Replaces a member of an archive; its check sum is right."""
    return pack(
        [(each, new if each == name else old) for each, old in unpack(content)]
    )


def edit_members(content, draw):
    members = unpack(content)
    place = draw.randrange(len(members))
    kind = draw.randrange(6)
    if kind == 0:
        draw.shuffle(members)
    elif kind == 1:
        members.append(members[place])
    elif kind == 2:
        members[place] = (draw.choice(NAMES), members[place][1])
    elif kind == 3:
        members.append((draw.choice(NAMES), b"content"))
    elif kind == 4:
        del members[place]
    else:
        other = draw.randrange(len(members))
        members[place] = (members[place][0], members[other][1])
    return pack(members)


def lie_of_sizes(content, draw):
    """Declares other sizes in the directory of an archive, or at a member."""
    content = bytearray(content)
    mark, place = draw.choice(
        ((b"PK\1\2", 20), (b"PK\1\2", 42), (b"PK\3\4", 18), (b"PK\5\6", 8))
    )
    at = -1
    for _ in range(draw.randrange(1, 4)):
        found = content.find(mark, at + 1)
        at = found if found >= 0 else at
    value = draw.choice((0, 1, 10**6, 2**31, 2**32 - 2, 2**32 - 1))
    struct.pack_into("<I", content, at + place + draw.choice((0, 4)), value)
    return bytes(content)


def compress(content, draw):
    """Puts zeros into a member, a thousandth of them in the file."""
    members = unpack(content)
    place = draw.randrange(len(members))
    members[place] = (members[place][0], bytes(2**22))
    return pack(members, zipfile.ZIP_DEFLATED)


def edit_json(content, draw):
    """Changes a value or two of the configuration."""
    config = json.loads(dict(unpack(content))["config.json"])
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        places = list(_places(config))
        holder, key = draw.choice(places)
        objects = [
            (each, "class_name")
            for each in [one[key] for one, key in places]
            if isinstance(each, dict) and "class_name" in each
        ]
        if objects and draw.random() < 0.3:
            each, _ = draw.choice(objects)
            each["module"], each["class_name"] = draw.choice(CLASSES)
            each["registered_name"] = None
        elif draw.random() < 0.15:
            del holder[key]
        else:
            holder[key] = _other(holder[key], draw)
    return replace(content, "config.json", json.dumps(config).encode())


def nest_json(content, draw):
    """Makes a configuration that is nested deep."""
    opening, closing = draw.choice(((b"[", b"]"), (b'{"a":', b"}")))
    depth = draw.choice((300, 10_000, 200_000))
    new = opening * depth + b"1" + closing * depth
    if draw.random() < 0.5:
        new = b'{"a":' + new + b"}"
    return replace(content, "config.json", new)


def edit_weights(content, draw):
    """Changes bytes of the weights."""
    weights = dict(unpack(content))["model.weights.h5"]
    change = draw.choice((flip, overwrite, truncate, cut, repeat))
    return replace(content, "model.weights.h5", change(weights, draw))


def edit_tables(content, draw):
    """Changes a byte that is not zero among the tables of the weights."""
    weights = bytearray(dict(unpack(content))["model.weights.h5"])
    marks = (b"TREE", b"HEAP", b"SNOD", b"GCOL", b"\x89HDF", b"\x01\0\1\0")
    for _ in range(draw.choice((1, 1, 2, 4))):
        at = weights.find(draw.choice(marks), draw.randrange(len(weights)))
        at = max(at, 0) + draw.randrange(300)
        if at < len(weights):
            weights[at] = draw.choice((0, 1, 16, 127, 128, 255))
    return replace(content, "model.weights.h5", bytes(weights))


def alias_weights(content, draw):
    """Lets addresses in the weights lead where others do."""
    weights = dict(unpack(content))["model.weights.h5"]
    new = hdf5_files.alias(weights, draw)
    return replace(content, "model.weights.h5", new)


def change_calls(content, draw):
    """Changes what layers are called on, or the order they are listed in."""
    config = json.loads(dict(unpack(content))["config.json"])
    edit_calls(config, draw)
    return replace(content, "config.json", json.dumps(config).encode())


def _places(value):
    """Yields each holder and key in a configuration."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, each in list(pairs):
        yield value, key
        if isinstance(each, (dict, list)):
            yield from _places(each)


def _other(value, draw):
    numbers = (0, 1, -1, 2, 7, 2**31, 2**40, 10**12, -(2**63), 10**30, 0.5)
    others = (None, True, "", "x", "float16", [], {}, [1, 2], 1e300)
    if isinstance(value, (int, float)) and draw.random() < 0.7:
        return draw.choice(numbers)
    if isinstance(value, str) and draw.random() < 0.3:
        return value + "x"
    return draw.choice((*numbers, *others))


ANY = (truncate, flip, overwrite, cut, repeat, append)
"""What can happen to any file."""

ARCHIVE = (*ANY, edit_members, lie_of_sizes, compress)
"""What can happen to an archive besides; the check sums may be right."""

KERAS = (
    *ARCHIVE,
    edit_json,
    nest_json,
    edit_weights,
    edit_tables,
    alias_weights,
    change_calls,
)
"""What can happen to a `.keras` file besides."""
