"""Reads image sets from .npz files of a user's own."""

import math
import os
import pathlib
import zipfile
import zlib

import numpy as np
from loading.bundled import DataError

MAX_BYTES = 8 << 30
_REQUIRED = ("x_train", "y_train", "x_test", "y_test")
_OPTIONAL = ("x_val", "y_val", "class_names")


def check(path: "str | os.PathLike[str]") -> None:
    """Checks that there is a file.

    Args:
        path: The file.

    Raises:
        DataError: If there is none.
    """
    if not pathlib.Path(path).is_file():
        raise DataError(
            f"`npz:PATH` names an .npz file. Received: {path}, which is none"
        )


def read(path: "str | os.PathLike[str]") -> dict[str, np.ndarray]:
    """Reads and checks the arrays of a file.

    Args:
        path: An .npz file with `x_train`, `y_train`, `x_test` and `y_test`,
            perhaps `x_val`, `y_val` and `class_names`. Images are `uint8`, or
            floats in [0, 1], of shape `(n, height, width)` or
            `(n, height, width, 1 or 3)`; labels are integers from 0.

    Returns:
        Images as `uint8` of shape `(n, height, width, channels)`, labels as
        `int32`, and `class_names` as strings.

    Raises:
        DataError: If the file is not there, is no such file, or has objects
            in it, which would run code.
    """
    check(path)
    path = pathlib.Path(path)
    try:
        _check_declared(path)
        with np.load(path, allow_pickle=False) as file:
            known = [
                name for name in (*_REQUIRED, *_OPTIONAL) if name in file.files
            ]
            arrays = {name: file[name] for name in known}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise _bad(path, str(error)) from None
    except (zlib.error, NotImplementedError, RuntimeError) as error:
        raise _bad(path, str(error)) from None
    missing = [name for name in _REQUIRED if name not in arrays]
    if missing:
        raise _bad(path, f"no array {', '.join(missing)}")
    if ("x_val" in arrays) != ("y_val" in arrays):
        raise _bad(path, "one of x_val and y_val without the other")
    return _checked(arrays, path)


def _check_declared(path: pathlib.Path) -> None:
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > MAX_BYTES:
        raise ValueError(f"{size:,} bytes unpacked, of at most {MAX_BYTES:,}")


def _checked(
    arrays: dict[str, np.ndarray], path: pathlib.Path
) -> dict[str, np.ndarray]:
    result = {}
    most = 0
    for part in ("train", "val", "test"):
        if f"x_{part}" not in arrays:
            continue
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if x.ndim == 3:
            x = x[..., np.newaxis]
        if x.ndim != 4 or x.shape[3] not in (1, 3) or not math.prod(x.shape):
            raise _bad(path, f"x_{part} of shape {x.shape}")
        if y.ndim == 2 and y.shape[1] == 1:
            y = y[:, 0]
        if y.dtype.kind not in "iu" or y.shape != x.shape[:1]:
            raise _bad(
                path,
                f"y_{part} of shape {y.shape}, {y.dtype}, for {len(x)} images",
            )
        if y.min() < 0 or y.max() > 100_000:
            raise _bad(path, f"labels {y.min()} to {y.max()} in y_{part}")
        most = max(most, int(y.max()))
        result[f"x_{part}"] = _as_bytes(x, f"x_{part}", path)
        result[f"y_{part}"] = y.astype(np.int32)
    names = arrays.get("class_names", np.arange(most + 1).astype(str))
    if names.dtype.kind != "U" or names.ndim != 1 or len(names) <= most:
        raise _bad(path, f"class_names of shape {names.shape} for label {most}")
    if len(names) < 2:
        raise DataError(
            "A task has two classes or more. "
            f"Received: {path}, with class {str(names[0])!r} alone"
        )
    missing = np.setdiff1d(np.arange(len(names)), result["y_train"])
    if len(missing):
        raise DataError(
            "Every class has an image to train on. Number the labels from 0 "
            f"without gaps. Received: {path}, x_train without class "
            f"{str(names[missing[0]])!r}"
        )
    return {**result, "class_names": names}


def _as_bytes(x: np.ndarray, name: str, path: pathlib.Path) -> np.ndarray:
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind != "f" or not (x.min() >= 0.0 and x.max() <= 1.0):
        raise _bad(path, f"{name} of {x.dtype} that is not within [0, 1]")
    return np.rint(x.astype(np.float32) * 255.0).astype(np.uint8)


def _bad(path: pathlib.Path, reason: str) -> DataError:
    return DataError(
        f"An .npz file holds {', '.join(_REQUIRED)} and perhaps "
        f"{', '.join(_OPTIONAL)}; images are uint8, or floats in [0, 1]. "
        f"Received: {path}, {reason}"
    )
