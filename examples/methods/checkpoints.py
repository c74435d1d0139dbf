"""Where the training of a plain network stands, in one file."""

import json
import pathlib
import zipfile
from typing import Any

import numpy as np

from packnet_tf import files
from packnet_tf.errors import FileError

_PROGRESS = "progress"
# What NumPy and `zipfile` raise for a file that is no longer whole.
_DAMAGED = (
    AttributeError,
    EOFError,
    KeyError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
)


def write(
    path: pathlib.Path, arrays: dict[str, np.ndarray], progress: dict[str, Any]
) -> None:
    """Writes a checkpoint, all or nothing.

    Args:
        path: The file.
        arrays: What is to be restored.
        progress: What says where that belongs, of JSON's types.

    Raises:
        FileError: If the folder cannot be written.
    """
    text = np.frombuffer(json.dumps(progress).encode(), np.uint8)
    with files.replacing(path) as new, new.open("wb") as file:
        np.savez(file, **{_PROGRESS: text}, **arrays)


def read(
    path: pathlib.Path,
) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Reads a checkpoint.

    Args:
        path: The file, which need not exist.

    Returns:
        Arrays and progress as they were written; `None` if there is no file.

    Raises:
        FileError: If it is damaged.
    """
    if not path.exists():
        return None
    try:
        # Of a path, NumPy leaves the file open if it is damaged.
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        progress = json.loads(arrays.pop(_PROGRESS).tobytes())
    except _DAMAGED as error:
        raise FileError(
            "A checkpoint of this run is damaged. Remove it to begin this "
            "part of the run again, or use --overwrite to begin all of it. "
            f"Received: {path} ({error})"
        ) from error
    return arrays, progress
