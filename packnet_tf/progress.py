"""How far a sequence has come, kept in a folder that survives a kill.

The folder holds one packed model and `progress.json`, which names it. A model
is written beside the one that is named, then the JSON is replaced at once,
then the older model goes. So whenever it is read, both belong together.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
from typing import Any

import keras

from packnet_tf import files
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import FileError
from packnet_tf.errors import StageError
from packnet_tf.task_plan import TaskResult

PHASES = ("begin", "warmup", "train", "prune", "retrain", "freeze", "report")
"""What is done for a task, in order."""

_FILE = "progress.json"
_VERSION = 1
_MAX_BYTES = 2**26
_MODEL = re.compile(r"checkpoint-([0-9]{6,12})\.keras")


@dataclasses.dataclass
class Progress:
    """How far a sequence has come.

    Attributes:
        plans: The identity of each plan.
        seed: The seed of the sequence, or `None`.
        task: Index of the task in work, the number of plans at the end.
        phase: What is to be done next for it, one of `PHASES`.
        epochs: How many epochs of that are done.
        history: The logs of all epochs of the task.
        train_from: The epoch at which its training began.
        retrain_from: The epoch at which its retraining began.
        results: What came of the tasks that are finished.
        model: Name of the model's file, empty before the first.
        size: Bytes of that file.
        state: What `describe` told of the model.
    """

    plans: list[dict[str, Any]]
    seed: int | None = None
    task: int = 0
    phase: str = PHASES[0]
    epochs: int = 0
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    train_from: int = 0
    retrain_from: int = 0
    results: list[TaskResult] = dataclasses.field(default_factory=list)
    model: str = ""
    size: int = 0
    state: dict[str, Any] = dataclasses.field(default_factory=dict)

    def enter(self, phase: str) -> None:
        """Goes on to a phase of the same task.

        Args:
            phase: One of `PHASES`.
        """
        self.phase, self.epochs = phase, 0

    def next_task(self) -> None:
        """Goes on to the next task."""
        self.enter(PHASES[0])
        self.task += 1
        self.history, self.train_from, self.retrain_from = [], 0, 0


def describe(model: keras.Model) -> dict[str, Any]:
    """Returns what tells in which state a packed model is.

    Args:
        model: The packed model.

    Returns:
        Its tasks, stage, steps, number of parameters, and the updates that
        its optimizer has made, `None` before it is built.
    """
    optimizer = getattr(model, "optimizer", None)
    return {
        "tasks": list(model.task_names),
        "stage": None if model.stage is None else str(model.stage),
        "steps": int(model.steps.numpy()),
        "parameters": int(model.count_params()),
        "updates": int(optimizer.iterations.numpy())
        if optimizer is not None and optimizer.built
        else None,
    }


def check_continues(
    found: Progress,
    plans: list[dict[str, Any]],
    seed: int | None,
    model: keras.Model,
) -> None:
    """Checks that a sequence is the one whose progress was read.

    Args:
        found: What was read.
        plans: The identity of each plan.
        seed: The seed of the sequence, or `None`.
        model: The packed model to go on with.

    Raises:
        ArgumentError: If the seed or a plan differs, or one is missing. More
            plans at the end are fine.
        StageError: If the model is not the one that was saved.
    """
    if seed != found.seed:
        raise ArgumentError(
            "The checkpoint is of a sequence with another seed. Give that, "
            "or choose another `checkpoint_dir`. "
            f"Received: seed={seed}, expected {found.seed}"
        )
    if len(plans) < len(found.plans):
        raise ArgumentError(
            "The checkpoint is of a sequence of more tasks. Give all of them "
            "again, new ones at the end, or choose another `checkpoint_dir`. "
            f"Received: tasks={[plan['name'] for plan in plans]}, expected "
            f"{[plan.get('name') for plan in found.plans]}"
        )
    for number, (before, now) in enumerate(zip(found.plans, plans), 1):
        for key in [*now, *(set(before) - set(now))]:
            if before.get(key) != now.get(key):
                raise ArgumentError(
                    f"The checkpoint is of a sequence whose plan {number} has "
                    f"another `{key}`. Give the same plans, new ones at the "
                    "end, or choose another `checkpoint_dir`. "
                    f"Received: {key}={now.get(key)!r} for {now['name']!r}, "
                    f"expected {before.get(key)!r}"
                )
    state = describe(model)
    if not found.epochs:
        # A phase that has not begun compiles the model itself.
        state["updates"] = found.state.get("updates")
    for key, value in state.items():
        if value != found.state.get(key):
            raise StageError(
                "The model is not the one of the checkpoint. Pass on what "
                "`sequence.restore(checkpoint_dir)` returns, neither trained "
                "nor compiled in between, or choose another "
                f"`checkpoint_dir`. Received: a model with {key}={value}, "
                f"expected {found.state.get(key)}"
            )


def read(folder: "str | os.PathLike[str]") -> Progress | None:
    """Reads how far a sequence has come.

    Nothing that is read leads out of the folder.

    Args:
        folder: The folder of the checkpoint.

    Returns:
        The progress, or `None` if there is none.

    Raises:
        FileError: If there is one that cannot be used.
    """
    path = pathlib.Path(folder) / _FILE
    try:
        if not os.path.lexists(path):
            return None
        _expect(path.is_file(), f"'{_FILE}' is no file")
        size = path.stat().st_size
        _expect(size <= _MAX_BYTES, f"'{_FILE}' has {size} bytes")
        found = _from_json(json.loads(path.read_text(encoding="utf-8")))
        model = path.parent / found.model
        _expect(
            model.is_file() and not model.is_symlink(),
            f"the model '{found.model}' is not there",
        )
        size = model.stat().st_size
        _expect(
            size == found.size,
            f"the model '{found.model}' has {size} bytes instead of "
            f"{found.size}",
        )
    except (OSError, ValueError, RecursionError) as error:
        raise FileError(
            f"The checkpoint of a sequence cannot be used: {error}. Put back "
            "a copy of the whole folder, or choose another one to begin "
            "anew; a model in it can be had by `packnet_tf.load_model`. "
            f"Received: checkpoint_dir={str(folder)!r}"
        ) from error
    return found


def write(
    folder: "str | os.PathLike[str]",
    progress: Progress,
    model: keras.Model | None = None,
) -> None:
    """Writes how far a sequence has come; killed in between, what was stays.

    Args:
        folder: The folder of the checkpoint, made if it is not there.
        progress: What to write. What it says of the model is brought up to
            date.
        model: The packed model, `None` if it is as it was written last.

    Raises:
        FileError: If it cannot be written. What was there stays.
    """
    folder = pathlib.Path(folder)
    new = progress
    try:
        if model is not None:
            match = _MODEL.fullmatch(progress.model)
            number = int(match[1]) + 1 if match else 1
            path = folder / f"checkpoint-{number:06}.keras"
            model.save(path)
            new = dataclasses.replace(
                progress,
                model=path.name,
                size=path.stat().st_size,
                state=describe(model),
            )
        text = json.dumps(
            {"version": _VERSION, **dataclasses.asdict(new)}, indent=1
        )
        with files.replacing(folder / _FILE) as scratch:
            scratch.write_text(text, encoding="utf-8")
    finally:
        clean(folder)
    progress.model, progress.size = new.model, new.size
    progress.state = new.state


def clean(folder: "str | os.PathLike[str]") -> None:
    """Removes other models than the one named, and what a kill has left.

    Args:
        folder: The folder of the checkpoint.
    """
    folder = pathlib.Path(folder)
    # What cannot be removed now is in nobody's way.
    with contextlib.suppress(OSError, ValueError):
        files.remove_left_over(folder / _FILE)
        # An interrupt may come at any moment, so that the file alone tells
        # which model it names.
        found = read(folder)
        if found is None:
            return
        for path in list(folder.iterdir()):
            if _MODEL.fullmatch(path.name) and path.name != found.model:
                path.unlink()


def _from_json(data: Any) -> Progress:
    """Checks all that was read, as anyone may have written it."""
    _expect(isinstance(data, dict), "it holds no object")
    version = data.pop("version", None)
    _expect(version == _VERSION, f"its version is {version!r}")
    names = {field.name for field in dataclasses.fields(Progress)}
    _expect(set(data) == names, "its entries are others")
    for name in ("task", "epochs", "train_from", "retrain_from", "size"):
        _expect(_is_count(data[name]), f"its {name!r} is no count")
    _expect(data["seed"] is None or _is_count(data["seed"]), "its seed is none")
    _expect(data["phase"] in PHASES, "it has no such phase")
    _expect(
        isinstance(data["model"], str) and _MODEL.fullmatch(data["model"]),
        "the model has a name that none has",
    )
    _expect(isinstance(data["state"], dict), "the model's state is none")
    plans = data["plans"]
    _expect(
        isinstance(plans, list)
        and all(isinstance(plan, dict) for plan in plans),
        "its plans are none",
    )
    _expect(_is_history(data["history"]), "its history is none")
    _expect(data["epochs"] <= len(data["history"]), "its history is short")
    results = data["results"]
    _expect(
        isinstance(results, list)
        and len(results) == data["task"] + (data["phase"] == "report")
        and len(results) <= len(plans),
        "its results are not those of its plans",
    )
    fields = {field.name for field in dataclasses.fields(TaskResult)}
    for result in results:
        _expect(
            isinstance(result, dict)
            and set(result) == fields
            and isinstance(result["name"], str)
            and isinstance(result["fingerprint"], str)
            and _is_count(result["train_from"])
            and _is_count(result["retrain_from"])
            and _is_history(result["history"]),
            "a result is none",
        )
    data["results"] = [TaskResult(**result) for result in results]
    return Progress(**data)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_history(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(logs, dict)
        and all(type(number) in (int, float) for number in logs.values())
        for logs in value
    )


def _expect(condition: Any, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)
