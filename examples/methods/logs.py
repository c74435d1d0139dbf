"""Logs of a run: one line per epoch in a file, curves for TensorBoard.

The line of an epoch is on the disk before its checkpoint is. So a run that was
killed finds lines of all epochs that are done, and maybe of one that it does
again: that line goes first.
"""

import importlib.util
import json
import os
import pathlib
import time
from typing import Any

import keras
import tensorflow as tf

import packnet_tf
from packnet_tf import files
from packnet_tf.errors import FileError

_FILE = "log.jsonl"


def callbacks(
    folder: pathlib.Path, method: str, task: str, phase: str, before: int = 0
) -> list[keras.callbacks.Callback]:
    """Returns what logs a phase of training.

    Args:
        folder: Where logs go: `log.jsonl` and `tensorboard/`.
        method: Name of the method.
        task: Name of the task.
        phase: Name of the phase.
        before: Epochs of the task in the phases before.

    Returns:
        Keras callbacks, for which what saves a checkpoint has to wait. Where
        TensorBoard is not installed there are no curves for it.
    """
    found: list[keras.callbacks.Callback] = [
        Journal(
            folder, {"method": method, "task": task, "phase": phase}, before
        )
    ]
    if importlib.util.find_spec("tensorboard") is not None:
        found.append(Curves(folder / "tensorboard" / method / task, before))
    return found


def seconds(folder: pathlib.Path, method: str) -> float:
    """Returns how long a method has trained: what its lines say in all."""
    lines = (_parse(line) for line in _read(folder / _FILE))
    return sum(
        line.get("seconds", 0.0)
        for line in lines
        if line.get("method") == method
    )


class Journal(keras.callbacks.Callback):
    """Writes a line of JSON after each epoch, with the seconds it took.

    Args:
        folder: Where `log.jsonl` is.
        about: What each line begins with: `"method"`, `"task"` and others.
        before: Epochs of the task in the phases before.
    """

    def __init__(
        self, folder: pathlib.Path, about: dict[str, str], before: int
    ) -> None:
        super().__init__()
        self._path = folder / _FILE
        self._about = about
        self._before = before
        self._begun = False
        self._since = time.monotonic()

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._begun = False
        self._since = time.monotonic()

    def on_epoch_begin(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        if not self._begun:
            self._forget(self._before + epoch + 1)
            self._begun = True

    def on_epoch_end(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        now = time.monotonic()
        took, self._since = now - self._since, now
        line = {
            **self._about,
            "epoch": self._before + epoch + 1,
            "seconds": round(took, 3),
            **{name: float(value) for name, value in (logs or {}).items()},
        }
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise FileError(
                f"The log of the run cannot be written: {error}. Make room, "
                "then start the run again: it goes on from its last completed "
                f"epoch. Received: {self._path}"
            ) from error

    def _forget(self, epoch: int) -> None:
        """Removes what was logged from an epoch on, and half a line."""
        method, task = self._about["method"], self._about["task"]
        lines = _read(self._path)
        kept, again = [], False
        for line in lines:
            found = _parse(line)
            if found.get("method") == method:
                # A method learns one task after the other, so that all that
                # follows comes again, too.
                if found.get("task") == task:
                    again = again or found.get("epoch", 0) >= epoch
                if again:
                    continue
            if line.endswith(b"\n"):
                kept.append(line)
        if len(kept) < len(lines):
            with files.replacing(self._path) as new:
                new.write_bytes(b"".join(kept))


def _read(path: pathlib.Path) -> list[bytes]:
    if not path.exists():
        return []
    return path.read_bytes().splitlines(keepends=True)


def _parse(line: bytes) -> dict[str, Any]:
    """Returns what a line says; nothing if that is no object of JSON."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


class Curves(keras.callbacks.Callback):
    """Writes scalars for TensorBoard after each epoch.

    All that Keras logs; of a packed model also the sparsity and capacity of
    each layer: the share of its packed weights that the newest task owns, and
    that is free.

    Args:
        folder: Where TensorBoard finds them.
        before: Epochs of the task in the phases before.
    """

    def __init__(self, folder: pathlib.Path, before: int) -> None:
        super().__init__()
        self._folder = folder
        self._before = before

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._writer = tf.summary.create_file_writer(str(self._folder))

    def on_epoch_end(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        step = self._before + epoch + 1
        with self._writer.as_default(step):
            for name, value in (logs or {}).items():
                tf.summary.scalar(f"epoch/{name}", value)
            if isinstance(self.model, packnet_tf.PackNetModel):
                self._write_capacity()
        self._writer.flush()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._writer.close()

    def _write_capacity(self) -> None:
        capacity = self.model.summary_capacity(print_fn=lambda text: None)
        for key, counts in capacity.layers.items():
            free, newest, size = counts[0], counts[-1], sum(counts)
            pool = free + newest
            tf.summary.scalar(f"sparsity/{key}", free / pool if pool else 0.0)
            tf.summary.scalar(f"owned/{key}", newest / size)
            tf.summary.scalar(f"free/{key}", free / size)
