"""Finds the data of a task: bundled, a folder, an .npz file or from TFDS.

What a task is given as, `[NAME:]SOURCE`, where SOURCE is

- `bundled:NAME`, or NAME alone: data that comes with the examples;
- `folder:PATH`: one folder of images per class, see `folders.find`;
- `npz:PATH`: arrays, see `npz_files.read`;
- `tfds:NAME`, or any other NAME alone: a set of TensorFlow Datasets;
- `split:FIRST-LAST:SOURCE`: some classes of another source;
- `permuted:SEED:SOURCE`: another source, its pixels in another order.
"""

import dataclasses
import functools
import pathlib

import bundled
import derived
import folders
import image_store
import images
import npz_files
import numpy as np
import splitting
import tfds_sets
from bundled import DataError
from parts import Dataset
from parts import Part

BUNDLED = bundled.BUNDLED
KINDS = ("bundled", "folder", "npz", "permuted", "split", "tfds")
_MAX_SIDE = 1024


@dataclasses.dataclass(frozen=True)
class Settings:
    """How data is prepared.

    Attributes:
        size: Height and width that images are stored at, in pixels.
        boxed_size: The same, of tasks cut to their bounding boxes.
        channels: 3 for RGB, 1 for gray.
        boxed: Names of the tasks whose images are cut to bounding boxes.
        val_fraction: Part of each training class that becomes validation
            data, where the source has none.
        test_fraction: Part of each class that becomes test data, where the
            source is not split.
        seed: Of the splits.
        cache_dir: Where decoded images are kept.
        data_dir: Where the bundled data is, `None` for its place.
        tfds_dir: Where TFDS keeps its data, `None` for its default.
        download: Whether TFDS may download.
        max_bad: How many images of a part may fail to be decoded.
    """

    size: int = 28
    boxed_size: int = 28
    channels: int = 1
    boxed: tuple[str, ...] = ()
    val_fraction: float = 0.1
    test_fraction: float = 0.2
    seed: int = 0
    cache_dir: str = "runs/cache"
    data_dir: str | None = None
    tfds_dir: str | None = None
    download: bool = True
    max_bad: int = 10


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a task is given as: its name, and the kind and place of its data."""

    name: str
    kind: str
    place: str


def parse(text: str) -> Spec:
    """Reads `[NAME:]SOURCE`.

    Args:
        text: What the user gave.

    Returns:
        The parts. A task without a name has that of its source.

    Raises:
        DataError: If a part is empty.
    """
    name, source = "", text
    head, colon, rest = text.partition(":")
    if colon and head not in KINDS and not _is_version(rest):
        name, source = head, rest
    kind, colon, place = source.partition(":")
    if not (colon and kind in KINDS):
        kind = "bundled" if source in BUNDLED else "tfds"
        place = source
    if not name and head:
        name = place.partition(":")[0]
        if kind in ("folder", "npz"):
            name = pathlib.PurePath(place).stem
        elif kind in ("permuted", "split"):
            number, _, rest = place.partition(":")
            name = f"{parse(rest).name}_{number}"
        elif kind == "tfds":
            name = name.partition("/")[0]
    if not name or not place:
        raise DataError(
            "A task is given as NAME:SOURCE or SOURCE, where SOURCE is "
            "`folder:PATH`, `npz:PATH`, `bundled:NAME`, "
            "`split:FIRST-LAST:SOURCE`, `permuted:SEED:SOURCE` or a name of "
            f"TensorFlow Datasets. Received: {text!r}"
        )
    return Spec(name, kind, place)


def load(text: str, settings: Settings) -> Dataset:
    """Loads the data of one task.

    Args:
        text: What the task is given as, see `parse`.
        settings: How data is prepared.

    Returns:
        The data. Nothing of the test part is in another.

    Raises:
        DataError: If the data is unknown, missing, damaged or malformed, or
            too little.
        FileError: If decoded images cannot be kept.
    """
    spec = parse(text)
    _check(settings)
    if spec.kind in ("permuted", "split"):
        number, _, source = spec.place.partition(":")
        change = derived.permute if spec.kind == "permuted" else derived.take
        data = change(_load_once(source, settings), number, text)
        return dataclasses.replace(data, name=spec.name, source=text)
    data = _load_source(
        spec.name + ":" + spec.kind + ":" + spec.place, settings
    )
    return dataclasses.replace(data, source=text)


def _load_source(text: str, settings: Settings) -> Dataset:
    """Loads what is not made of another source."""
    spec = parse(text)
    if spec.kind in ("permuted", "split"):
        raise DataError(
            "`split` and `permuted` take a source that is neither. "
            f"Received: {text!r}"
        )
    boxed = spec.name in settings.boxed
    if boxed and spec.kind != "tfds":
        raise DataError(
            "--boxed names tasks from TensorFlow Datasets, which come with "
            f"bounding boxes. Received: {spec.name!r}, from {spec.kind}"
        )
    loaders = {
        "bundled": _load_bundled,
        "folder": _load_folder,
        "npz": _load_npz,
        "tfds": _load_tfds,
    }
    names, parts, skipped = loaders[spec.kind](spec, settings, boxed)
    parts = _split(parts, settings, text)
    return Dataset(
        spec.name, text, names, **parts, boxed=boxed, skipped=skipped
    )


# Several tasks are made of one source.
_load_once = functools.lru_cache(maxsize=1)(_load_source)


def load_test(text: str, settings: Settings) -> Dataset:
    """Loads labelled images to test on, and nothing to train on.

    Args:
        text: `[NAME:]folder:PATH`, with a folder per class; all images of it
            are the test part.
        settings: How data is prepared.

    Returns:
        The data, its other parts empty.

    Raises:
        DataError: If it is no such folder.
    """
    spec = parse(text)
    if spec.kind != "folder":
        raise DataError(
            "Images to test the kept task on are given as `folder:PATH`, a "
            f"folder with one folder per class. Received: {text!r}"
        )
    _check(settings)
    names, parts, skipped = _load_folder(spec, settings, False)
    if "all" not in parts:
        raise DataError(
            "All images of the folder are tested, so it is not split. Name "
            f"the part itself. Received: {text!r}, with {', '.join(parts)}"
        )
    whole = parts["all"]
    none = dataclasses.replace(whole, rows=whole.rows[:0])
    return Dataset(spec.name, text, names, none, none, whole, skipped=skipped)


_Loaded = tuple[tuple[str, ...], dict[str, Part], tuple[str, ...]]


def _load_bundled(spec: Spec, settings: Settings, boxed: bool) -> _Loaded:
    data = bundled.load(spec.place, settings.size, settings.data_dir)
    parts = {}
    for part in ("train", "val", "test"):
        x, y = getattr(data, f"x_{part}"), getattr(data, f"y_{part}")
        if settings.channels == 3:
            x = np.repeat(x, 3, axis=-1)
        parts[part] = _whole(x, y)
    return data.class_names, parts, ()


def _load_folder(spec: Spec, settings: Settings, boxed: bool) -> _Loaded:
    place = pathlib.Path(spec.place)
    listing = folders.find(place)
    parts, skipped = {}, []
    for part, found in listing.parts.items():

        def examples(found=found):
            for path, label in found:
                yield (
                    str(path.relative_to(place)),
                    lambda path=path: images.read(
                        path, settings.size, settings.channels
                    ),
                    label,
                )

        stored = image_store.get(
            pathlib.Path(settings.cache_dir),
            {
                "folder": str(place.resolve()),
                "files": [_identity(path, place) for path, _ in found],
            },
            examples,
            len(found),
            (settings.size, settings.size, settings.channels),
            settings.max_bad,
            f"{spec.name} ({part})",
        )
        parts[part] = _whole(stored.images, stored.labels)
        skipped += stored.skipped
    return listing.class_names, parts, tuple(skipped)


def _load_npz(spec: Spec, settings: Settings, boxed: bool) -> _Loaded:
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
        parts[part] = _whole(x, arrays[f"y_{part}"])
    return tuple(arrays["class_names"].tolist()), parts, ()


def _load_tfds(spec: Spec, settings: Settings, boxed: bool) -> _Loaded:
    source = tfds_sets.find(
        spec.place, settings.tfds_dir, settings.download, boxed
    )
    size = settings.boxed_size if boxed else settings.size
    parts, skipped = {}, []
    for part, split in source.splits.items():
        stored = image_store.get(
            pathlib.Path(settings.cache_dir),
            {
                "tfds": source.name,
                "split": split,
                "boxed": boxed,
                "data": str(source.builder.data_path),
            },
            lambda part=part: source.examples(
                part, size, settings.channels, boxed
            ),
            source.count(part),
            (size, size, settings.channels),
            settings.max_bad,
            f"{spec.name} ({part})",
        )
        parts[part] = _whole(stored.images, stored.labels)
        skipped += stored.skipped
    return source.class_names, parts, tuple(skipped)


def _split(
    parts: dict[str, Part], settings: Settings, text: str
) -> dict[str, Part]:
    """Takes test and validation data out where there are none."""
    if "all" in parts:
        rest, test = _taken(parts["all"], settings.test_fraction, settings)
        parts = {"train": rest, "test": test}
    if "val" not in parts:
        rest, val = _taken(parts["train"], settings.val_fraction, settings)
        parts = {**parts, "train": rest, "val": val}
    empty = [name for name, part in parts.items() if not len(part)]
    if empty:
        raise DataError(
            "A task has images to train on, to validate and to test. Add "
            f"images, or raise the fractions. Received: {text!r} with none "
            f"for {', '.join(empty)}"
        )
    return parts


def _taken(
    part: Part, fraction: float, settings: Settings
) -> tuple[Part, Part]:
    rest, out = splitting.split(part.labels[part.rows], fraction, settings.seed)
    return tuple(
        dataclasses.replace(part, rows=part.rows[places])
        for places in (rest, out)
    )


def _whole(x: np.ndarray, y: np.ndarray) -> Part:
    return Part(x, y, np.arange(len(y)))


def _identity(path: pathlib.Path, folder: pathlib.Path) -> list[str | int]:
    """Returns what changes when a file does."""
    status = path.stat()
    name = path.relative_to(folder).as_posix()
    return [name, status.st_size, status.st_mtime_ns]


def _check(settings: Settings) -> None:
    for name in ("val_fraction", "test_fraction"):
        value = getattr(settings, name)
        if not 0.0 < value < 1.0:
            raise DataError(
                f"--{name} is a fraction of each class, in (0, 1). "
                f"Received: {value}"
            )
    if not 1 <= settings.size <= _MAX_SIDE:
        raise DataError(
            f"Images are stored at 1 to {_MAX_SIDE} pixels. "
            f"Received: {settings.size}"
        )


def _is_version(text: str) -> bool:
    """Tells `1.0.0` or `1.*.*`, which follows the name of a set of TFDS."""
    return text.replace(".", "").replace("*", "").isdigit() or text == "*.*.*"
