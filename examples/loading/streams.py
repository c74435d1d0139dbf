"""Images that are decoded while they are trained on, not before.

For sets whose decoded images would fill the disk. What is kept on disk is an
index alone: which images there are, and where.
"""

import hashlib
import json
import pathlib
import threading
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from loading import images
from loading.bundled import DataError
from loading.images import ImageError

from packnet_tf import files

_VERSION = 1
_AT_ONCE = 1024


class Stream:
    """Reads as an array of images does, and decodes what is asked for.

    An image that cannot be decoded is black, as it is too late to leave it
    out.

    Attributes:
        shape: `(n, size, size, channels)`.
        dtype: `uint8`.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        names: Sequence[Any],
        shape: tuple[int, int, int],
        decode: Callable[[int], np.ndarray],
        max_bad: int,
        title: str,
    ):
        """Prepares to decode.

        Args:
            names: Of all images, in order.
            shape: Of each decoded image.
            decode: Decodes the image of a number, called from several
                threads.
            max_bad: How many may fail.
            title: What they are, for errors.
        """
        self.shape = (len(names), *shape)
        self._names = names
        self._decode = decode
        self._max_bad = max_bad
        self._title = title
        self._bad: dict[int, str] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Decodes the images of some rows, one after the other.

        Several threads may do that at once.

        Args:
            rows: An int, a slice or an int array of shape `(k,)`.

        Returns:
            `uint8` array of shape `(k, size, size, channels)`; of an int,
            the image alone.

        Raises:
            DataError: If more images than are allowed cannot be decoded, or
                one has another shape.
        """
        chosen = np.arange(len(self))[rows]
        if chosen.ndim == 0:
            return self._one(int(chosen))
        found = np.empty((len(chosen), *self.shape[1:]), np.uint8)
        for place, row in enumerate(chosen):
            found[place] = self._one(int(row))
        return found

    @property
    def bad(self) -> tuple[str, ...]:
        """Which images could not be decoded so far, and why."""
        return tuple(self._bad[row] for row in sorted(self._bad))

    def fingerprint(self, rows: np.ndarray) -> str:
        """Returns the SHA-256 of names, shape and how images are decoded.

        None is decoded for that.

        Args:
            rows: Int array of shape `(k,)`.
        """
        known = (images.VERSION, self.shape[1:])
        digest = hashlib.sha256(repr(known).encode())
        for row in rows:
            digest.update(f"{self._names[row]}\n".encode())
        return digest.hexdigest()

    def _one(self, row: int) -> np.ndarray:
        try:
            image = self._decode(row)
        except ImageError as error:
            self._note(row, str(error))
            return np.zeros(self.shape[1:], np.uint8)
        if image.shape != self.shape[1:] or image.dtype != np.uint8:
            raise DataError(
                f"All images of a task have one shape, {self.shape[1:]}. "
                f"Received: {self._names[row]} of shape {image.shape}, "
                f"{image.dtype}"
            )
        return image

    def _note(self, row: int, reason: str) -> None:
        with self._lock:
            self._bad[row] = f"{self._names[row]}: {reason}"
            found = self.bad
        if len(found) > self._max_bad:
            raise too_many_bad(found, self._max_bad, self._title)


def index(
    folder: pathlib.Path,
    key: dict[str, Any],
    make: Callable[[], dict[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """Returns what is known of the images, from disk if it is there.

    Args:
        folder: Where indices are kept.
        key: What the index depends on; another key is another index.
        make: Makes the arrays.

    Returns:
        The arrays, by name.

    Raises:
        FileError: If the index cannot be written.
    """
    text = json.dumps(["index", _VERSION, key], sort_keys=True)
    place = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz"
    try:
        with np.load(place, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception:  # One that is damaged is as good as none.
        arrays = make()
    with files.replacing(place) as new:
        np.savez(new, **arrays)
    return arrays


def check_all(
    paths: Sequence[pathlib.Path],
    check: Callable[[pathlib.Path], None],
    title: str,
) -> dict[str, np.ndarray]:
    """Checks image files without decoding them.

    Args:
        paths: The files.
        check: Raises `ImageError` for one that is none.
        title: What they are, for the progress bar.

    Returns:
        `bad`, the places of those that are none, and `reasons`.
    """
    import keras  # After packnet_tf, which checks its backend.

    def attempt(path: pathlib.Path) -> str:
        try:
            check(path)
        except ImageError as error:
            return str(error)
        return ""

    print(f"{title}: looking at {len(paths):,} files", flush=True)
    bar = keras.utils.Progbar(len(paths), unit_name="file", interval=1)
    reasons: list[str] = []
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), _AT_ONCE):
            chosen = paths[start : start + _AT_ONCE]
            reasons += pool.map(attempt, chosen)
            bar.add(len(chosen))
    bad = [place for place, reason in enumerate(reasons) if reason]
    return {
        "bad": np.array(bad, np.int64),
        "reasons": np.array([reasons[place] for place in bad], np.str_),
    }


def too_many_bad(skipped: Iterable[str], max_bad: int, title: str) -> DataError:
    """Makes the error of more bad images than are allowed.

    Args:
        skipped: Which, and why.
        max_bad: How many are allowed.
        title: What they are.
    """
    return DataError(
        f"{title}: more than --max_bad_images={max_bad} cannot be decoded. "
        f"Mend or remove them, or raise the limit. Received: "
        f"{'; '.join(list(skipped)[:5])}"
    )
