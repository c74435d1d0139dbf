"""The packed network: all tasks in one, as the library learns them."""

import json
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from loading import datasets
from methods import experiment
from methods import keeping
from methods import logs

import packnet_tf
from packnet_tf import capacity
from packnet_tf import distribute
from packnet_tf import files
from packnet_tf import sequence

NAME = "packnet"


def learn(
    setting: experiment.Experiment, wrap: dict[str, Any]
) -> dict[str, Any]:
    """Learns all tasks in one network; goes on where it was interrupted.

    Writes `packed.keras` after each task, and at the end a SavedModel per
    task. Of several workers, the first one alone writes.

    Args:
        setting: The experiment.
        wrap: Arguments for `packnet_tf.wrap`.

    Returns:
        What `results.json` holds of a method; in other workers than the
        first, nothing.
    """
    checkpoint_dir = setting.folder / "progress" / NAME
    restored = sequence.restore(checkpoint_dir)
    model, plans = begin(setting, wrap, restored)
    names = [plan.name for plan in setting.plans]
    rows = _Rows(setting.folder / "progress" / NAME / "matrix.json")

    def compile_fn(
        model: packnet_tf.PackNetModel, plan: sequence.TaskPlan, phase: str
    ) -> None:
        if setting.keep and plan.name == setting.keep.name:
            setting.keep.compile(
                model,
                plan.steps_per_epoch,
                jit_compile=setting.recipe.jit_compile,
            )
            return
        epochs = {
            "warmup": plan.warmup_epochs,
            "train": plan.epochs,
            "retrain": plan.retrain_epochs,
        }[phase]
        setting.compile(model, phase, epochs, plan.steps_per_epoch)

    def callbacks(plan: sequence.TaskPlan, phase: str) -> list[Any]:
        if not distribute.is_chief(model.distribute_strategy):
            return []
        before = {
            "warmup": 0,
            "train": plan.warmup_epochs,
            "retrain": plan.warmup_epochs + plan.epochs,
        }[phase]
        return setting.journal(NAME, plan.name, phase, before)

    def on_frozen(plan: sequence.TaskPlan, result: Any) -> None:
        row = {}
        if plan.name in names:
            row = {
                name: setting.accuracy(
                    setting.predict(model, setting.find(name), task=name),
                    setting.find(name),
                )
                for name in model.task_names
                if name in names
            }

        def write() -> None:
            if row:
                rows.put(plan.name, [row.get(name) for name in names])
            model.save(setting.folder / "packed.keras")

        distribute.chief_does(write, model.distribute_strategy)

    results = sequence.run(
        model,
        plans,
        compile_fn,
        callbacks=callbacks,
        on_frozen=on_frozen,
        verbose=setting.verbose,
        checkpoint_dir=checkpoint_dir,
        seed=setting.seed,
    )
    model.verify()
    predicted = {
        data.name: setting.predict(model, data, task=data.name)
        for data in setting.data
    }
    kept = None
    if setting.keep:
        kept = keeping.test(setting, model, task=setting.keep.name)
    found: dict[str, Any] = {}

    def finish() -> None:
        matrix = [rows.get(name) for name in names]
        found.update(_finish(setting, model, results, matrix, predicted, kept))

    distribute.chief_does(finish, model.distribute_strategy)
    return found


def begin(
    setting: experiment.Experiment,
    wrap: dict[str, Any],
    model: packnet_tf.PackNetModel | None = None,
) -> tuple[packnet_tf.PackNetModel, list[sequence.TaskPlan]]:
    """Returns the packed network, and the plans for all tasks.

    Args:
        setting: The experiment.
        wrap: Arguments for `packnet_tf.wrap`.
        model: The network to go on with; `None` to make a new one.
    """
    keras.utils.set_random_seed(setting.seed)
    plans = list(setting.plans)
    if setting.keep:
        network, classifier = setting.network.build_parts()
        plans.insert(0, keeping.make_plan(setting, classifier))
    elif model is None:
        network = setting.network.build()
    if model is None:
        model = packnet_tf.wrap(network, head=None, name="packed", **wrap)
    return model, plans


class _Rows:
    """The rows of the matrix of accuracies, in a file."""

    def __init__(self, path: Any) -> None:
        self._path = path

    def get(self, task: str) -> list[float | None]:
        return self._read()[task]

    def put(self, task: str, row: list[float | None]) -> None:
        rows = {**self._read(), task: row}
        with files.replacing(self._path) as new:
            new.write_text(json.dumps(rows))

    def _read(self) -> dict[str, list[float | None]]:
        if not self._path.exists():
            return {}
        return json.loads(self._path.read_text())


def _finish(
    setting: experiment.Experiment,
    model: packnet_tf.PackNetModel,
    results: list[sequence.TaskResult],
    matrix: list[list[float | None]],
    predicted: dict[str, np.ndarray],
    kept: dict[str, Any] | None,
) -> dict[str, Any]:
    """Writes what the final network predicts, and exports each task."""
    folder = setting.folder
    shares: capacity.Capacity = model.summary_capacity(
        print_fn=lambda text: None
    )
    final, exported = [], {}
    if setting.keep:
        # Of raw images it makes what the first task does, if it has none.
        data = setting.keep.test
        exported[setting.keep.name] = _export(
            setting,
            model,
            setting.keep.name,
            data or setting.data[0],
            data.class_names if data is not None else (),
        )
    for data in setting.data:
        chosen = predicted[data.name]
        setting.write_predictions(NAME, data, chosen, examples=True)
        final.append(setting.accuracy(chosen, data))
        exported[data.name] = _export(
            setting, model, data.name, data, data.class_names
        )
    # The last row is what the final network does; it has to be the same.
    matrix[-1] = final
    shares.plot(folder / "capacity.png")
    by_name = {result.name: result for result in results}
    plans = {plan.name: plan for plan in setting.plans}
    found = {
        "matrix": matrix,
        "history": {name: by_name[name].history for name in plans},
        "phases": {name: _phases(by_name[name]) for name in plans},
        "bytes": experiment.size_of(folder / "packed.keras"),
        "seconds": round(logs.seconds(folder, NAME), 1),
        "shares": {name: shares.share(name) for name in by_name},
        "owned": {name: shares.owned[name] for name in by_name},
        "sparsities": _sparsities(shares, by_name),
        "fingerprints": {
            name: result.fingerprint for name, result in by_name.items()
        },
        "export_bytes": exported,
        "capacity": shares.to_dict(),
    }
    if kept is not None:
        found["kept"] = {**kept, "sparsity": setting.keep.sparsity}
    return found


def _export(
    setting: experiment.Experiment,
    model: packnet_tf.PackNetModel,
    task: str,
    data: datasets.Dataset,
    class_names: tuple[str, ...],
) -> int:
    """Exports a task that takes images as this data has; returns the bytes."""
    path = setting.folder / "export" / task
    model.export_task(
        task,
        path,
        preprocessing=setting.pipeline.inputs(data),
        class_names=_labels(class_names),
    )
    return experiment.size_of(path)


def _labels(names: tuple[str, ...]) -> tuple[str, ...] | None:
    """Returns class names if they can be labels: a file may hold any."""
    usable = all(name.splitlines() == [name] for name in names)
    return names if usable and len(set(names)) == len(names) > 1 else None


def _phases(result: sequence.TaskResult) -> list[list[Any]]:
    ends = [0, result.train_from, result.retrain_from, len(result.history)]
    names = ("warmup", "train", "retrain")
    return [
        [name, end - begin]
        for name, begin, end in zip(names, ends, ends[1:])
        if end > begin
    ]


def _sparsities(
    shares: capacity.Capacity, names: Iterable[str]
) -> dict[str, float]:
    """Returns which fraction of its pool each task has released."""
    found, pool = {}, shares.total
    for task, owned in shares.owned.items():
        pool -= owned
        if task in names:
            found[task] = pool / (pool + owned) if pool + owned else 0.0
    return found
