import os
import signal
import subprocess
import sys

import pytest
from helpers import tree

from packnet_tf import locks
from packnet_tf.errors import FileError


def test_a_folder_has_one_process_at_a_time(tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    (folder / "mine").write_text("mine")
    with locks.locked(folder):
        before = tree(tmp_path)
        with pytest.raises(FileError, match="Another process") as info:
            with locks.locked(str(folder)):
                pass
        assert f"Received: {str(folder)!r}" in str(info.value)
        assert f"process {os.getpid()} on " in str(info.value)
        assert tree(tmp_path) == before
        with locks.locked(tmp_path):
            pass
    assert tree(tmp_path) == {"runs": None, "runs/mine": "mine"}
    with locks.locked(folder):
        pass


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_lock_is_given_back_whatever_happens(tmp_path, error):
    for _ in range(2):
        with pytest.raises(error), locks.locked(tmp_path / "a" / "b"):
            raise error
        assert tree(tmp_path) == {}
    with locks.locked(tmp_path / "a" / "b"):
        (tmp_path / "a" / "mine").write_text("mine")
    assert tree(tmp_path) == {"a": None, "a/mine": "mine"}


def test_a_lock_that_its_owner_has_removed_is_none(tmp_path):
    """A process opens the lock just before its owner gives it back."""
    taken = []
    lock = locks.try_lock

    def give_back_and_lock(file):
        if not taken:
            taken.append(file)
            first.__exit__(None, None, None)
        return lock(file)

    first = locks.locked(tmp_path)
    first.__enter__()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(locks, "try_lock", give_back_and_lock)
        with locks.locked(tmp_path):
            patch.undo()
            assert taken
            with pytest.raises(FileError), locks.locked(tmp_path):
                pass
    assert tree(tmp_path) == {}


def test_where_no_lock_can_be_the_body_runs(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / ".lock").symlink_to(tmp_path / "file")
    before = tree(tmp_path)
    ran = []
    for name in ("file", "file/runs", "runs", "a\0b"):
        with locks.locked(tmp_path / name):
            ran.append(name)
    assert len(ran) == 4
    assert tree(tmp_path) == before


HOLDER = """
import os, sys, time
from packnet_tf import locks
with locks.locked(sys.argv[1]):
    child = os.fork()
    if not child:
        time.sleep(1000)
    print(child, flush=True)
    time.sleep(1000)
"""


def test_a_killed_process_has_no_lock_though_a_child_of_it_lives(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path / "runs"],
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        stdout=subprocess.PIPE,
    )
    child = 0
    try:
        child = int(holder.stdout.readline())
        with pytest.raises(FileError, match=f"process {holder.pid} on "):
            with locks.locked(tmp_path / "runs"):
                pass
        holder.kill()
        holder.wait()
        os.kill(child, 0)  # It is there.
        with locks.locked(tmp_path / "runs"):
            pass
        assert tree(tmp_path) == {"runs": None}
    finally:
        holder.kill()
        if child:
            os.kill(child, signal.SIGKILL)
        holder.communicate()
