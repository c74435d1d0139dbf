"""Finds the images of a folder that has one folder per class."""

import dataclasses
import os
import pathlib

from loading import images
from loading.bundled import DataError

_VALIDATION = ("val", "valid", "validation")


@dataclasses.dataclass(frozen=True)
class Listing:
    """The image files of a folder.

    Attributes:
        class_names: Names of the class folders, sorted.
        parts: For each of `"train"`, `"val"` and `"test"` that is there the
            files and their labels, sorted by class and name. A folder that is
            not split has `"all"` alone.
    """

    class_names: tuple[str, ...]
    parts: dict[str, list[tuple[pathlib.Path, int]]]


def check(folder: "str | os.PathLike[str]") -> None:
    """Checks that there is a folder.

    Args:
        folder: The folder.

    Raises:
        DataError: If there is none.
    """
    if not pathlib.Path(folder).is_dir():
        raise DataError(
            "`folder:PATH` names a folder with one folder of images per "
            f"class, or with `train` and `test` that hold those. "
            f"Received: {folder}, which is no folder"
        )


def find(folder: "str | os.PathLike[str]") -> Listing:
    """Lists the images of a folder.

    The folder holds `train` and `test`, perhaps `val`, and each of these one
    folder per class; or one folder per class itself. Hidden files, and files
    with other endings than those of images, are passed over.

    Args:
        folder: The folder.

    Returns:
        What is there.

    Raises:
        DataError: If there is no such folder, no class, a class without an
            image or with images in one part alone.
    """
    check(folder)
    folder = pathlib.Path(folder)
    places = _parts(folder)
    names = _class_names(next(iter(places.values())))
    parts = {}
    for part, place in places.items():
        found = _class_names(place)
        if found != names:
            odd = sorted(set(found) ^ set(names))
            raise DataError(
                "All parts of a folder have the same classes. Received: "
                f"{place} and {next(iter(places.values()))}, which differ in "
                f"{', '.join(odd[:5])}{' and more' if len(odd) > 5 else ''}"
            )
        parts[part] = [
            (path, label)
            for label, name in enumerate(names)
            for path in _files(place / name)
        ]
    return Listing(names, parts)


def _parts(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    if not (folder / "train").is_dir():
        return {"all": folder}
    if not (folder / "test").is_dir():
        raise DataError(
            "A folder with `train` has `test` beside it. To have both taken "
            f"from the same images, name {folder / 'train'} itself. "
            f"Received: {folder}"
        )
    places = {"train": folder / "train", "test": folder / "test"}
    for name in _VALIDATION:
        if (folder / name).is_dir():
            places["val"] = folder / name
    return places


def _class_names(folder: pathlib.Path) -> tuple[str, ...]:
    names = sorted(
        path.name
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith(".")
    )
    if len(names) < 2:
        raise DataError(
            "A task has two classes or more, each in a folder of its own. "
            f"Received: {folder} with {len(names)} folders"
        )
    return tuple(names)


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in images.SUFFIXES
        and not path.name.startswith(".")
        and path.is_file()
    )
    if not found:
        raise DataError(
            f"Every class has an image ({', '.join(sorted(images.SUFFIXES))})."
            f" Received: {folder}, which has none"
        )
    return found
