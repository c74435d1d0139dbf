"""Writing files and folders all or nothing.

What is written is on the disk before it gets its name, so that neither a kill
nor a loss of power leaves half of it there. What a kill leaves beside it, is
removed by the next write.
"""

import contextlib
import ctypes
import errno
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

from packnet_tf import locks
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import FileError
from packnet_tf.errors import PackNetError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows.
    fcntl = None

_LOCK = "lock"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # Of Linux.
# A drive of Windows has one letter; `pathlib` makes one slash of two.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:[/\\]")


class Folder(NamedTuple):
    """What a format writes into a folder, by the names of what is in it.

    Attributes:
        marks: Files that every version has.
        others: What a version may have besides.
        kept: What users put there for it, carried over to the next version.
    """

    marks: tuple[str, ...]
    others: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


@contextlib.contextmanager
def replacing(
    path: "str | os.PathLike[str]", folder: Folder | None = None
) -> Iterator[pathlib.Path]:
    """Writes a file or folder beside its target, then renames it into place.

    Args:
        path: The target. What is there already stays until the new one is
            complete and on the disk.
        folder: What is written, if it is a folder. One of anything else is
            not replaced then; without, whatever is there is.

    Yields:
        A path beside the target, with the target's suffixes, where nothing
        is yet. Write the file or folder there.

    Raises:
        ArgumentError: If it is no path.
        FileError: If the path names nothing, or nothing of this system, if
            the folder of the target cannot be written or has no room, or if a
            folder would replace a file, the other way round, or other things
            than an older version.
    """
    check_local(path)
    path = as_path(path)
    if path.name in ("", ".."):
        raise FileError(
            "The path of a file or folder to write ends in its name. "
            f"Received: path={str(path)!r}"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_left_over(path)
        scratch, lock = _make_scratch(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        full = getattr(error, "errno", None) in _NO_ROOM
        advice = "Make room, or choose another" if full else "Choose one"
        raise FileError(
            f"Cannot write into the folder '{path.parent}': {reason}. "
            f"{advice} that can be written. "
            f"Received: path={str(path)!r}"
        ) from error
    new = scratch / "new" / path.name
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
        if folder is not None and new.is_dir():
            check_replaceable(path, folder)
            for name in folder.kept:
                _copy(path / name, new / name)
        _flush(new)
        _put(new, path, scratch / "old")
        _flush_folder(path.parent)
    except PackNetError:
        raise
    except Exception as error:
        if not _is_of_the_system(error):
            raise
        raise FileError(
            f"Cannot write '{path}': {error}. Make room, or choose another "
            "place; what was there stays. "
            f"Received: path={str(path)!r}"
        ) from error
    finally:
        _remove(scratch)
        if lock is not None:
            os.close(lock)


def as_path(path: "str | os.PathLike[str]") -> pathlib.Path:
    """Takes what names a file or folder.

    Args:
        path: The path.

    Returns:
        The path.

    Raises:
        ArgumentError: If it is none.
    """
    try:
        return pathlib.Path(path)
    except TypeError as error:
        raise ArgumentError(
            "A file or folder to write is a string or a `pathlib.Path`. "
            f"Received: {path!r} of type {type(path).__name__}"
        ) from error


def check_local(path: "str | os.PathLike[str]") -> None:
    """Checks that a path is one of this system, which `replacing` can write.

    Args:
        path: The path.

    Raises:
        FileError: If it begins with a scheme, such as `gs://`.
    """
    if _SCHEME.match(str(path)):
        raise FileError(
            "Only what is local can be written all or nothing. Write to a "
            "local path, then copy that, for instance with "
            f"`tf.io.gfile.copy`. Received: path={str(path)!r}"
        )


def check_replaceable(path: "str | os.PathLike[str]", folder: Folder) -> None:
    """Checks that replacing a folder loses nothing but an older version.

    Args:
        path: What is to be replaced, which need not exist.
        folder: What every version is.

    Raises:
        ArgumentError: If it is no path.
        FileError: If it is a folder of other things, or no local path, or if
            the system takes no such path.
    """
    check_local(path)
    path = as_path(path)
    try:
        found = os.listdir(path) if path.is_dir() else []
    except OSError as error:
        raise FileError(
            f"Nothing can be written there: {error.strerror}. Choose another "
            f"place. Received: path={str(path)!r}"
        ) from error
    names = sorted(set(found) - set(folder.kept))
    known = (*folder.marks, *folder.others)
    for name in names:
        if name not in known:
            raise _not_replaceable(path, f"has {name!r}", folder)
    for name in folder.marks if names else ():
        if not (path / name).is_file():
            raise _not_replaceable(path, f"has no file {name!r}", folder)


def _not_replaceable(
    path: pathlib.Path, received: str, folder: Folder
) -> FileError:
    return FileError(
        "The whole folder would be replaced, and it holds other things than "
        "an older version, in which there may be "
        f"{[*folder.marks, *folder.others, *folder.kept]}. Choose a folder of "
        f"its own. Received: path={str(path)!r}, which {received}"
    )


def _is_of_the_system(error: Exception) -> bool:
    """Tells whether writing failed for want of room or of a sound disk.

    HDF5 and TensorFlow raise errors of their own then, which say why.
    """
    return isinstance(error, OSError) or any(
        os.strerror(number) in str(error) for number in _NO_ROOM
    )


# Into place.


def _copy(old: pathlib.Path, new: pathlib.Path) -> None:
    """Copies a file, link or folder, if it is there."""
    if old.is_dir() and not old.is_symlink():
        shutil.copytree(old, new, symlinks=True)
    elif os.path.lexists(old):
        shutil.copy2(old, new, follow_symlinks=False)


def _put(new: pathlib.Path, path: pathlib.Path, old: pathlib.Path) -> None:
    """Renames to a target, for a folder with what was there aside."""
    if path.is_dir():
        if _exchange(new, path):
            return
        # Killed between the two, the next write puts the old one back.
        os.replace(path, old)
    try:
        os.replace(new, path)
    except OSError:
        if old.exists():
            os.replace(old, path)
        raise


def _exchange(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Exchanges two folders at once, where the system can."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    names = [os.fsencode(os.path.abspath(path)) for path in (one, other)]
    return not rename(
        _AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE
    )


def _flush(path: pathlib.Path) -> None:
    """Waits until a file, or a folder and all in it, is on the disk."""
    if not path.is_dir():
        with open(path, "rb+" if os.name == "nt" else "rb") as file:
            os.fsync(file.fileno())
        return
    for folder, _, names in os.walk(path):
        for name in names:
            # Where a link leads to is not written, and may not be there.
            if not os.path.islink(os.path.join(folder, name)):
                _flush(pathlib.Path(folder, name))
        _flush_folder(folder)


def _flush_folder(path: "str | os.PathLike[str]") -> None:
    """Waits until the names in a folder are on the disk, where that is told."""
    with contextlib.suppress(OSError):
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


# Scratch folders.


def _prefix(path: pathlib.Path) -> str:
    return f".{path.name[:64]}."


def _make_scratch(path: pathlib.Path) -> tuple[pathlib.Path, int | None]:
    """Makes a folder beside a target; a lock in it tells that it is in use.

    The system gives the lock back when the process ends in whatever way.
    """
    while True:
        scratch = pathlib.Path(
            tempfile.mkdtemp(prefix=_prefix(path), dir=path.parent)
        )
        if fcntl is None:
            return scratch, None
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        try:
            lock = os.open(scratch / _LOCK, flags, 0o600)
        except FileNotFoundError:  # Taken for one that a kill has left.
            continue
        except OSError:
            _remove(scratch)
            raise
        if locks.try_lock(lock):
            try:
                os.write(lock, os.fsencode(path.name))
            except OSError:
                _remove(scratch)
                os.close(lock)
                raise
            # Another process may have removed it just before it was locked.
            if (scratch / _LOCK).exists():
                return scratch, lock
        os.close(lock)


def remove_left_over(path: pathlib.Path) -> None:
    """Removes the scratch folders of processes that were killed.

    Args:
        path: The target that they wrote. One in use stays.
    """
    if fcntl is None:
        return
    form = re.compile(re.escape(_prefix(path)) + r"[a-z0-9_]{8}")
    with os.scandir(path.parent) as entries:
        found = [
            pathlib.Path(entry.path)
            for entry in entries
            if form.fullmatch(entry.name)
            and entry.is_dir(follow_symlinks=False)
        ]
    for scratch in found:
        # What cannot be removed is in nobody's way. One without a lock is
        # empty; if another process is about to use it, it makes another.
        with contextlib.suppress(OSError):
            os.rmdir(scratch)
        with contextlib.suppress(OSError):
            lock = os.open(scratch / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                name = os.read(lock, 4096)
                old = scratch / "old"
                if name == os.fsencode(path.name) and not path.exists():
                    with contextlib.suppress(FileNotFoundError):
                        os.replace(old, path)
                _remove(scratch)
            finally:
                os.close(lock)


def _remove(scratch: pathlib.Path) -> None:
    """Removes a scratch folder, its lock last: a kill may fall in between."""
    for name in ("new", "old"):
        shutil.rmtree(scratch / name, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.unlink(scratch / _LOCK)
    with contextlib.suppress(OSError):
        os.rmdir(scratch)
