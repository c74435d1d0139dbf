"""Locks: a folder that one process at a time works in.

The system gives a lock back when its process ends in whatever way.
"""

import contextlib
import os
import pathlib
from collections.abc import Iterator

from packnet_tf.errors import FileError

try:
    import fcntl
except ImportError:  # On Windows.
    fcntl = None

_NAME = ".lock"


def try_lock(file: int) -> bool:
    """Locks a file, unless another process has.

    Args:
        file: Descriptor of an open file.

    Returns:
        Whether nobody else has it locked; also where nothing can be locked.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return not isinstance(error, BlockingIOError)
    return True


@contextlib.contextmanager
def locked(folder: "str | os.PathLike[str]") -> Iterator[None]:
    """Keeps a folder for this process alone while the body runs.

    The system gives the lock back when the process ends in whatever way.
    Where nothing can be locked or written, there is no lock.

    Args:
        folder: The folder, made if it is not there. If it is empty then at
            the end, it goes again.

    Yields:
        Once.

    Raises:
        FileError: If another process keeps it.
    """
    folder = pathlib.Path(folder)
    parts = [folder, *folder.parents]
    made = [part for part in parts if not os.path.exists(part)]
    lock = _take(folder)
    try:
        yield
    finally:
        if lock in _held:
            _held.remove(lock)
            with contextlib.suppress(OSError):
                os.unlink(folder / _NAME)
            os.close(lock)
        for part in made:
            with contextlib.suppress(OSError, ValueError):
                os.rmdir(part)


def _take(folder: pathlib.Path) -> int | None:
    """Takes the lock of a folder; `None` where there can be none."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    while fcntl is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder / _NAME, flags, 0o666)
        except (OSError, ValueError):
            return None
        if not try_lock(lock):
            holder = os.read(lock, 200).decode(errors="replace")
            os.close(lock)
            raise FileError(
                "Another process is at work in the folder, and two would "
                "spoil each other's files. Wait until it ends, stop it, or "
                "choose another folder. "
                f"Received: {str(folder)!r}, kept by {holder!r}"
            )
        # Whoever had it may have removed it just before it was locked.
        if _is_at(lock, folder / _NAME):
            _held.add(lock)
            with contextlib.suppress(OSError):
                os.ftruncate(lock, 0)
                name = f"process {os.getpid()} on {os.uname().nodename}"
                os.write(lock, name.encode())
            return lock
        os.close(lock)
    return None


def _is_at(file: int, path: pathlib.Path) -> bool:
    """Tells whether an open file still has its name."""
    try:
        there = os.stat(path, follow_symlinks=False)
    except OSError:
        return False
    return os.path.samestat(os.fstat(file), there)


_held: set[int] = set()


def _let_go() -> None:
    """Closes locks in a child, which may live on when its parent is killed."""
    while _held:
        os.close(_held.pop())


if fcntl is not None:
    os.register_at_fork(after_in_child=_let_go)
