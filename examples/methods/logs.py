"""Logs of a run: one line per epoch in a file, curves for TensorBoard."""

import importlib.util
import json
import pathlib
import time
from typing import Any

import keras
import tensorflow as tf

import packnet_tf
from packnet_tf import files


def callbacks(
    folder: pathlib.Path, method: str, task: str, phase: str, before: int = 0
) -> list[keras.callbacks.Callback]:
    """Returns what logs a phase of training.

    Args:
        folder: Where logs go: `log.jsonl`, `clock/` and `tensorboard/`.
        method: Name of the method.
        task: Name of the task.
        phase: Name of the phase.
        before: Epochs of the task in the phases before.

    Returns:
        Keras callbacks. Where TensorBoard is not installed there are no
        curves for it.
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
    """Returns how long a method has trained, over all restarts."""
    try:
        return float((folder / "clock" / method).read_text())
    except (OSError, ValueError):
        return 0.0


class Journal(keras.callbacks.Callback):
    """Writes a line of JSON after each epoch, and how long it took.

    Args:
        folder: Where `log.jsonl` and `clock/` are.
        about: What each line begins with; `"method"` names the clock.
        before: Epochs of the task in the phases before.
    """

    def __init__(
        self, folder: pathlib.Path, about: dict[str, str], before: int
    ) -> None:
        super().__init__()
        self._folder = folder
        self._about = about
        self._before = before
        self._since = time.monotonic()

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._since = time.monotonic()

    def on_epoch_end(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        now = time.monotonic()
        took, self._since = now - self._since, now
        method = self._about["method"]
        total = seconds(self._folder, method) + took
        with files.replacing(self._folder / "clock" / method) as new:
            new.write_text(f"{total:.3f}\n")
        line = {
            **self._about,
            "epoch": self._before + epoch + 1,
            "seconds": round(took, 3),
            **{name: float(value) for name, value in (logs or {}).items()},
        }
        with (self._folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


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
