"""What a frozen task computes with, hashed.

Each variable has a SHA-256 digest; of a packed weight, the entries that each
task owns (positions and values) have one each. The fingerprint of task t is
the hash of the backbone's fingerprint up to task t - 1, the digests of what
task t owns, and those of its per-task variables and its head. It covers
everything that the task's outputs depend on and nothing else, so one pass over
the weights checks all tasks.
"""

import dataclasses
import hashlib
import json
from typing import Any

import keras
import numpy as np

from packnet_tf import graphs
from packnet_tf import inventory
from packnet_tf import variables
from packnet_tf.errors import FingerprintError

_CHUNK = 1 << 16  # Entries hashed at a time; positions fit into two bytes.


@dataclasses.dataclass(frozen=True)
class Record:
    """The digests of one task.

    Attributes:
        backbone: SHA-256 per backbone variable, of what this task owns in it.
        per_task: SHA-256 per backbone variable of which each task has its own.
        head: SHA-256 per variable of the task's head.
        base: SHA-256 of the backbone as this task sees it.
        fingerprint: SHA-256 of `base`, the per-task variables and the head.
    """

    backbone: dict[str, str]
    per_task: dict[str, str]
    head: dict[str, str]
    base: str
    fingerprint: str

    def to_config(self) -> dict[str, Any]:
        """Returns the record as a dict that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Record":
        """Makes a record from what `to_config` returned."""
        return cls(**config)


def measure(
    entries: list[inventory.Entry], heads: list[keras.Model]
) -> list[Record]:
    """Computes the record of every task.

    Args:
        entries: The backbone's variables, as `inventory.take` lists them.
        heads: The heads of task 1, 2, and so on.

    Returns:
        One record per task.
    """
    if not heads:
        return []
    owned: list[dict[str, str]] = [{} for _ in heads]
    per_task: list[dict[str, str]] = [{} for _ in heads]
    for entry in entries:
        if entry.protection == inventory.SEED:
            continue
        if entry.protection == inventory.PER_TASK:
            for task, of_task in enumerate(per_task, 1):
                of_task[entry.key] = digest(entry.of_task(task).numpy())
            continue
        if entry.owner is None:
            owned[0][entry.key] = digest(entry.variable.numpy())
            continue
        digests = owned_digests(
            entry.variable.numpy(), entry.owner.numpy(), len(heads)
        )
        for of_task, value in zip(owned, digests):
            of_task[entry.key] = value
    records = []
    base = ""
    for backbone, own, head in zip(owned, per_task, heads):
        base = _combine(base, backbone)
        of_head = {
            key: digest(variable.numpy())
            for name, layer in graphs.walk_layers(head)
            for key, variable in variables.walk(layer, f"{name}/")
            if not variables.is_seed(variable)
        }
        fingerprint = _combine(_combine(base, own), of_head)
        records.append(Record(backbone, own, of_head, base, fingerprint))
    return records


def check(expected: Record, actual: Record, task: str) -> None:
    """Checks that a task still computes with what it was frozen with.

    Args:
        expected: The record taken when the task was frozen.
        actual: The record of the task now.
        task: Name of the task, for the message.

    Raises:
        FingerprintError: If they differ; names the task and the first
            variable that differs.
    """
    for part in ("backbone", "per_task", "head"):
        before, now = getattr(expected, part), getattr(actual, part)
        for key in [*before, *(key for key in now if key not in before)]:
            if before.get(key) != now.get(key):
                raise FingerprintError(
                    f"Task '{task}' has changed since it was frozen; the "
                    f"first variable that differs is '{key}' in its {part}. "
                    "Go back to the last file that verifies, and train only "
                    "by `fit()`, `train_on_batch()` or "
                    "`model.apply_gradients()`. Received: "
                    f"sha256={now.get(key)}, expected {before.get(key)}"
                )
    if expected.fingerprint != actual.fingerprint:
        raise FingerprintError(
            f"Task '{task}' has changed since it was frozen: its own weights "
            "are as they were, but those of an earlier task are not. Received: "
            f"fingerprint={actual.fingerprint}, expected "
            f"{expected.fingerprint}"
        )


def digest(value: np.ndarray) -> str:
    """Hashes an array: its shape, its dtype and its bytes.

    Args:
        value: Array of any shape and dtype.

    Returns:
        SHA-256 in hexadecimal.
    """
    hasher = _hasher(value)
    hasher.update(value.tobytes())
    return hasher.hexdigest()


def owned_digests(
    kernel: np.ndarray, owner: np.ndarray, tasks: int
) -> list[str]:
    """Hashes what each task owns of a packed weight, in one pass.

    Args:
        kernel: Array of any shape.
        owner: Its `uint8` owner map.
        tasks: How many tasks there are.

    Returns:
        For task 1, 2, ..., the SHA-256 of the positions it owns and of the
        values there.
    """
    hashers = [_hasher(kernel) for _ in range(tasks)]
    kernel, owner = kernel.reshape(-1), owner.reshape(-1)
    for start in range(0, owner.size, _CHUNK):
        owners = owner[start : start + _CHUNK]
        order = np.argsort(owners, kind="stable").astype("<u2")
        values = kernel[start : start + _CHUNK][order]
        ends = np.cumsum(np.bincount(owners, minlength=tasks + 1))
        for task, hasher in enumerate(hashers, 1):
            first, last = ends[task - 1], ends[task]
            if first == last:
                continue
            hasher.update(np.array([start, last - first], "<u8").tobytes())
            hasher.update(order[first:last].tobytes())
            hasher.update(values[first:last].tobytes())
    return [hasher.hexdigest() for hasher in hashers]


def _hasher(value: np.ndarray) -> Any:
    return hashlib.sha256(f"{value.dtype.name}{list(value.shape)}".encode())


def _combine(base: str, digests: dict[str, str]) -> str:
    text = json.dumps([base, sorted(digests.items())])
    return hashlib.sha256(text.encode()).hexdigest()
