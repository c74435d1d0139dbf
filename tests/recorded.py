"""Runs a program, and lists what it writes below a folder.

    python recorded.py FOLDER LIST PROGRAM [ARGUMENT ...]

A line for each file or folder that Python makes, opens to write, renames or
removes, whoever asks for it. What TensorFlow itself writes is not seen.
"""

import os
import runpy
import sys
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate")


def record(folder: str, path: str) -> None:
    """Lists from now on what is written.

    Args:
        folder: What is written elsewhere is left out.
        path: The list.
    """
    within = os.path.join(os.path.realpath(folder), "")
    lines = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def see(event: str, args: tuple[Any, ...]) -> None:
        targets = args[:2] if event == "os.rename" else args[:1]
        if event not in _CHANGES and not (
            event == "open" and args[2] & _WRITING
        ):
            return
        for target in targets:
            if not isinstance(target, int):
                name = os.path.realpath(os.fsdecode(target))
                if name.startswith(within):
                    os.write(lines, f"{name[len(within) :]}\n".encode())

    sys.addaudithook(see)


def main() -> None:
    folder, path, program, *arguments = sys.argv[1:]
    record(folder, path)
    sys.argv[:] = [program, *arguments]
    sys.path[0] = os.path.dirname(os.path.abspath(program))
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main()
