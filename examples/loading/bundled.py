"""Loads the small image sets bundled with the examples.

Four tasks of 28x28 or 8x8 gray images, together under 5 MB, so that every
example runs without a download. `data/README.md` has their origins and
licences.
"""

import bz2
import dataclasses
import hashlib
import io
import operator
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
from loading import npy_bytes

from packnet_tf.errors import PackNetError

BUNDLED = ("mnist", "fashion", "digits", "textures")

_DATA_DIR = Path(__file__).resolve().parents[1] / "data"
_SUMS = "SHA256SUMS"
_PARTS = ("train", "val", "test")
_ARRAYS = (
    *(f"{kind}_{part}" for part in _PARTS for kind in "xy"),
    "class_names",
)
_REBUILD = "run `python examples/build_data.py` to write it anew"

# Bounds on what is read before anything about a file is known to be true.
_MAX_FILE_BYTES = 8 << 20
_MAX_ARRAY_BYTES = 16 << 20
_MAX_SIDE = 64
_MAX_IMAGE_SIZE = 256


class DataError(PackNetError, ValueError):
    """A bundled data set is unknown, missing, damaged or malformed."""


@dataclasses.dataclass(frozen=True, eq=False)
class BundledSet:
    """One image-classification task.

    Attributes:
        name: One of `BUNDLED`.
        class_names: Tuple of strings; entry `i` names label `i`.
        x_train: Float32 array of shape `(n, image_size, image_size, 1)`, in
            [0, 1]. `x_val` and `x_test` alike.
        y_train: Int32 array of shape `(n,)`. `y_val` and `y_test` alike.
    """

    name: str
    class_names: tuple[str, ...]
    x_train: np.ndarray
    y_train: np.ndarray
    x_val: np.ndarray
    y_val: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray

    @property
    def num_classes(self) -> int:
        """Number of classes, the units a head needs."""
        return len(self.class_names)


def load(
    name: str,
    image_size: int = 28,
    data_dir: "str | os.PathLike[str] | None" = None,
) -> BundledSet:
    """Loads one bundled data set.

    The file is compared with its line in `SHA256SUMS` before it is decoded.
    Images of another size are resized by bilinear interpolation. Any leading
    part of an array is about as balanced as the whole: the classes take turns.

    Args:
        name: One of `BUNDLED`.
        image_size: Int in `[1, 256]`, height and width in pixels.
        data_dir: Directory of the .npz files and `SHA256SUMS`; the one beside
            this module if `None`.

    Returns:
        The `BundledSet`.

    Raises:
        DataError: If `name` or `image_size` is not as above, or if the file
            is missing, damaged or does not hold the expected arrays.
    """
    if name not in BUNDLED:
        raise DataError(
            f"`name` must be one of {', '.join(BUNDLED)}. Received: {name!r}"
        )
    size = _checked_size(image_size)
    path = Path(_DATA_DIR if data_dir is None else data_dir) / f"{name}.npz"
    arrays = _decode(_read_checked(path), path)
    class_names = tuple(arrays["class_names"].tolist())
    parts = {}
    for part in _PARTS:
        images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
        parts[f"x_{part}"] = _resized(images, size)
        parts[f"y_{part}"] = labels.astype(np.int32)
    return BundledSet(name, class_names, **parts)


def _checked_size(image_size: int) -> int:
    try:
        size = operator.index(image_size)
    except TypeError:
        size = 0
    if isinstance(image_size, bool) or not 1 <= size <= _MAX_IMAGE_SIZE:
        raise DataError(
            f"`image_size` must be an int from 1 to {_MAX_IMAGE_SIZE}. "
            f"Received: {image_size!r}"
        )
    return size


def _read_bounded(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise DataError(
            f"A file of the bundled data is missing; {_REBUILD}. "
            f"Received: {path}"
        ) from None
    except OSError as error:
        raise DataError(
            f"A file of the bundled data cannot be read; check it, or "
            f"{_REBUILD}. Received: {path} ({error.strerror})"
        ) from None
    if len(content) > _MAX_FILE_BYTES:
        raise DataError(
            f"A file of the bundled data has at most {_MAX_FILE_BYTES:,} "
            f"bytes; {_REBUILD}. Received: {path}, which is larger"
        )
    return content


def _read_checked(path: Path) -> bytes:
    """Reads a file and compares it with its line in `SHA256SUMS`."""
    sums = path.with_name(_SUMS)
    lines = _read_bounded(sums).decode("ascii", "replace").splitlines()
    # sha256sum puts `*` before the name of a file it read as binary.
    found = [
        words[0].lower()
        for words in (line.split() for line in lines)
        if len(words) == 2 and words[1].removeprefix("*") == path.name
    ]
    if len(found) != 1:
        raise DataError(
            f"{_SUMS} must have one line for {path.name}; {_REBUILD}. "
            f"Received: {len(found)} such lines in {sums}"
        )
    content = _read_bounded(path)
    digest = hashlib.sha256(content).hexdigest()
    if digest != found[0]:
        raise DataError(
            f"{path} is damaged: {_SUMS} expects sha256 {found[0]}; "
            f"{_REBUILD}. Received: sha256 {digest}, {len(content):,} bytes"
        )
    return content


def _decode(content: bytes, path: Path) -> dict[str, np.ndarray]:
    """Decodes the arrays of a file, and checks that they fit together."""
    try:
        arrays = _unpack(content)
        _check_arrays(arrays)
    except (
        *(ValueError, EOFError, OSError, NotImplementedError),
        *(struct.error, zipfile.BadZipFile, RuntimeError),
    ) as error:
        raise DataError(
            f"{path.name} does not hold the expected arrays "
            f"({', '.join(_ARRAYS)}); {_REBUILD}. Received: {path}, {error}"
        ) from None
    return arrays


def _unpack(content: bytes) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
    names = [member.filename for member in members]
    if sorted(names) != sorted(f"{name}.npy" for name in _ARRAYS):
        raise ValueError(f"members {names[: len(_ARRAYS) + 1]}")
    return {
        member.filename.removesuffix(".npy"): npy_bytes.decode(
            _unpack_member(content, member), member.filename
        )
        for member in members
    }


def _unpack_member(content: bytes, member: zipfile.ZipInfo) -> bytes:
    """Unpacks one member, never to more than its declared size.

    `ZipFile.read` hands bzip2 all its input at once: a few bytes could then
    take gigabytes before the declared size is looked at.
    """
    name = member.filename
    if member.compress_type != zipfile.ZIP_BZIP2:
        raise ValueError(f"{name} not packed with bzip2")
    if member.file_size > _MAX_ARRAY_BYTES:
        raise ValueError(f"{name} of {member.file_size:,} bytes")
    offset = member.header_offset
    sizes = struct.unpack_from("<2H", content, offset + 26)
    start = offset + 30 + sum(sizes)
    packed = content[start : start + member.compress_size]
    unpacked = bz2.BZ2Decompressor().decompress(packed, member.file_size + 1)
    if len(unpacked) != member.file_size or zlib.crc32(unpacked) != member.CRC:
        raise ValueError(f"{name} that does not match its size and checksum")
    return unpacked


def _check_arrays(arrays: dict[str, np.ndarray]) -> None:
    names = arrays["class_names"]
    if names.dtype.kind != "U" or names.ndim != 1 or len(names) > 256:
        raise ValueError(f"class_names of shape {names.shape}, {names.dtype}")
    if not all(name.isprintable() for name in names.tolist()):
        raise ValueError("class_names that cannot be printed")
    side = arrays["x_train"].shape[-1]
    for part in _PARTS:
        images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
        for name, array in ((f"x_{part}", images), (f"y_{part}", labels)):
            if array.dtype != np.uint8:
                raise ValueError(f"{name} of {array.dtype}, not uint8")
        if images.shape[1:] != (side, side) or side > _MAX_SIDE:
            raise ValueError(
                f"x_{part} of shape {images.shape}, not (n, {side}, {side}) "
                f"with a side of at most {_MAX_SIDE}"
            )
        if labels.shape != images.shape[:1]:
            raise ValueError(
                f"y_{part} of shape {labels.shape} for {len(images)} images"
            )
        if labels.max() >= len(names):
            raise ValueError(
                f"y_{part} with label {labels.max()} for {len(names)} classes"
            )


def _resized(images: np.ndarray, size: int) -> np.ndarray:
    """Scales uint8 images to [0, 1] and to `size`, with a channel axis."""
    scaled = images.astype(np.float32) / 255.0
    if images.shape[1] != size:
        weights = _bilinear_weights(images.shape[1], size)
        scaled = np.clip(weights @ scaled @ weights.T, 0.0, 1.0)
    return scaled[..., np.newaxis]


def _bilinear_weights(before: int, after: int) -> np.ndarray:
    """Returns the `(after, before)` matrix that resizes one axis.

    Pixel centres are at halves, as in `keras.ops.image.resize`. When shrinking
    the triangle widens, so that every pixel counts (`antialias=True`).
    """
    scale = before / after
    centres = (np.arange(after)[:, np.newaxis] + 0.5) * scale - 0.5
    distances = np.abs(centres - np.arange(before)) / max(scale, 1.0)
    weights = np.maximum(1.0 - distances, 0.0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
