"""Several tasks as one: their images together, their classes side by side."""

import math
from collections.abc import Sequence

import numpy as np
from loading.parts import Dataset
from loading.parts import Part


class JoinedImages:
    """The images of several parts, one part after the other.

    Looks like an array as far as `Part` needs it. Around images that are
    smaller than the largest there is black; where the parts differ in dtype,
    all become floats in [0, 1].

    Args:
        parts: The parts.

    Attributes:
        sides: `int32` array with the height and width of each image; `None`
            where all have the same.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = list(parts)
        self._ends = np.cumsum([len(part) for part in parts])
        sizes = [part.images.shape[1:] for part in parts]
        dtypes = {np.dtype(part.images.dtype) for part in parts}
        self.dtype = dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)
        sides = np.array([size[0] for size in sizes], np.int32)
        side = int(sides.max())
        self.shape = (int(self._ends[-1]), side, side, sizes[0][-1])
        self.sides = None
        if (sides != side).any():
            self.sides = np.repeat(sides, [len(part) for part in parts])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        rows = np.asarray(rows)
        found = np.zeros((len(rows), *self.shape[1:]), self.dtype)
        chosen = np.searchsorted(self._ends, rows, side="right")
        for index in np.unique(chosen):
            part, here = self._parts[index], chosen == index
            first = self._ends[index] - len(part)
            images, _ = part.take(rows[here] - first)
            if images.dtype == np.uint8 and self.dtype != np.uint8:
                images = images / np.float32(255.0)
            start = (self.shape[1] - images.shape[1]) // 2
            middle = slice(start, start + images.shape[1])
            found[here, middle, middle] = images
        return found


def join(data: Sequence[Dataset], name: str) -> Dataset:
    """Makes one task of several.

    Args:
        data: The tasks.
        name: Name of the whole.

    Returns:
        A task whose classes are those of the first, then those of the
        second, and so on.
    """
    offsets = np.cumsum([0, *(task.num_classes for task in data)])

    def together(which: str) -> Part:
        parts = [getattr(task, which) for task in data]
        labels = [
            part.labels[part.rows].astype(np.int32) + np.int32(offset)
            for part, offset in zip(parts, offsets)
        ]
        images = JoinedImages(parts)
        return Part(
            images,
            np.concatenate(labels),
            np.arange(len(images)),
            sides=images.sides,
        )

    return Dataset(
        name,
        ",".join(task.source for task in data),
        tuple(f"{task.name}/{c}" for task in data for c in task.class_names),
        *(together(which) for which in ("train", "val", "test")),
    )


def steps_of(data: Sequence[Dataset], batch_size: int) -> int:
    """Returns how many batches hold the training images of all tasks."""
    return math.ceil(sum(len(task.train) for task in data) / batch_size)
