import dataclasses
import hashlib
import itertools
import string
import tracemalloc

import keras
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from packnet_tf import fingerprint
from packnet_tf import inventory
from packnet_tf.errors import FingerprintError
from packnet_tf.errors import PackNetError
from packnet_tf.registry import Kind

_quick = settings(max_examples=60, deadline=None, database=None)
_CHUNK = 65536
_VALUES = st.sampled_from([0.0, -0.0, 1.0, 2.0, np.nan])


def _is_sha256(text):
    return len(text) == 64 and set(text) <= set(string.hexdigits.lower())


def _facts(kernel, owner, task):
    """What the digest of a task has to tell apart, and nothing more."""
    mine = owner.reshape(-1) == task
    return (
        kernel.dtype.name,
        kernel.shape,
        tuple(np.flatnonzero(mine)),
        kernel.reshape(-1)[mine].tobytes(),
    )


def _random(size, seed=0, tasks=3):
    generator = np.random.default_rng(seed)
    kernel = generator.normal(size=size).astype(np.float32)
    owner = generator.integers(0, tasks + 1, size).astype(np.uint8)
    return kernel, owner


def _digests(kernel, owner, tasks):
    return fingerprint.owned_digests(kernel, owner, tasks)[0]


def _changed(before, after):
    """Returns the numbers of the tasks whose digests differ."""
    pairs = enumerate(zip(before, after), 1)
    return [task for task, (one, other) in pairs if one != other]


_PACKED = hnp.array_shapes(max_dims=3, max_side=4).flatmap(
    lambda shape: st.tuples(
        hnp.arrays(np.float32, shape, elements=_VALUES),
        hnp.arrays(np.uint8, shape, elements=st.integers(0, 3)),
    )
)


@given(first=_PACKED, second=_PACKED, chunk=st.sampled_from([1, 3, 8, _CHUNK]))
@_quick
def test_owned_digests_agree_when_and_only_when_the_facts_do(
    first, second, chunk
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fingerprint, "_CHUNK", chunk)
        digests = [
            _digests(kernel, owner, 3) for kernel, owner in (first, second)
        ]
    for task, (one, other) in enumerate(zip(*digests), 1):
        same = _facts(*first, task) == _facts(*second, task)
        assert (one == other) == same


@given(packed=_PACKED, data=st.data())
@_quick
def test_owned_digests_see_one_changed_entry(packed, data):
    kernel, owner = packed
    index = data.draw(st.integers(0, kernel.size - 1))
    changed = kernel.copy()
    changed.reshape(-1)[index] = 7.0
    moved = owner.copy()
    moved.reshape(-1)[index] = data.draw(st.integers(0, 3))
    was, now = int(owner.reshape(-1)[index]), int(moved.reshape(-1)[index])
    before = _digests(kernel, owner, 3)
    by_value = _digests(changed, owner, 3)
    by_owner = _digests(kernel, moved, 3)
    assert _changed(before, by_value) == [was][: was > 0]
    assert _changed(before, by_owner) == sorted(
        {was, now} - {0} if was != now else set()
    )


@pytest.mark.parametrize(
    "size",
    [1, _CHUNK - 1, _CHUNK, _CHUNK + 1, 2 * _CHUNK, 2 * _CHUNK + 1],
)
def test_owned_digests_see_entries_around_the_chunks(size):
    kernel, owner = _random(size)
    before = _digests(kernel, owner, 3)
    edges = {0, _CHUNK - 1, _CHUNK, 2 * _CHUNK - 1, 2 * _CHUNK, size - 1}
    for index in sorted(edge for edge in edges if edge < size):
        changed = kernel.copy()
        changed[index] += 1
        after = _digests(changed, owner, 3)
        task = int(owner[index])
        assert _changed(before, after) == ([task] if task else [])


def test_owned_digests_tell_apart_the_same_place_in_two_chunks():
    kernel = np.ones(2 * _CHUNK, np.float32)
    digests = set()
    for index in (5, _CHUNK + 5):
        owner = np.zeros(2 * _CHUNK, np.uint8)
        owner[index] = 1
        digests.update(_digests(kernel, owner, 1))
    assert len(digests) == 2


@pytest.mark.parametrize("chunk", [1, 4, _CHUNK])
def test_owned_digests_tell_apart_every_set_of_places(monkeypatch, chunk):
    monkeypatch.setattr(fingerprint, "_CHUNK", chunk)
    kernel = np.ones((2, 3), np.float32)
    digests = {
        _digests(kernel, np.reshape(owner, (2, 3)).astype(np.uint8), 1)[0]
        for owner in itertools.product([0, 1], repeat=6)
    }
    assert len(digests) == 2**6


def test_owned_digests_do_not_depend_on_later_tasks():
    kernel, owner = _random(1000)
    before = _digests(kernel, owner, 3)
    for tasks in (1, 2, 4, 255):
        digests = _digests(kernel, owner, tasks)
        assert len(digests) == tasks
        assert digests[:3] == before[:tasks]
    given_on = np.where(owner == 0, np.uint8(4), owner)
    retrained = np.where((owner == 0) | (owner == 3), np.nan, kernel)
    after = _digests(retrained, given_on, 4)
    assert _changed(before, after) == [3]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (np.zeros((2, 3), np.float32), np.zeros((3, 2), np.float32)),
        (np.zeros(6, np.float32), np.zeros((1, 6), np.float32)),
        (np.zeros(4, np.float32), np.zeros(4, np.int32)),
        (np.zeros(4, np.float16), np.zeros(4, ml_dtypes.bfloat16)),
        (np.zeros((0, 3), np.float32), np.zeros((3, 0), np.float32)),
        (np.zeros(0, np.float32), np.zeros(0, np.float64)),
    ],
    ids=lambda array: f"{array.dtype.name}{array.shape}",
)
def test_owned_digests_count_shape_and_dtype(first, second):
    for task in (0, 1):
        digests = {
            _digests(kernel, np.full(kernel.shape, task, np.uint8), 1)[0]
            for kernel in (first, second)
        }
        assert len(digests) == 2


def test_owned_digests_of_empty_arrays_agree():
    digests = _digests(
        np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8), 3
    )
    assert len(digests) == 3
    assert len(set(digests)) == 1


def test_owned_digests_tell_zeros_of_both_signs_apart():
    owner = np.ones(1, np.uint8)
    digests = {
        _digests(np.array([zero], np.float32), owner, 1)[0]
        for zero in (0.0, -0.0)
    }
    assert len(digests) == 2


def test_owned_digests_ignore_the_memory_layout():
    kernel, owner = (a.reshape(10, 20, 5) for a in _random(1000))
    before = _digests(kernel, owner, 3)
    after = _digests(np.asfortranarray(kernel), np.asfortranarray(owner), 3)
    assert after == before


@given(
    first=hnp.arrays(np.float32, (2, 2), elements=_VALUES),
    second=hnp.arrays(np.float32, (2, 2), elements=_VALUES),
)
@_quick
def test_digest_agrees_when_and_only_when_the_bytes_do(first, second):
    same = first.tobytes() == second.tobytes()
    one, other = fingerprint.digest(first), fingerprint.digest(second)
    assert _is_sha256(one)
    assert (one == other) == same


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int64", "float16", "float32", "float64"]
)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,), (2, 0)], ids=str)
def test_digest_takes_every_dtype_and_shape(dtype, shape):
    value = np.ones(shape, dtype)
    content = f"{dtype}{list(shape)}".encode() + value.tobytes()
    assert fingerprint.digest(value) == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)], ids=str)
def test_digest_takes_bfloat16(shape):
    value = np.ones(shape, ml_dtypes.bfloat16)
    content = f"bfloat16{list(shape)}".encode() + value.tobytes()
    assert fingerprint.digest(value) == hashlib.sha256(content).hexdigest()


def test_digest_ignores_the_memory_layout():
    value = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert fingerprint.digest(np.asfortranarray(value)) == (
        fingerprint.digest(value)
    )


def test_digests_are_those_of_files_that_exist():
    kernel, owner = np.arange(6, dtype="<f4").reshape(2, 3), [1, 0, 2, 1, 1, 2]
    owner = np.array(owner, np.uint8).reshape(2, 3)
    expected = []
    for places in ([0, 3, 4], [2, 5]):
        hasher = hashlib.sha256(b"float32[2, 3]")
        hasher.update(np.array([0, len(places)], "<u8").tobytes())
        hasher.update(np.array(places, "<u2").tobytes())
        hasher.update(np.array(places, "<f4").tobytes())
        expected.append(hasher.hexdigest())
    assert _digests(kernel, owner, 2) == expected


def _digest_of_one(kernel, owner, task):
    """Hashes what one task owns, by a pass of its own over the weight."""
    text = f"{kernel.dtype.name}{list(kernel.shape)}"
    hasher = hashlib.sha256(text.encode())
    kernel, owner = kernel.reshape(-1), owner.reshape(-1)
    for start in range(0, owner.size, _CHUNK):
        mine = owner[start : start + _CHUNK] == task
        if mine.any():
            places = np.flatnonzero(mine)
            hasher.update(np.array([start, places.size], "<u8").tobytes())
            hasher.update(places.astype("<u2").tobytes())
            hasher.update(kernel[start : start + _CHUNK][mine].tobytes())
    return hasher.hexdigest()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("tasks", [1, 2, 3, 4, 5, 20, 100, 255])
def test_owned_digests_are_those_of_a_pass_per_task(tasks, dtype):
    size = 2 * _CHUNK + 100
    kernel, owner = _random(size, seed=tasks, tasks=tasks)
    kernel = kernel.astype(dtype).reshape(2, -1)
    owner[:_CHUNK][owner[:_CHUNK] % 3 == 1] = tasks  # Not all in each chunk.
    owner = owner.reshape(2, -1)
    digests, counts = fingerprint.owned_digests(kernel, owner, tasks)
    numbers = range(1, tasks + 1)
    assert digests == [_digest_of_one(kernel, owner, n) for n in numbers]
    assert counts.tolist() == [np.count_nonzero(owner == n) for n in numbers]


@given(packed=_PACKED, chunk=st.sampled_from([1, 3, 8, _CHUNK]))
@_quick
def test_owned_digests_count_what_they_hash(packed, chunk):
    kernel, owner = packed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fingerprint, "_CHUNK", chunk)
        for tasks in (1, 3, 5):
            _, counts = fingerprint.owned_digests(kernel, owner, tasks)
            assert counts.tolist() == [
                np.count_nonzero(owner == task) for task in range(1, tasks + 1)
            ]


class _Network:
    """Two packed kernels, a bias and two heads, made by hand."""

    def __init__(self):
        generator = np.random.default_rng(0)
        self.variables = {}
        self.owners = {}
        for name, shape in [("a", (3, 4)), ("b", (4, 2))]:
            self.variables[name] = keras.Variable(generator.normal(size=shape))
            self.owners[name] = keras.Variable(
                generator.integers(0, 3, shape), dtype="uint8", trainable=False
            )
        self.variables["bias"] = keras.Variable(generator.normal(size=(4,)))
        self.variables["seed"] = keras.Variable(
            [1, 2], dtype="uint32", trainable=False
        )
        protections = {"bias": inventory.FROZEN, "seed": inventory.SEED}
        self.entries = [
            inventory.Entry(
                f"{name}/kernel",
                name,
                None,
                variable,
                Kind.WEIGHT,
                protections.get(name, inventory.PACKED),
                "a test",
                self.owners.get(name),
            )
            for name, variable in self.variables.items()
        ]
        inputs = keras.Input((2,))
        self.heads = [
            keras.Model(inputs, keras.layers.Dense(3, name="out")(inputs))
            for _ in range(2)
        ]

    def measure(self):
        measured = fingerprint.measure(self.entries, self.heads)
        return [record for record, _ in measured]

    def shares(self, task):
        return fingerprint.shares(self.entries, self.heads[task - 1], task)

    def freeze(self, task):
        """Returns a record as it is when a task is frozen."""
        return fingerprint.with_sketches(
            self.measure()[task - 1], self.shares(task)
        )

    def check(self, expected, task):
        fingerprint.check(
            expected,
            self.measure()[task - 1],
            "birds",
            lambda: self.shares(task),
        )

    def change(self, name, task=None):
        """Changes all of a variable, or what one task owns of it."""
        variable = self.variables[name]
        value = variable.numpy()
        if task is None:
            value = value + 1
        else:
            value = np.where(self.owners[name].numpy() == task, 9, value)
        variable.assign(value)

    def change_head(self, task):
        """Changes the bias of a head."""
        _, bias = self.heads[task - 1].weights
        bias.assign(bias + 1)


@pytest.fixture
def network():
    return _Network()


def test_measure_covers_backbone_and_head(network):
    first, second = network.measure()
    assert set(first.backbone) == {"a/kernel", "b/kernel", "bias/kernel"}
    assert set(second.backbone) == {"a/kernel", "b/kernel"}
    assert set(first.head) == {"out/kernel", "out/bias"}
    for record in (first, second):
        texts = [*record.backbone.values(), *record.head.values()]
        assert all(map(_is_sha256, [*texts, record.base, record.fingerprint]))
    assert network.measure() == [first, second]


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        (lambda network: network.change("a", task=0), []),
        (lambda network: network.change("a", task=1), [1, 2]),
        (lambda network: network.change("b", task=2), [2]),
        (lambda network: network.change("bias"), [1, 2]),
        (lambda network: network.change("seed"), []),
        (lambda network: network.change_head(1), [1]),
        (lambda network: network.change_head(2), [2]),
        (lambda network: network.owners["a"].assign(np.ones((3, 4))), [1, 2]),
    ],
    ids=[
        "free",
        "first",
        "second",
        "bias",
        "seed",
        "head_1",
        "head_2",
        "owner",
    ],
)
def test_measure_sees_all_that_a_task_depends_on(network, change, changed):
    before = [record.fingerprint for record in network.measure()]
    change(network)
    after = [record.fingerprint for record in network.measure()]
    assert _changed(before, after) == changed


def test_measure_is_the_same_with_more_tasks(network):
    first, second = network.measure()
    network.heads.append(network.heads[1])
    assert network.measure()[:2] == [first, second]


def test_measuring_and_sketching_copy_no_weight(network):
    kernel = keras.Variable(np.ones((2000, 1000), np.float32))
    owner = keras.Variable(
        np.ones((2000, 1000)), dtype="uint8", trainable=False
    )
    packed = dataclasses.replace(
        network.entries[0], variable=kernel, owner=owner
    )
    network.entries = [packed]
    network.measure()  # Whatever is made once is made now.
    tracemalloc.start()
    try:
        network.freeze(1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 6e6  # The weight is 8 MB.


def test_measure_without_tasks_is_empty(network):
    network.heads.clear()
    assert network.measure() == []


def test_measure_tells_what_the_fingerprints_cover(network):
    (_, first), (_, second) = fingerprint.measure(
        network.entries, network.heads
    )
    owners = [owner.numpy() for owner in network.owners.values()]
    for proof, record, task in zip((first, second), network.measure(), (1, 2)):
        visible = sum(np.isin(o, range(1, task + 1)).sum() for o in owners)
        assert proof.fingerprint == record.fingerprint
        assert proof.variables == 3 + 2
        assert proof.entries == visible + 4 + 2 * 3 + 3
    assert second.entries > first.entries


def test_freezing_sketches_what_has_a_digest(network):
    for task in (1, 2):
        record = network.freeze(task)
        assert set(record.sketches) == {"backbone", "per_task", "head"}
        for part, sketches in record.sketches.items():
            assert set(sketches) == set(getattr(record, part))
        for name, owner in network.owners.items():
            owned = np.count_nonzero(owner.numpy() == task)
            assert record.sketches["backbone"][f"{name}/kernel"].entries == (
                owned
            )


def test_sketches_are_not_part_of_the_fingerprint(network):
    plain = network.measure()[0]
    frozen = network.freeze(1)
    assert frozen.sketches
    assert not plain.sketches
    assert frozen.fingerprint == plain.fingerprint


def test_check_accepts_what_is_the_same(network):
    first = network.freeze(1)
    network.change("a", task=2)
    network.change("b", task=0)
    network.check(first, 1)


def test_check_reads_no_values_when_all_is_well(network):
    first = network.freeze(1)
    fingerprint.check(first, network.measure()[0], "birds", None)


@pytest.mark.parametrize(
    ("names", "first_name", "entries"),
    [
        (["a"], "a/kernel", None),
        (["b"], "b/kernel", None),
        (["bias"], "bias/kernel", 4),
        (["bias", "b"], "b/kernel", None),
        (["a", "b", "bias"], "a/kernel", None),
    ],
)
def test_check_names_the_first_variable_that_differs(
    network, names, first_name, entries
):
    expected = network.freeze(1)
    for name in names:
        network.change(name)
    actual = network.measure()[0]
    with pytest.raises(FingerprintError) as info:
        network.check(expected, 1)
    assert isinstance(info.value, PackNetError)
    assert isinstance(info.value, RuntimeError)
    if entries is None:
        owner = network.owners[first_name[0]].numpy()
        entries = np.count_nonzero(owner == 1)
    message = str(info.value)
    assert "Task 'birds' has changed" in message
    assert f"'{first_name}' in its backbone, in {entries} entries of " in (
        message
    )
    assert f"Of its 5 variables {len(names)} differ" in message
    assert f"Received: sha256={actual.backbone[first_name]}" in message
    assert message.endswith(expected.backbone[first_name])


def test_check_names_a_variable_of_the_head(network):
    expected = network.freeze(2)
    network.change_head(2)
    with pytest.raises(
        FingerprintError,
        match="'out/bias' in its head, in 3 entries of 3",
    ):
        network.check(expected, 2)


@pytest.mark.parametrize("task", [1, 2])
def test_check_counts_one_entry_of_what_a_task_owns(network, task):
    expected = network.freeze(task)
    owner = network.owners["a"].numpy()
    value = network.variables["a"].numpy()
    for index in np.ndindex(owner.shape):
        changed = value.copy()
        changed[index] += 1
        network.variables["a"].assign(changed)
        if owner[index] == task:
            with pytest.raises(FingerprintError, match="in 1 entry of"):
                network.check(expected, task)
        elif owner[index] == 0 or task == 1:
            network.check(expected, task)


def test_check_tells_of_a_moved_owner(network):
    expected = network.freeze(2)
    owner = network.owners["b"].numpy()
    owned = np.count_nonzero(owner == 2)
    owner.reshape(-1)[np.flatnonzero(owner == 2)[0]] = 0
    network.owners["b"].assign(owner)
    with pytest.raises(
        FingerprintError,
        match=f"in 1 entry: the task owned {owned} and owns {owned - 1} now",
    ):
        network.check(expected, 2)


def test_check_tells_of_another_shape(network):
    expected = network.freeze(1)
    index = list(network.variables).index("bias")
    network.entries[index] = dataclasses.replace(
        network.entries[index], variable=keras.Variable(np.zeros((2, 2)))
    )
    with pytest.raises(
        FingerprintError, match=r"whose shape was \(4,\) and is \(2, 2\) now"
    ):
        network.check(expected, 1)


def test_check_does_without_sketches(network):
    expected = network.measure()[0]
    network.change("bias")
    with pytest.raises(
        FingerprintError, match=r"'bias/kernel' in its backbone\. Of its 5 "
    ):
        network.check(expected, 1)


def test_check_tells_of_an_earlier_task(network):
    expected = network.freeze(2)
    network.change("a", task=1)
    actual = network.measure()[1]
    with pytest.raises(FingerprintError, match="an earlier task") as info:
        network.check(expected, 2)
    assert f"Received: fingerprint={actual.fingerprint}" in str(info.value)


def test_check_names_a_variable_that_is_gone(network):
    expected = network.freeze(1)
    del network.entries[list(network.variables).index("b")]
    with pytest.raises(
        FingerprintError,
        match="'b/kernel' in its backbone, which is not there now",
    ):
        network.check(expected, 1)


def test_check_names_a_variable_that_is_new(network):
    index = list(network.variables).index("b")
    entry = network.entries.pop(index)
    expected = network.freeze(1)
    network.entries.insert(index, entry)
    with pytest.raises(
        FingerprintError,
        match="'b/kernel' in its backbone, which was not there then",
    ):
        network.check(expected, 1)
