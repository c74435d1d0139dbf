"""Loads the data of tasks, and splits it.

What a task is given as is in `specs`.
"""

import dataclasses
import pathlib
from collections.abc import Iterable
from collections.abc import Sequence

import numpy as np
from loading import decoding
from loading import derived
from loading import finding
from loading import specs
from loading import splitting
from loading.bundled import DataError
from loading.finding import Source
from loading.parts import Dataset
from loading.parts import Part
from loading.specs import BUNDLED
from loading.specs import Settings
from loading.specs import Spec
from loading.specs import parse

__all__ = (
    "BUNDLED",
    "DataError",
    "Dataset",
    "Part",
    "Settings",
    "Spec",
    "check",
    "load",
    "load_all",
    "load_test",
    "parse",
    "parse_test",
)


def check(texts: Sequence[str], settings: Settings) -> None:
    """Checks that there is what tasks are given as.

    Nothing is downloaded or decoded for that.

    Args:
        texts: What each task is given as, see `parse`.
        settings: How data is prepared.

    Raises:
        DataError: If data is unknown or missing.
    """
    specs.check(settings)
    for spec in {parse(text).base for text in texts}:
        finding.check(spec, settings)


def load(text: str, settings: Settings, classes: int | None = None) -> Dataset:
    """Loads the data of one task.

    Args:
        text: What the task is given as, see `parse`.
        settings: How data is prepared.
        classes: How many classes it has to have; `None` for any number.

    Returns:
        The data. Nothing of the test part is in another.

    Raises:
        DataError: If the data is unknown, missing, damaged or malformed, or
            too little.
        FileError: If decoded images cannot be kept.
    """
    return load_all([text], settings, classes)[0]


def load_all(
    texts: Sequence[str], settings: Settings, classes: int | None = None
) -> list[Dataset]:
    """Loads the data of several tasks.

    Nothing is downloaded before all of it is known to be there, nor decoded
    before all of it is found, and known to fit on the disk.

    Args:
        texts: What each task is given as, see `parse`.
        settings: How data is prepared.
        classes: How many classes each has to have; `None` for any number.

    Returns:
        The data, in order.

    Raises:
        DataError: If data is unknown, missing, damaged or malformed, or too
            little.
        FileError: If decoded images cannot be kept.
    """
    check(texts, settings)
    given = [parse(text) for text in texts]
    # Several tasks may be made of one source. What may be downloaded is last.
    bases = sorted(
        dict.fromkeys(spec.base for spec in given),
        key=lambda base: base.kind == "tfds",
    )
    found = {base: finding.find(base, settings) for base in bases}
    for spec in given:
        if spec.base == spec:
            _check_classes(found[spec].class_names, classes, spec.name)
    _check_disk(found.values(), settings)
    loaded = {
        base: _decoded(base, source, settings) for base, source in found.items()
    }
    result = []
    for text, spec in zip(texts, given):
        data = loaded[spec.base]
        if spec.base != spec:
            change = (
                derived.permute if spec.kind == "permuted" else derived.take
            )
            number = spec.place.partition(":")[0]
            data = _not_empty(change(data, number, text))
            _check_classes(data.class_names, classes, spec.name)
        result.append(dataclasses.replace(data, name=spec.name, source=text))
    return result


def load_test(
    text: str, settings: Settings, classes: int | None = None
) -> Dataset:
    """Loads labelled images to test on, and nothing to train on.

    Args:
        text: `[NAME:]folder:PATH`, with a folder per class; all images of it
            are the test part.
        settings: How data is prepared.
        classes: How many classes there have to be; `None` for any number.

    Returns:
        The data, its other parts empty.

    Raises:
        DataError: If it is no such folder.
    """
    spec = parse_test(text)
    check([text], settings)
    source = finding.find(spec, settings)
    if "all" not in source.parts:
        raise DataError(
            "All images of the folder are tested, so it is not split. Name "
            f"the part itself. Received: {text!r}, with "
            f"{', '.join(source.parts)}"
        )
    _check_classes(source.class_names, classes, spec.name)
    _check_disk([source], settings)
    parts, skipped = _opened(source, settings)
    whole = parts["all"]
    none = dataclasses.replace(whole, rows=whole.rows[:0])
    return _not_empty(
        Dataset(
            spec.name,
            text,
            source.class_names,
            none,
            none,
            whole,
            skipped=skipped,
        ),
        ("test",),
    )


def parse_test(text: str) -> Spec:
    """Reads what images to test on are given as.

    Args:
        text: `[NAME:]folder:PATH`.

    Returns:
        The parts.

    Raises:
        DataError: If it is another source.
    """
    spec = parse(text)
    if spec.kind != "folder":
        raise DataError(
            "Images to test the kept task on are given as `folder:PATH`, a "
            f"folder with one folder per class. Received: {text!r}"
        )
    return spec


def _decoded(spec: Spec, source: Source, settings: Settings) -> Dataset:
    parts, skipped = _opened(source, settings)
    if spec.kind == "folder":
        _check_every_class(source, parts, skipped, str(spec))
    data = Dataset(
        spec.name,
        str(spec),
        source.class_names,
        **_split(parts, settings),
        boxed=source.boxed,
        skipped=skipped,
    )
    return _not_empty(data)


def _opened(
    source: Source, settings: Settings
) -> tuple[dict[str, Part], tuple[str, ...]]:
    """Returns parts whose images can be read, and what was left out."""
    opened = iter(
        decoding.get(
            source.undecoded,
            pathlib.Path(settings.cache_dir),
            settings.store_gigabytes * 1e9,
            settings.max_bad,
        )
    )
    parts, skipped = {}, []
    for name, part in source.parts.items():
        if isinstance(part, decoding.Images):
            stored = next(opened)
            skipped += stored.skipped
            part = Part.whole(stored.images, stored.labels)
        parts[name] = part
    return parts, tuple(skipped)


def _split(parts: dict[str, Part], settings: Settings) -> dict[str, Part]:
    """Takes test and validation data out where there are none."""
    if "all" in parts:
        rest, test = _taken(parts["all"], settings.test_fraction, settings)
        parts = {"train": rest, "test": test}
    if "val" not in parts:
        rest, val = _taken(parts["train"], settings.val_fraction, settings)
        parts = {**parts, "train": rest, "val": val}
    return parts


def _not_empty(
    data: Dataset, needed: Sequence[str] = ("train", "val", "test")
) -> Dataset:
    """Checks that there is something to learn from, and of every class."""
    empty = [name for name in needed if not len(getattr(data, name))]
    if empty:
        raise DataError(
            "A task has images to train on, to validate and to test. Add "
            f"images, or raise the fractions. Received: {data.source!r} with "
            f"none for {', '.join(empty)}"
        )
    return data


def _check_every_class(
    source: Source, parts: dict[str, Part], skipped: Sequence[str], text: str
) -> None:
    """Checks that a class was not lost with images that were left out."""
    for name, part in parts.items():
        places = np.arange(len(source.class_names))
        missing = np.setdiff1d(places, part.labels)
        if skipped and len(missing):
            raise DataError(
                "Every class has an image that can be decoded. Mend the "
                "images, or remove the class. "
                f"Received: {text!r} ({name}) with none for "
                f"{source.class_names[missing[0]]!r}, where "
                f"{len(skipped)} were left out: {'; '.join(skipped[:3])}"
            )


def _check_classes(
    names: Sequence[str], classes: int | None, name: str
) -> None:
    if classes not in (None, len(names)):
        raise DataError(
            "The labels that the kept task is retrained or tested on are "
            "those of the network's classifier, in the same order. "
            f"Received: {name!r} of {len(names)} classes, for {classes} "
            "outputs"
        )


def _check_disk(found: Iterable[Source], settings: Settings) -> None:
    decoding.to_store(
        [source.undecoded for source in found],
        pathlib.Path(settings.cache_dir),
        settings.store_gigabytes * 1e9,
    )


def _taken(
    part: Part, fraction: float, settings: Settings
) -> tuple[Part, Part]:
    rest, out = splitting.split(part.labels[part.rows], fraction, settings.seed)
    return tuple(
        dataclasses.replace(part, rows=part.rows[places])
        for places in (rest, out)
    )
