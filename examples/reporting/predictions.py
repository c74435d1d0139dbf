"""Reads what a run predicted; nothing in a file is taken for true."""

import dataclasses
import io
import pathlib
import zipfile
from typing import Any

import numpy as np
from loading import npy_bytes
from reporting.outcomes import PACKED

# Bounds on what is read before anything about a file is known to be true.
_MAX_FILE_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """Labels and predicted classes of a test part, and a few examples."""

    labels: np.ndarray
    predicted: np.ndarray
    images: np.ndarray
    places: np.ndarray


def read(
    folder: pathlib.Path | None, name: str, task: dict[str, Any]
) -> Predictions | str | None:
    """Returns the predictions, why they are left out, or `None`."""
    place = folder and inside(folder, f"predictions/{PACKED}/{name}.npz")
    if place is None or not place.is_file():
        return None
    try:
        return _read_predictions(place, len(task["class_names"]))
    except (
        *(ValueError, OSError, EOFError, KeyError),
        *(zipfile.BadZipFile, RuntimeError),
    ) as error:
        return f"predictions/{PACKED}/{name}.npz cannot be used: {error}"


def _read_predictions(place: pathlib.Path, classes: int) -> Predictions:
    content = read_bounded(place)
    arrays = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
        for name in ("labels", "predicted", "images", "places"):
            if f"{name}.npy" in names:
                arrays[name] = _array(archive, archive.getinfo(f"{name}.npy"))
    labels, predicted = arrays["labels"], arrays["predicted"]
    for values in (labels, predicted):
        if values.dtype != np.int32 or values.shape != (labels.size,):
            raise ValueError(f"classes of shape {values.shape}, {values.dtype}")
        if values.min() < 0 or values.max() >= classes:
            raise ValueError(
                f"classes {values.min()} to {values.max()} of {classes}"
            )
    images = arrays.get("images", np.empty((0, 1, 1, 1), np.uint8))
    places = arrays.get("places", np.empty(0, np.int64))
    if (
        images.dtype != np.uint8
        or images.ndim != 4
        or images.shape[3] not in (1, 3)
        or places.dtype != np.int64
        or places.shape != images.shape[:1]
        or ((places < 0) | (places >= labels.size)).any()
    ):
        raise ValueError(
            f"images of shape {images.shape}, {images.dtype}, at places of "
            f"shape {places.shape}, {places.dtype}, of {labels.size}"
        )
    return Predictions(labels, predicted, images, places)


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Decodes an array; what it declares must agree with what is there.

    What is not compressed cannot be more than the file, whose size is bounded.
    """
    name = member.filename
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed")
    if member.file_size != member.compress_size:
        raise ValueError(f"{name} of {member.file_size:,} bytes")
    return npy_bytes.decode(archive.read(member), name)


def read_bounded(place: pathlib.Path) -> bytes:
    """Reads a file that is not too large.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is too large.
    """
    with place.open("rb") as file:
        content = file.read(_MAX_FILE_BYTES + 1)
    if len(content) > _MAX_FILE_BYTES:
        raise ValueError(f"more than {_MAX_FILE_BYTES:,} bytes")
    return content


def inside(folder: pathlib.Path, name: str) -> pathlib.Path | None:
    """Returns a path below a folder; `None` for a name that leads out."""
    path = pathlib.PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        return None
    return folder / path
