"""Holds all files to what can be seen in their text alone."""

import re
import subprocess

import pytest
from sources import ROOT

MAX_COLUMNS = 80
# Folders of one machine. What stands before tells a path that starts there
# from one that only passes through such a name, as in a URL.
MACHINE_PATH = re.compile(rb"(?<![\w.~)}\]-])/(?:home|root|tmp|work)\b")


@pytest.fixture(scope="module")
def files():
    """Returns the files that git tracks."""
    try:
        done = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True
        )
    except FileNotFoundError:
        pytest.skip("git is not installed")
    names = done.stdout.decode().split("\0")[:-1]
    if done.returncode or not names:
        pytest.skip(f"not a git checkout: {done.stderr.decode().strip()}")
    paths = [ROOT / name for name in names]
    return [path for path in paths if path.is_file()]


def test_files_name_no_folder_of_one_machine(files):
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.decode(errors='replace')}"
        for path in files
        for number, line in enumerate(path.read_bytes().split(b"\n"), 1)
        if MACHINE_PATH.search(line)
    ]
    assert not found, "\n" + "\n".join(found)


def test_lines_of_code_are_short(files):
    found = [
        f"{path.relative_to(ROOT)}:{number}: {len(line)} columns"
        for path in files
        if path.suffix == ".py"
        for number, line in enumerate(
            path.read_text(encoding="utf-8").splitlines(), 1
        )
        if len(line) > MAX_COLUMNS
    ]
    assert not found, "\n" + "\n".join(found)
