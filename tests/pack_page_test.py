"""Reads a pack file as docs/pack_format.md describes it, with nothing else."""

import hashlib
import json
import math
import zlib

import keras
import numpy as np
import pack_files
import pytest

import packnet_tf


class Bytes:
    def __init__(self, content):
        self.content = content
        self.place = 0

    def take(self, size):
        part = self.content[self.place : self.place + size]
        assert len(part) == size
        self.place += size
        return part

    def number(self, size):
        return int.from_bytes(self.take(size), "little")

    def left(self):
        return len(self.content) - self.place


def decode(code, size, alphabet):
    """Decodes one block, one lane after the other."""
    lanes = code.number(2)
    counts = [code.number(4) for _ in range(alphabet)]
    assert sum(counts) == size
    present = [letter for letter in range(alphabet) if counts[letter]]
    if not lanes:
        (letter,) = present
        return [letter] * size
    kinds = len(present)
    letters = max(g for g in range(1, 9) if kinds**g <= 256)
    most = present.index(max(present, key=lambda letter: counts[letter]))

    def digits(group):
        return [group // kinds**p % kinds for p in reversed(range(letters))]

    groups = kinds**letters
    frequencies = [
        1
        + math.prod(counts[present[d]] for d in digits(group))
        * (2**16 - groups)
        // size**letters
        for group in range(groups)
    ]
    filling = sum(most * kinds**p for p in range(letters))
    frequencies[filling] += 2**16 - sum(frequencies)
    starts = [sum(frequencies[:group]) for group in range(groups)]
    of_slot = [g for g in range(groups) for _ in range(frequencies[g])]
    states = [code.number(4) for _ in range(lanes)]
    words = [code.number(2) for _ in range(code.number(4))]
    wanted = -(-size // letters)
    found = []
    while len(found) < wanted:
        for lane, state in enumerate(states):
            slot = state % 2**16
            group = of_slot[slot]
            state = frequencies[group] * (state // 2**16) + slot
            state -= starts[group]
            if state < 2**16:
                state = state * 2**16 + words.pop(0)
            states[lane] = state
            found.append(group)
    assert not words
    assert set(states) == {2**16}
    assert set(found[wanted:]) <= {filling}
    entries = [present[d] for group in found[:wanted] for d in digits(group)]
    return entries[:size]


def read_owners(section, size, alphabet):
    section = Bytes(section)
    found = decode(Bytes(section.take(section.number(4))), size, alphabet)
    assert not section.left()
    return np.array(found, np.uint8)


def read_values(section, count, dtype):
    section = Bytes(section)
    width = np.dtype(dtype).itemsize
    planes = []
    for _ in range(width if count else 0):
        length = section.number(4)
        plane = section.take(length)
        if length < count:
            plane = bytes(decode(Bytes(plane), count, 256))
        planes.append(np.frombuffer(plane, np.uint8))
    assert not section.left()
    if not count:
        return np.empty(0, dtype)
    numbers = np.ascontiguousarray(np.stack(planes, axis=-1))
    return numbers.reshape(-1).view(dtype)


def read(content):
    """Returns the description, and the values and owners of variables."""
    kind, sections = pack_files.take_apart(content)
    assert kind == 1
    text = sections.pop(0)[1]
    description = json.loads(zlib.decompress(text[8:]))
    alphabet = 1 + len(description["model"]["tasks"])
    found = {}
    for key, dtype, stored, shape, packed in description["variables"]:
        assert dtype == stored
        size = math.prod(shape)
        values = np.zeros(size, np.dtype(dtype).newbyteorder("<"))
        owner, owned = None, slice(None)
        if packed:
            what, section = sections.pop(0)
            assert what == 2
            owner = read_owners(section, size, alphabet)
            owned = owner > 0
        what, section = sections.pop(0)
        assert what == 3
        count = size if owner is None else int(owned.sum())
        values[owned] = read_values(section, count, values.dtype)
        found[key] = (
            values.reshape(shape),
            None if owner is None else owner.reshape(shape),
        )
    assert not sections
    return description, found


def digest(values, owner=None, task=None):
    hasher = hashlib.sha256(f"{values.dtype.name}{list(values.shape)}".encode())
    values = values.reshape(-1)
    if owner is None:
        hasher.update(values.tobytes())
        return hasher.hexdigest()
    owner = owner.reshape(-1)
    for start in range(0, len(owner), 2**16):
        places = np.flatnonzero(owner[start : start + 2**16] == task)
        if len(places):
            hasher.update(start.to_bytes(8, "little"))
            hasher.update(len(places).to_bytes(8, "little"))
            hasher.update(places.astype("<u2").tobytes())
            hasher.update(values[start + places].tobytes())
    return hasher.hexdigest()


def on_top_of(base, digests):
    text = json.dumps([base, sorted(map(list, digests.items()))])
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input((130,)),
            keras.layers.Dense(520, name="wide"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dense(9, activation="relu", name="narrow"),
        ]
    )
    model = packnet_tf.wrap(network, head=None, normalization="per_task")
    generator = np.random.default_rng(0)
    x = generator.normal(size=(32, 130)).astype("float32")
    for task, sparsity in (("a", 0.7), ("b", 0.4), ("c", 0.2)):
        model.add_task(task, units=3)
        model.compile(
            keras.optimizers.Adam(0.01),
            "sparse_categorical_crossentropy",
            run_eagerly=True,
        )
        model.fit(x, generator.integers(0, 3, 32), verbose=0)
        model.prune(sparsity)
        model.freeze_task()
    return model


def test_a_pack_file_can_be_read_from_the_page(model, tmp_path):
    path = tmp_path / "model.packnet"
    packnet_tf.save_pack(model, path)
    description, found = read(path.read_bytes())
    for entry in model.summary_protection(print_fn=lambda text: None):
        values, owner = found[f"backbone/{entry.key}"]
        np.testing.assert_array_equal(values, entry.variable.numpy())
        if entry.owner is not None:
            np.testing.assert_array_equal(owner, entry.owner.numpy())
    kernel = found["backbone/wide/kernel"][1]
    assert kernel.size > 2**16
    assert set(np.unique(kernel)) == {0, 1, 2, 3}
    base = ""
    for task in description["model"]["tasks"]:
        record, number = task["record"], task["number"]
        for key, expected in record["backbone"].items():
            values, owner = found[f"backbone/{key}"]
            assert digest(values, owner, number) == expected
        for key, expected in record["per_task"].items():
            assert digest(found[f"copies/{number}/{key}"][0]) == expected
        for key, expected in record["head"].items():
            assert digest(found[f"heads/{task['name']}/{key}"][0]) == expected
        base = on_top_of(base, record["backbone"])
        assert base == record["base"]
        whole = on_top_of(on_top_of(base, record["per_task"]), record["head"])
        assert whole == record["fingerprint"]
        assert model.verify()[task["name"]].fingerprint == whole
    assert number == 3
