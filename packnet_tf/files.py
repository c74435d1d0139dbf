"""Writing files and folders all or nothing."""

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from packnet_tf.errors import FileError


@contextlib.contextmanager
def replacing(path: "str | os.PathLike[str]") -> Iterator[pathlib.Path]:
    """Writes a file or folder beside its target, then renames it into place.

    Args:
        path: The target. What is there already stays until the new one is
            complete.

    Yields:
        A path beside the target, with the target's suffixes, where nothing
        is yet. Write the file or folder there.

    Raises:
        FileError: If the path names nothing, if the folder of the target
            cannot be written, or if a folder would replace a file or the
            other way round.
    """
    path = pathlib.Path(path)
    if path.name in ("", ".."):
        raise FileError(
            "The path of a file or folder to write ends in its name. "
            f"Received: path={str(path)!r}"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = pathlib.Path(
            tempfile.mkdtemp(prefix=f".{path.name[:64]}.", dir=path.parent)
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FileError(
            f"Cannot write into the folder '{path.parent}': {reason}. "
            "Choose one that can be written. "
            f"Received: path={str(path)!r}"
        ) from error
    old, new = scratch / "old", scratch / "new" / path.name
    try:
        new.parent.mkdir()
        yield new
        if path.exists() and path.is_dir() != new.is_dir():
            kind = "folder" if path.is_dir() else "file"
            raise FileError(
                f"There is a {kind} of that name already, of another kind "
                "than what is to be written. Remove it or choose another "
                f"path. Received: path={str(path)!r}"
            )
        if path.is_dir():
            os.replace(path, old)
        try:
            os.replace(new, path)
        except OSError:
            if old.exists():
                os.replace(old, path)
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_replaceable(path: "str | os.PathLike[str]", marker: str) -> None:
    """Checks that replacing a folder loses nothing but an older version.

    Args:
        path: What is to be replaced, which need not exist.
        marker: Name of a file that every version has.

    Raises:
        FileError: If it is a folder of other things.
    """
    path = pathlib.Path(path)
    if not path.is_dir() or (path / marker).is_file():
        return
    if any(path.iterdir()):
        raise FileError(
            "The whole folder would be replaced, and it holds other things "
            f"than an older version, which has a file {marker!r}. Choose a "
            f"folder of its own. Received: path={str(path)!r}"
        )
