"""Kills processes that write, for real, and looks at what is there then."""

import pathlib
import subprocess
import sys

import pytest
from killed_writes import TARGETS

PROGRAM = pathlib.Path(__file__).with_name("killed_writes.py")


def kill_and_check(folder, kills, seed):
    """Runs the program, which checks all files after each kill."""
    subprocess.run(
        [sys.executable, PROGRAM, folder, str(kills), str(seed)],
        check=True,
        timeout=1800,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    # What the kills have left is gone with the next write.
    left = sorted(path.name for path in (folder / "killed").iterdir())
    assert left == sorted(TARGETS)


def test_a_killed_write_leaves_the_old_or_the_new(tmp_path):
    kill_and_check(tmp_path, 3, 1)


@pytest.mark.slow
def test_a_write_that_is_killed_fifty_times(tmp_path):
    kill_and_check(tmp_path, 50, 2)
