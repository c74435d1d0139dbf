"""The folder of a run: whose it is, and whether it is finished."""

import contextlib
import json
import pathlib
import re
import shutil
from typing import Any

from packnet_tf import files
from packnet_tf import locks
from packnet_tf.errors import FileError

_OWN = (
    "results.json",
    "results.csv",
    "report.html",
    "log.jsonl",
    "packed.keras",
    "capacity.png",
    "run.json",  # The last to be removed: it says whose the others are.
)
_OWN_FOLDERS = (
    "baselines",
    "export",
    "methods",
    "predictions",
    "progress",
    "tensorboard",
)
_REPEAT = re.compile(r"(order[0-9]+_)?seed[0-9]+")


class RunFolder:
    """The folder of a run of the program.

    Args:
        path: The folder, which need not exist.
        config: What the run is: equal for the same run.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: pathlib.Path, config: dict[str, Any]) -> None:
        self.path = path
        self._config = json.loads(json.dumps(config))

    def check(self) -> None:
        """Checks that the folder is new, or belongs to this very run.

        Raises:
            FileError: If it belongs to another run.
        """
        known = self._read("run.json")
        if known is None:
            if self.path.is_dir() and any(
                (self.path / name).exists() for name in _OWN
            ):
                raise FileError(
                    "The folder holds results of another program, or of "
                    "another version of this one. Choose another with "
                    "--run_dir, or replace them with --overwrite. "
                    f"Received: --run_dir={self.path}"
                )
            return
        differences = [
            f"{name} was {known.get(name)!r} and is {self._config.get(name)!r}"
            for name in sorted({*known, *self._config} - {"data"})
            if known.get(name) != self._config.get(name)
        ]
        self._refuse(differences)

    def check_data(self, fingerprints: dict[str, str]) -> None:
        """Checks that the data is what the run began with, or begins it.

        Args:
            fingerprints: Of each task by its name.

        Raises:
            FileError: If the data is other, or the folder cannot be written.
        """
        known = self._read("run.json")
        if known is None:
            with files.replacing(self.path / "run.json") as new:
                new.write_text(
                    json.dumps({**self._config, "data": fingerprints}, indent=2)
                    + "\n"
                )
            return
        before = known.get("data", {})
        self._refuse(
            [
                f"the data of {name} has changed"
                for name, value in fingerprints.items()
                if before.get(name) != value
            ]
        )

    def run(self) -> dict[str, Any] | None:
        """Returns what run the folder holds, `None` if none has begun."""
        return self._read("run.json")

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Keeps the folder for this process while a run is at work in it.

        Raises:
            FileError: If another process keeps it.
        """
        return locks.locked(self.path)

    def is_new(self) -> bool:
        """Tells whether no run has begun in the folder."""
        return not (self.path / "run.json").exists()

    def results(self) -> dict[str, Any] | None:
        """Returns what a finished run found, `None` if it is not finished."""
        return self._read("results.json")

    def write_results(self, results: dict[str, Any]) -> None:
        """Writes `results.json`: the run is finished."""
        with files.replacing(self.path / "results.json") as new:
            new.write_text(json.dumps(results, indent=2) + "\n")

    def clear(self) -> None:
        """Removes what runs left in the folder, and nothing else.

        Of all repeats, as a later run may ask for one that this does not. A
        folder that holds no run is left alone, whatever its folders are
        called.
        """
        if not any((self.path / name).is_file() for name in _OWN):
            return
        repeats = [
            path
            for path in self.path.iterdir()
            if path.is_dir() and _REPEAT.fullmatch(path.name)
        ]
        for folder in (*repeats, self.path):
            for name in _OWN_FOLDERS:
                if (folder / name).is_dir():
                    shutil.rmtree(folder / name)
            for name in _OWN:
                (folder / name).unlink(missing_ok=True)

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self.path / name
        if not path.exists():
            return None
        try:
            found = json.loads(path.read_text())
            if not isinstance(found, dict):
                raise ValueError("it holds no object")
        except (OSError, ValueError) as error:
            raise FileError(
                "A file of the run folder is damaged. Replace the run with "
                f"--overwrite. Received: {path} ({error})"
            ) from error
        return found

    def _refuse(self, differences: list[str]) -> None:
        if differences:
            raise FileError(
                "The folder holds a run of another configuration. Choose "
                "another with --run_dir, or replace it with --overwrite. "
                f"Received: --run_dir={self.path}, where "
                f"{'; '.join(differences)}"
            )
