"""The examples of a task: to train on, to validate and to test."""

import dataclasses
import hashlib
from typing import Any

import numpy as np
from loading import streams


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """Examples that belong together.

    Attributes:
        images: Array of shape `(m, size, size, channels)`, `uint8`, or
            `float32` in [0, 1]. May be a memory map or a stream, and hold
            more.
        labels: `int32` array of shape `(m,)`.
        rows: Which of them are this part's: int array of shape `(n,)`.
        order: Where each pixel is taken from, of `size * size`; `None` to
            leave them in their places.
        sides: `int32` array of shape `(m,)`, where images are smaller than
            `size`: the height and width of each, which is in the middle.
    """

    images: "np.ndarray | streams.Stream"
    labels: np.ndarray
    rows: np.ndarray
    order: np.ndarray | None = None
    sides: np.ndarray | None = None

    @classmethod
    def whole(cls, images: Any, labels: np.ndarray) -> "Part":
        """Makes a part of all images."""
        return cls(images, labels, np.arange(len(labels)))

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns images and labels at some places in `[0, len)`."""
        rows = self.rows[places]
        images = self.images[rows]
        if self.order is not None:
            flat = images.reshape(len(rows), len(self.order), -1)
            images = flat[:, self.order].reshape(images.shape)
        return images, self.labels[rows]

    def fingerprint(self) -> str:
        """Returns the SHA-256 of all images and labels, in hexadecimal.

        Of a stream, of the names of images: to decode them would take as
        long as an epoch.
        """
        digest = hashlib.sha256(repr(self.images.shape[1:]).encode())
        if isinstance(self.images, streams.Stream):
            digest.update(self.images.fingerprint(self.rows).encode())
            digest.update(np.ascontiguousarray(self.labels[self.rows]))
            if self.order is not None:
                digest.update(np.ascontiguousarray(self.order))
            return digest.hexdigest()
        for start in range(0, len(self), 256):
            x, y = self.take(np.arange(start, min(start + 256, len(self))))
            digest.update(np.ascontiguousarray(x))
            digest.update(np.ascontiguousarray(y))
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """One image-classification task.

    Attributes:
        name: Name of the task.
        source: Where it comes from, as the user gave it.
        class_names: Entry `i` names label `i`.
        train: What is trained on.
        val: What choices are made on.
        test: What is reported, once.
        boxed: Whether images are cut to a bounding box.
        skipped: What could not be decoded, and why.
    """

    name: str
    source: str
    class_names: tuple[str, ...]
    train: Part
    val: Part
    test: Part
    boxed: bool = False
    skipped: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of classes, the units a head needs."""
        return len(self.class_names)

    def fingerprint(self) -> str:
        """Returns a SHA-256 of all that is learned from and tested on."""
        parts = (self.train, self.val, self.test)
        text = "\n".join((*self.class_names, *(p.fingerprint() for p in parts)))
        return hashlib.sha256(text.encode()).hexdigest()
