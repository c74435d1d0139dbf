"""Finds the data of a source: bundled, a folder, an .npz file or from TFDS."""

import dataclasses
import functools
import pathlib
from typing import Any

import numpy as np
from loading import bundled
from loading import decoding
from loading import folders
from loading import image_store
from loading import images
from loading import npz_files
from loading import streams
from loading import tfds_sets
from loading.bundled import DataError
from loading.parts import Part
from loading.specs import Settings
from loading.specs import Spec


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """What was found.

    Attributes:
        class_names: Entry `i` names label `i`.
        parts: By name, decoded or not.
        boxed: Whether images are cut to a bounding box.
    """

    class_names: tuple[str, ...]
    parts: "dict[str, Part | decoding.Images]"
    boxed: bool = False

    @property
    def undecoded(self) -> list[decoding.Images]:
        """The parts that are not decoded yet, in order."""
        return [
            part
            for part in self.parts.values()
            if isinstance(part, decoding.Images)
        ]


def check(spec: Spec, settings: Settings) -> None:
    """Checks that there is a source, without a download or decoding.

    Args:
        spec: The source.
        settings: How data is prepared.

    Raises:
        DataError: If it is made of another, unknown or missing.
    """
    if spec.base != spec:
        raise DataError(
            "`split` and `permuted` take a source that is neither. "
            f"Received: {str(spec)!r}"
        )
    boxed = spec.name in settings.boxed
    if boxed and spec.kind != "tfds":
        raise DataError(
            "--boxed names tasks from TensorFlow Datasets, which come with "
            f"bounding boxes. Received: {spec.name!r}, from {spec.kind}"
        )
    if spec.kind == "folder":
        folders.check(spec.place)
    elif spec.kind == "npz":
        npz_files.check(spec.place)
    elif spec.kind == "tfds":
        tfds_sets.check(spec.place, settings.tfds_dir, boxed)


def find(spec: Spec, settings: Settings) -> Source:
    """Finds a source that is not made of another.

    Args:
        spec: The source, which was checked.
        settings: How data is prepared.

    Returns:
        What is there; of folders and TFDS not decoded yet.

    Raises:
        DataError: If it is unknown, missing, damaged or malformed.
    """
    boxed = spec.name in settings.boxed
    finders = {
        "bundled": _find_bundled,
        "folder": _find_folder,
        "npz": _find_npz,
        "tfds": _find_tfds,
    }
    return finders[spec.kind](spec, settings, boxed)


def _find_bundled(spec: Spec, settings: Settings, boxed: bool) -> Source:
    data = bundled.load(spec.place, settings.size, settings.data_dir)
    parts = {}
    for part in ("train", "val", "test"):
        x, y = getattr(data, f"x_{part}"), getattr(data, f"y_{part}")
        if settings.channels == 3:
            x = np.repeat(x, 3, axis=-1)
        parts[part] = Part.whole(x, y)
    return Source(data.class_names, parts)


def _find_folder(spec: Spec, settings: Settings, boxed: bool) -> Source:
    place = pathlib.Path(spec.place)
    listing = folders.find(place)
    shape = (settings.size, settings.size, settings.channels)
    parts = {}
    for part, found in listing.parts.items():
        title = f"{spec.name} ({part})"
        key = {
            "folder": str(place.resolve()),
            "files": [_identity(path, place) for path, _ in found],
        }

        def examples(found=found):
            for path, label in found:
                yield (
                    path.relative_to(place).as_posix(),
                    lambda path=path: images.read(path, *shape[1:]),
                    label,
                )

        def stream(found=found, key=key, title=title):
            return _stream_folder(found, place, key, shape, settings, title)

        parts[part] = decoding.Images(
            title, key, shape, len(found), examples, stream
        )
    return Source(listing.class_names, parts)


def _stream_folder(
    found: list[tuple[pathlib.Path, int]],
    place: pathlib.Path,
    key: dict[str, Any],
    shape: tuple[int, int, int],
    settings: Settings,
    title: str,
) -> image_store.Stored:
    checked = streams.index(
        pathlib.Path(settings.cache_dir),
        key,
        lambda: streams.check_all(
            [path for path, _ in found], images.check, title
        ),
    )
    skipped = tuple(
        f"{found[row][0].relative_to(place).as_posix()}: {reason}"
        for row, reason in zip(checked["bad"], checked["reasons"])
    )
    if len(skipped) > settings.max_bad:
        raise streams.too_many_bad(skipped, settings.max_bad, title)
    good = np.setdiff1d(np.arange(len(found)), checked["bad"])
    names = key["files"]
    stream = streams.Stream(
        # Name and size; a copy of the folder is of other times.
        [f"{names[row][0]} {names[row][1]}" for row in good],
        shape,
        lambda row: images.read(found[good[row]][0], *shape[1:]),
        settings.max_bad - len(skipped),
        title,
    )
    labels = np.array([found[row][1] for row in good], np.int32)
    return image_store.Stored(stream, labels, skipped)


def _find_npz(spec: Spec, settings: Settings, boxed: bool) -> Source:
    arrays = npz_files.read(spec.place)
    size = (settings.size, settings.size)
    parts = {}
    for part in ("train", "val", "test"):
        if f"x_{part}" not in arrays:
            continue
        x = arrays[f"x_{part}"]
        if x.shape[1:] != (*size, settings.channels):
            x = np.stack(
                [
                    images.resize(image, settings.size, settings.channels)
                    for image in x
                ]
            )
        parts[part] = Part.whole(x, arrays[f"y_{part}"])
    return Source(tuple(arrays["class_names"].tolist()), parts)


def _find_tfds(spec: Spec, settings: Settings, boxed: bool) -> Source:
    source = tfds_sets.find(
        spec.place, settings.tfds_dir, settings.download, boxed
    )
    size = settings.boxed_size if boxed else settings.size
    shape = (size, size, settings.channels)
    parts = {}
    for part, split in source.splits.items():
        title = f"{spec.name} ({part})"
        parts[part] = decoding.Images(
            title,
            {
                "tfds": source.name,
                "split": split,
                "boxed": boxed,
                "data": str(source.builder.data_path),
            },
            shape,
            source.count(part),
            functools.partial(source.examples, part, *shape[1:], boxed),
            functools.partial(
                source.stream,
                part,
                shape,
                boxed,
                pathlib.Path(settings.cache_dir),
                settings.max_bad,
                title,
            ),
        )
    return Source(source.class_names, parts, boxed)


def _identity(path: pathlib.Path, folder: pathlib.Path) -> list[str | int]:
    """Returns what changes when a file does."""
    status = path.stat()
    name = path.relative_to(folder).as_posix()
    return [name, status.st_size, status.st_mtime_ns]
