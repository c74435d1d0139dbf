"""Random access to the examples of TFRecord files, as TFDS writes them."""

import os
import pathlib
import struct
from collections.abc import Callable
from collections.abc import Iterable

import numpy as np
from loading.bundled import DataError
from loading.images import ImageError

_HEADER = struct.Struct("<QI")  # The length, and a checksum of it.
_FOOTER = 4  # A checksum of the data.


def offsets(path: pathlib.Path) -> np.ndarray:
    """Finds the records of a file, without reading them.

    Args:
        path: A TFRecord file that is not compressed.

    Returns:
        `int64` array of shape `(n, 2)`: where the data of each record
        begins, and its length, in bytes.

    Raises:
        DataError: If the file ends within a record.
    """
    found = []
    size = path.stat().st_size
    with path.open("rb") as file:
        place = 0
        while place < size:
            file.seek(place)
            header = file.read(_HEADER.size)
            start = place + _HEADER.size
            length = (
                _HEADER.unpack(header)[0]
                if len(header) == _HEADER.size
                else size
            )
            place = start + length + _FOOTER
            if place > size:
                raise DataError(
                    "A TFRecord file is whole, and not compressed. Prepare "
                    f"the data set anew. Received: {path}, which ends within "
                    f"record {len(found)}"
                )
            found.append((start, length))
    return np.array(found, np.int64).reshape(-1, 2)


def locate(
    folder: pathlib.Path, ids: Iterable[bytes]
) -> tuple[np.ndarray, np.ndarray]:
    """Finds where examples are, by the ids that TFDS gives them.

    Args:
        folder: Where the files are.
        ids: `FILE__NUMBER` of each example.

    Returns:
        Names of files, and an `int64` array of shape `(n, 3)`: the number of
        the file, where the data begins in it, and its length.

    Raises:
        DataError: If there is no such example.
    """
    names: dict[str, int] = {}
    tables: list[np.ndarray] = []
    found = []
    for text in ids:
        name, _, number = text.decode().rpartition("__")
        name = pathlib.PurePath(name).name
        if name not in names:
            names[name] = len(names)
            tables.append(offsets(folder / name))
        table = tables[names[name]]
        if int(number) >= len(table):
            raise DataError(
                "The files of a data set are those that it was prepared as. "
                f"Prepare it anew. Received: {folder / name} of {len(table)} "
                f"records, without {number}"
            )
        found.append((names[name], *table[int(number)]))
    return np.array(list(names), np.str_), np.array(found, np.int64)


def reader(
    folder: pathlib.Path, names: np.ndarray, places: np.ndarray
) -> Callable[[int], bytes]:
    """Makes a function that reads an example.

    Args:
        folder: Where the files are.
        names: As `locate` gives them.
        places: The same.

    Returns:
        A function that takes the number of an example, for any thread.
    """
    paths = [folder / str(name) for name in names]

    def read(row: int) -> bytes:
        number, start, length = map(int, places[row])
        try:
            with paths[number].open("rb") as file:
                file.seek(start)
                data = file.read(length)
        except OSError as error:
            raise ImageError(os.strerror(error.errno or 0)) from None
        if len(data) != length:
            raise ImageError("the file ends before it")
        return data

    return read
