"""Decodes the images of a task once, and keeps them on disk.

A store is a folder of two files: `images.bin`, the `uint8` images one after
the other, and `index.json`, which says how many there are and their labels.
It is read as a memory map, so that sets larger than the memory can be used.
"""

import dataclasses
import hashlib
import json
import math
import pathlib
from collections.abc import Callable
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from loading import images
from loading import streams
from loading.bundled import DataError
from loading.images import ImageError

from packnet_tf import files

_VERSION = 1
_AT_ONCE = 256


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
    """Decoded images.

    Attributes:
        images: `uint8` array of shape `(n, size, size, channels)`, a memory
            map or a stream.
        labels: `int32` array of shape `(n,)`.
        skipped: Names of what could not be decoded, and why.
    """

    images: "np.ndarray | streams.Stream"
    labels: np.ndarray
    skipped: tuple[str, ...]


def find(
    folder: pathlib.Path, key: dict[str, Any], shape: tuple[int, int, int]
) -> Stored | None:
    """Returns images that are stored already, else `None`.

    Args:
        folder: Where stores are kept.
        key: What the images depend on.
        shape: Of each decoded image.
    """
    return _read(_place(folder, key, shape), shape)


def get(
    folder: pathlib.Path,
    key: dict[str, Any],
    examples: Callable[[], Iterable[tuple[str, Callable[[], np.ndarray], int]]],
    count: int | None,
    shape: tuple[int, int, int],
    max_bad: int,
    title: str,
) -> Stored:
    """Returns decoded images, from the store if they are there.

    Args:
        folder: Where stores are kept.
        key: What the images depend on; another key is another store.
        examples: Yields the name of an image, what decodes it (called from
            several threads), and its label.
        count: How many there are, if known, for the progress bar.
        shape: Of each decoded image.
        max_bad: How many may fail to be decoded; those are left out.
        title: What is decoded, for the progress bar.

    Returns:
        The images.

    Raises:
        DataError: If more than `max_bad` images cannot be decoded.
        FileError: If the store cannot be written.
    """
    place = _place(folder, key, shape)
    found = _read(place, shape)
    if found is None:
        with files.replacing(place) as new:
            new.mkdir()
            _write(new, examples(), count, shape, max_bad, title)
        found = _read(place, shape)
    if found is None:
        raise DataError(
            "What was just written is not there. Choose another --cache_dir, "
            f"which nothing else writes to. Received: {place}"
        )
    if len(found.skipped) > max_bad:
        raise streams.too_many_bad(found.skipped, max_bad, title)
    return found


def _place(
    folder: pathlib.Path, key: dict[str, Any], shape: tuple[int, int, int]
) -> pathlib.Path:
    versions = [_VERSION, images.VERSION]
    text = json.dumps([versions, key, shape], sort_keys=True)
    return folder / hashlib.sha256(text.encode()).hexdigest()[:32]


def _write(
    folder: pathlib.Path,
    examples: Iterable[tuple[str, Callable[[], np.ndarray], int]],
    count: int | None,
    shape: tuple[int, int, int],
    max_bad: int,
    title: str,
) -> None:
    import keras  # After packnet_tf, which checks its backend.

    labels: list[int] = []
    skipped: list[str] = []
    print(f"{title}: decoding", flush=True)
    bar = keras.utils.Progbar(count, unit_name="image", interval=1)
    waiting: list[tuple[str, Callable[[], np.ndarray], int]] = []

    def flush() -> None:
        decoded = pool.map(_try, [decode for _, decode, _ in waiting])
        for (name, _, label), image in zip(waiting, decoded):
            if isinstance(image, ImageError):
                skipped.append(f"{name}: {image}")
                if len(skipped) > max_bad:
                    raise streams.too_many_bad(skipped, max_bad, title)
                continue
            if image.shape != shape or image.dtype != np.uint8:
                raise DataError(
                    f"All images of a task have one shape, {shape}. "
                    f"Received: {name} of shape {image.shape}, {image.dtype}"
                )
            file.write(np.ascontiguousarray(image))
            labels.append(int(label))
        bar.add(len(waiting))
        waiting.clear()

    with (
        (folder / "images.bin").open("wb") as file,
        ThreadPoolExecutor() as pool,
    ):
        for example in examples:
            waiting.append(example)
            if len(waiting) == _AT_ONCE:
                flush()
        flush()
    index = {"labels": labels, "skipped": skipped, "shape": list(shape)}
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")


def _try(decode: Callable[[], np.ndarray]) -> "np.ndarray | ImageError":
    try:
        return decode()
    except ImageError as error:
        return error


def _read(folder: pathlib.Path, shape: tuple[int, int, int]) -> Stored | None:
    """Reads a store; one that is damaged is as good as none."""
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        labels = np.asarray(index["labels"], np.int32)
        size = (folder / "images.bin").stat().st_size
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    if labels.ndim != 1 or size != len(labels) * math.prod(shape):
        return None
    if not size:
        found = np.empty((0, *shape), np.uint8)
    else:
        found = np.memmap(
            folder / "images.bin", np.uint8, "r", shape=(len(labels), *shape)
        )
    return Stored(found, labels, tuple(map(str, index.get("skipped", ()))))
