"""Decides whether images are decoded once and kept, or while training."""

import dataclasses
import math
import pathlib
import shutil
import tempfile
from collections.abc import Callable
from collections.abc import Iterable
from typing import Any

import numpy as np
from loading import image_store

from packnet_tf.errors import FileError

_SPARE = 1.02  # The index, and what else is written meanwhile.


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """Images of a part that are not decoded yet.

    Attributes:
        title: What they are, for progress and errors.
        key: What they depend on.
        shape: Of each decoded image.
        count: How many there are, `None` if that is not known.
        examples: Yields name, decoder and label of each.
        stream: Opens them, to be decoded when they are asked for.
    """

    title: str
    key: dict[str, Any]
    shape: tuple[int, int, int]
    count: int | None
    examples: Callable[[], Iterable[tuple[str, Callable[[], np.ndarray], int]]]
    stream: Callable[[], image_store.Stored]

    @property
    def bytes(self) -> int:
        """What they take when they are decoded, 0 if that is not known."""
        return (self.count or 0) * math.prod(self.shape)


def to_store(
    sources: Iterable[Iterable[Images]],
    folder: pathlib.Path,
    limit: float,
) -> list[Images]:
    """Lists what has to be decoded and stored, if there is room for it.

    Args:
        sources: The parts of each source of data.
        folder: Where decoded images are kept.
        limit: In bytes. A source that takes more is not stored.

    Returns:
        What is to be stored and is not yet.

    Raises:
        FileError: If nothing can be written there, or if the disk has no
            room for all of that.
    """
    chosen = [
        images
        for parts in map(list, sources)
        if not _is_over(parts, limit)
        for images in parts
        if image_store.find(folder, images.key, images.shape) is None
    ]
    if chosen:
        _check_writable(folder)
    needed = int(sum(images.bytes for images in chosen) * _SPARE)
    free = free_bytes(folder)
    if needed > free:
        titles = ", ".join(images.title for images in chosen)
        raise FileError(
            "The decoded images do not fit on the disk. Name a folder of a "
            "larger one with --cache_dir, decode them while training with a "
            "lower --store_gigabytes, or store them smaller with --resize. "
            f"Received: {titles}, which take {gigabytes(needed)}, where "
            f"{gigabytes(free)} are free for --cache_dir={folder}"
        )
    return chosen


def get(
    parts: list[Images], folder: pathlib.Path, limit: float, max_bad: int
) -> list[image_store.Stored]:
    """Returns the images of all parts of a source.

    Args:
        parts: The images.
        folder: Where decoded images are kept.
        limit: In bytes. A source that takes more is not stored.
        max_bad: How many images of a part may fail to be decoded.

    Returns:
        For each part its images, decoded or to be decoded.
    """
    streamed = _is_over(parts, limit)
    found = []
    for images in parts:
        stored = image_store.find(folder, images.key, images.shape)
        if stored is None and streamed:
            found.append(images.stream())
            continue
        if stored is None and images.bytes:
            print(
                f"{images.title}: {gigabytes(images.bytes)} will be stored, "
                f"of {gigabytes(free_bytes(folder))} that are free",
                flush=True,
            )
        found.append(
            image_store.get(
                folder,
                images.key,
                images.examples,
                images.count,
                images.shape,
                max_bad,
                images.title,
            )
        )
    return found


def free_bytes(folder: pathlib.Path) -> int:
    """Returns how much can be written to a folder, which need not exist."""
    return shutil.disk_usage(_existing(folder)).free


def gigabytes(count: int) -> str:
    """Formats a number of bytes."""
    return f"{count / 1e9:,.2f} GB"


def _existing(folder: pathlib.Path) -> pathlib.Path:
    """Returns a folder, or what there is of the way to it."""
    folder = folder.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _check_writable(folder: pathlib.Path) -> None:
    try:
        # What permissions say is not all: /proc takes no files of anyone.
        with tempfile.TemporaryDirectory(dir=_existing(folder)):
            pass
    except OSError as error:
        raise FileError(
            "Decoded images are kept in a folder that is there or can be made, "
            "and can be written to. Name one with --cache_dir. "
            f"Received: --cache_dir={folder} ({error.strerror})"
        ) from None


def _is_over(parts: Iterable[Images], limit: float) -> bool:
    return sum(images.bytes for images in parts) > limit
