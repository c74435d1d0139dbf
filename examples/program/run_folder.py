"""The folder of a run: whose it is, and whether it is finished."""

import contextlib
import dataclasses
import json
import pathlib
import re
import shutil
from typing import Any

from program.repetition import Repeat

from packnet_tf import files
from packnet_tf import locks
from packnet_tf.errors import FileError

_OWN = (
    "results.json",
    "results.csv",
    "results_summary.csv",
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
# What `run.json` says beside the configuration.
_BESIDE = ("data", "files", "repeats", "versions")


class RunFolder:
    """The folder of a run of the program.

    Args:
        path: The folder, which need not exist.
        config: What the run is: equal for the same run.
        read: The fingerprint of each file that the configuration names, by its
            flag.

    Attributes:
        path: The folder.
    """

    def __init__(
        self,
        path: pathlib.Path,
        config: dict[str, Any],
        read: dict[str, str] | None = None,
    ) -> None:
        self.path = path
        self._config = json.loads(json.dumps(config))
        self._files = read or {}

    def check(self) -> None:
        """Checks that the folder is new, or belongs to this very run.

        Raises:
            FileError: If it belongs to another run.
        """
        known = self.run()
        if known is None:
            if self.path.is_dir() and any(
                (self.path / name).exists() for name in _OWN
            ):
                self._refuse_version()
            return
        self._refuse(
            [
                f"{name} was {known.get(name)!r} and is "
                f"{self._config.get(name)!r}"
                for name in sorted({*known, *self._config} - {*_BESIDE})
                if known.get(name) != self._config.get(name)
            ]
        )
        if "repeats" not in known:  # Whose results these are is not known.
            self._refuse_version()
        self._refuse(
            _changed("the file of", known.get("files", {}), self._files)
        )

    def place(self, repeats: list[Repeat]) -> list[Repeat]:
        """Says where in the folder each repeat is.

        What has begun stays where it is, wherever it stands among others now.

        Args:
            repeats: With the places that they have in a new folder.

        Raises:
            FileError: If one has begun with another order of the tasks.
        """
        begun = {repeat.name: repeat for repeat in self.repeats()}
        if not begun:
            return repeats
        found = [
            begun.get(r.name, dataclasses.replace(r, folder=r.name))
            for r in repeats
        ]
        self._refuse(
            [
                f"the order of {new.name} was {old.order} and is {new.order}"
                for old, new in zip(found, repeats)
                if old.order != new.order
            ]
        )
        return found

    def begin(
        self,
        repeats: list[Repeat],
        data: dict[str, str],
        versions: dict[str, str] | None = None,
    ) -> None:
        """Begins a run, or checks that this one can go on; notes its repeats.

        Args:
            repeats: As `place` returned them.
            data: Fingerprints of the data, by task or flag.
            versions: With which the run begins.

        Raises:
            FileError: If the data is other, the folder has been given to
                another repeat meanwhile, or it cannot be written.
        """
        known = self.run()
        if known is None:
            known = {
                **self._config,
                "files": self._files,
                "data": data,
                "versions": versions or {},
            }
        self._refuse(_changed("the data of", known.get("data", {}), data))
        begun = self.repeats()
        names = {repeat.name for repeat in begun}
        begun += [repeat for repeat in repeats if repeat.name not in names]
        known["repeats"] = [
            {"name": r.name, "seed": r.seed, "order": list(r.order)}
            for r in begun
        ]
        if not set(repeats) <= set(self._listed(known)):
            raise FileError(
                "Another process has begun a run in the folder. Run this "
                f"again. Received: --run_dir={self.path}"
            )
        if known != self.run():
            with files.replacing(self.path / "run.json") as new:
                new.write_text(json.dumps(known, indent=2) + "\n")

    def repeats(self) -> list[Repeat]:
        """Returns the repeats that have begun in the folder, in that order."""
        return self._listed(self.run() or {})

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

    def _listed(self, known: dict[str, Any]) -> list[Repeat]:
        """Reads which repeats there are; the first has the folder itself."""
        found: list[Repeat] = []
        try:
            for entry in known.get("repeats", []):
                name, seed = str(entry["name"]), int(entry["seed"])
                order = tuple(int(place) for place in entry["order"])
                if not _REPEAT.fullmatch(name):
                    raise ValueError(f"a repeat is called {name!r}")
                folder = name if found else "."
                found.append(Repeat(name, folder, seed, order))
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(self.path / "run.json", error) from error
        return found

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self.path / name
        if not path.exists():
            return None
        try:
            found = json.loads(path.read_text())
            if not isinstance(found, dict):
                raise ValueError("it holds no object")
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from error
        return found

    def _refuse_version(self) -> None:
        raise FileError(
            "The folder holds results of another program, or of another "
            "version of this one. Choose another with --run_dir, or replace "
            f"them with --overwrite. Received: --run_dir={self.path}"
        )

    def _refuse(self, differences: list[str]) -> None:
        if differences:
            raise FileError(
                "The folder holds a run of another configuration. Choose "
                "another with --run_dir, or replace it with --overwrite. "
                f"Received: --run_dir={self.path}, where "
                f"{'; '.join(differences)}"
            )


def _damaged(path: pathlib.Path, error: Exception) -> FileError:
    return FileError(
        "A file of the run folder is damaged. Replace the run with "
        f"--overwrite. Received: {path} ({error})"
    )


def _changed(
    what: str, before: dict[str, str], now: dict[str, str]
) -> list[str]:
    """Says of which there was another fingerprint before."""
    return [
        f"{what} {name} has changed"
        for name, value in now.items()
        if before.get(name) != value
    ]
