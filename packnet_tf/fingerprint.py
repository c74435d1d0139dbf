"""What a frozen task computes with, hashed.

Each variable has a SHA-256 digest; of a packed weight, the entries that each
task owns (positions and values) have one each. The fingerprint of task t is
the hash of the backbone's fingerprint up to task t - 1, the digests of what
task t owns, and those of its per-task variables and its head. It covers
everything that the task's outputs depend on and nothing else, so one pass over
the weights checks all tasks. A sketch beside each digest tells how much has
changed when one differs; sketches are not hashed.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import struct
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any
from typing import NamedTuple

import keras
import numpy as np

from packnet_tf import behind
from packnet_tf import difference
from packnet_tf import graphs
from packnet_tf import inventory
from packnet_tf import variables
from packnet_tf.errors import FingerprintError
from packnet_tf.record import PARTS
from packnet_tf.record import Proof
from packnet_tf.record import Record

_CHUNK = 1 << 16  # Entries hashed at a time; positions fit into two bytes.
_LARGE = 1 << 20  # Entries; of fewer, a thread costs more than it saves.
_FEW = 8  # Up to so many tasks, to look for each is faster than to sort.


class Share(NamedTuple):
    """What a task owns of a variable.

    Attributes:
        variable: The variable.
        task: The task's number.
        owner: The owner map of a packed weight, `None` where the task owns
            the whole variable.
    """

    variable: keras.Variable
    task: int
    owner: keras.Variable | None = None

    def sketch(self) -> difference.Sketch:
        """Returns the sketch of the entries that the task owns."""
        owner = None if self.owner is None else variables.view(self.owner)
        return difference.sketch(
            variables.view(self.variable), owner, self.task
        )

    def may_have(self, sketch: difference.Sketch) -> bool:
        """Tells whether a sketch is one of such a variable."""
        shape, dtype = tuple(self.variable.shape), self.variable.dtype
        return (sketch.shape, sketch.dtype) == (shape, dtype)


def measure(
    entries: list[inventory.Entry],
    heads: list[keras.Model],
    read: Callable[[keras.Variable], Any] = variables.view,
) -> list[tuple[Record, Proof]]:
    """Computes the record of every task, without sketches.

    Args:
        entries: The backbone's variables, as `inventory.take` lists them.
        heads: The heads of task 1, 2, and so on.
        read: Returns the value of a variable as an array; another one than
            its own tells what the records would be with that.

    Returns:
        One record per task, and how much it covers.
    """
    if not heads:
        return []
    owned: list[dict[str, str]] = [{} for _ in heads]
    sizes = np.zeros(len(heads), np.int64)
    kept = [e for e in entries if e.protection == inventory.PER_TASK]
    per_task = [_per_task_variables(kept, n + 1) for n in range(len(heads))]
    shared = 0
    for entry in entries:
        if entry.protection in (inventory.SEED, inventory.PER_TASK):
            continue
        shared += 1
        value = read(entry.variable)
        if entry.owner is None:
            owned[0][entry.key] = digest(value)
            sizes[0] += value.size
            continue
        digests, counts = owned_digests(
            value, variables.view(entry.owner), len(heads)
        )
        sizes += counts
        for of_task, text in zip(owned, digests):
            of_task[entry.key] = text
    measured = []
    base = ""
    for backbone, own, head, size in zip(
        owned, per_task, heads, np.cumsum(sizes).tolist()
    ):
        base = _combine(base, backbone)
        of_head = _head_variables(head)
        parts = [
            {key: digest(read(variable)) for key, variable in part.items()}
            for part in (own, of_head)
        ]
        fingerprint = _combine(_combine(base, parts[0]), parts[1])
        alone = [*own.values(), *of_head.values()]
        size += sum(math.prod(variable.shape) for variable in alone)
        measured.append(
            (
                Record(backbone, *parts, base, fingerprint),
                Proof(fingerprint, shared + len(alone), size),
            )
        )
    return measured


def shares(
    entries: list[inventory.Entry], head: keras.Model, task: int
) -> dict[str, dict[str, Share]]:
    """Lists what a task owns; no value is read.

    Args:
        entries: The backbone's variables, as `inventory.take` lists them.
        head: The head of the task.
        task: The number of the task.

    Returns:
        Of each part of the task's record, a share per variable that has a
        digest there.
    """
    return {
        "backbone": {
            entry.key: Share(entry.variable, task, entry.owner)
            for entry in entries
            if entry.protection not in (inventory.SEED, inventory.PER_TASK)
            and (entry.owner is not None or task == 1)
        },
        "per_task": {
            key: Share(variable, task)
            for key, variable in _per_task_variables(entries, task).items()
        },
        "head": {
            key: Share(variable, task)
            for key, variable in _head_variables(head).items()
        },
    }


def with_sketches(record: Record, owned: dict[str, dict[str, Share]]) -> Record:
    """Completes the record of a task that is being frozen, or was loaded.

    Args:
        record: Its record. Sketches that it has are kept.
        owned: What the task owns, as `shares` lists it.

    Returns:
        The record with a sketch of every variable.
    """
    sketches: dict[str, dict[str, difference.Sketch]] = {}
    for part, of_part in owned.items():
        known = record.sketches.get(part, {})
        sketches[part] = {}
        for key, share in of_part.items():
            sketch = known.get(key)
            if sketch is None or not share.may_have(sketch):
                sketch = share.sketch()
            sketches[part][key] = sketch
    return dataclasses.replace(record, sketches=sketches)


def check(
    expected: Record,
    actual: Record,
    task: str,
    list_owned: Callable[[], dict[str, dict[str, Share]]],
) -> None:
    """Checks that a task still computes with what it was frozen with.

    Args:
        expected: The record taken when the task was frozen.
        actual: The record of the task now.
        task: Name of the task, for the message.
        list_owned: Returns what the task owns now, as `shares` does; called
            only if the records differ.

    Raises:
        FingerprintError: If they differ; names the task and the first
            variable that differs, and tells how many of its entries do.
    """
    if dataclasses.replace(expected, sketches=actual.sketches) == actual:
        return
    keys: list[tuple[str, str]] = []
    for part in PARTS:
        before, now = getattr(expected, part), getattr(actual, part)
        keys += [(part, key) for key in before | now]
    wrong = [
        (part, key)
        for part, key in keys
        if getattr(expected, part).get(key) != getattr(actual, part).get(key)
    ]
    if wrong:
        part, key = wrong[0]
        before = getattr(expected, part).get(key)
        now = getattr(actual, part).get(key)
        how = ""
        if before is None:
            how = ", which was not there then"
        elif now is None:
            how = ", which is not there now"
        elif key in expected.sketches.get(part, {}):
            now_owned = list_owned()[part][key].sketch()
            before_owned = expected.sketches[part][key]
            how = f", {difference.describe(before_owned, now_owned)}"
        raise FingerprintError(
            f"Task '{task}' has changed since it was frozen; the first "
            f"variable that differs is '{key}' in its {part}{how}. Of its "
            f"{len(keys)} variables {len(wrong)} "
            f"{'differs' if len(wrong) == 1 else 'differ'}. Go back to the "
            "last file that verifies, and train only by `fit()`, "
            "`train_on_batch()` or `model.apply_gradients()`. Received: "
            f"sha256={now}, expected {before}"
        )
    if expected.fingerprint != actual.fingerprint:
        raise FingerprintError(
            f"Task '{task}' has changed since it was frozen: its own weights "
            "are as they were, but those of an earlier task are not. Received: "
            f"fingerprint={actual.fingerprint}, expected "
            f"{expected.fingerprint}"
        )


def check_own(entries: list[inventory.Entry], number: int, task: str) -> None:
    """Checks that the newest task, frozen, computes with what it keeps.

    Its per-task variables are the layers' own until the next task begins.

    Args:
        entries: The backbone's variables, as `inventory.take` lists them.
        number: Number of the newest task.
        task: Its name, for the message.

    Raises:
        FingerprintError: If one differs from its copy.
    """
    for entry in entries:
        if entry.protection != inventory.PER_TASK:
            continue
        expected = digest(variables.view(entry.of_task(number)))
        now = digest(variables.view(entry.variable))
        if now != expected:
            raise FingerprintError(
                f"Task '{task}' has changed since it was frozen; the first "
                f"variable that differs is '{entry.key}', of which it keeps a "
                "copy. Go back to the last file that verifies. "
                f"Received: sha256={now}, expected {expected}"
            )


def digest(value: np.ndarray) -> str:
    """Hashes an array: its shape, its dtype and its bytes.

    Args:
        value: Array of any shape and dtype.

    Returns:
        SHA-256 in hexadecimal.
    """
    hasher = _hasher(value)
    hasher.update(_bytes(np.ascontiguousarray(value).reshape(-1)))
    return hasher.hexdigest()


def owned_digests(
    kernel: np.ndarray, owner: np.ndarray, tasks: int
) -> tuple[list[str], np.ndarray]:
    """Hashes and counts what each task owns of a packed weight, in one pass.

    Args:
        kernel: Array of any shape.
        owner: Its `uint8` owner map.
        tasks: How many tasks there are.

    Returns:
        For task 1, 2, ..., the SHA-256 of the positions it owns and of the
        values there; and how many they are, an `int64` array of shape
        `(tasks,)`.
    """
    counts = np.zeros(tasks, np.int64)
    hashers = [_hasher(kernel) for _ in range(tasks)]
    kernel, owner = kernel.reshape(-1), owner.reshape(-1)

    def update(start: int, of_tasks: list[tuple[Any, ...]]) -> None:
        for index, count, *parts in of_tasks:
            counts[index] += count
            hasher = hashers[index]
            hasher.update(struct.pack("<QQ", start, count))
            for part in parts:
                hasher.update(part)

    with behind.calling(owner.size >= _LARGE) as call:
        for start in range(0, owner.size, _CHUNK):
            chunk = slice(start, start + _CHUNK)
            call(
                update, start, list(_split(kernel[chunk], owner[chunk], tasks))
            )
    return [hasher.hexdigest() for hasher in hashers], counts


def _split(
    values: np.ndarray, owners: np.ndarray, tasks: int
) -> Iterator[tuple[int, int, memoryview, memoryview]]:
    """Splits a chunk by its owners.

    Yields:
        For each task that owns some of it: the task's number less one, how
        many entries that are, their positions and their values as bytes.
    """
    if tasks <= _FEW:
        for task in range(1, tasks + 1):
            places = np.flatnonzero(owners == task)
            if places.size:
                # Never out of range, and to wrap is faster than to check.
                found = values.take(places, mode="wrap")
                yield (
                    task - 1,
                    places.size,
                    _bytes(places.astype("<u2")),
                    _bytes(found),
                )
        return
    order = np.argsort(owners, kind="stable")
    bounds = np.searchsorted(owners[order], np.arange(1, tasks + 2)).tolist()
    places = _bytes(order.astype("<u2"))
    values = _bytes(values.take(order, mode="wrap"))
    width = len(values) // len(owners)
    for index, (first, last) in enumerate(itertools.pairwise(bounds)):
        if first < last:
            yield (
                index,
                last - first,
                places[2 * first : 2 * last],
                values[width * first : width * last],
            )


def _per_task_variables(
    entries: list[inventory.Entry], task: int
) -> dict[str, keras.Variable]:
    return {
        entry.key: entry.of_task(task)
        for entry in entries
        if entry.protection == inventory.PER_TASK
    }


def _head_variables(head: keras.Model) -> dict[str, keras.Variable]:
    return {
        key: variable
        for name, layer in graphs.walk_layers(head)
        if layer.variables
        for key, variable in variables.walk(layer, f"{name}/")
        if not variables.is_seed(variable)
    }


def _bytes(value: np.ndarray) -> memoryview:
    """Returns the bytes of a contiguous array of one axis, uncopied."""
    return memoryview(value.view(np.uint8))


def _hasher(value: np.ndarray) -> Any:
    return hashlib.sha256(f"{value.dtype.name}{list(value.shape)}".encode())


def _combine(base: str, digests: dict[str, str]) -> str:
    text = json.dumps([base, sorted(digests.items())])
    return hashlib.sha256(text.encode()).hexdigest()
