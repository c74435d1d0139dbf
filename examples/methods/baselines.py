"""What packing is compared with: plain networks, trained in other ways.

All have the budget of the packed network: the same data, epochs, optimizer
and learning rates. They differ in what happens to the earlier tasks.
"""

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from loading import joined
from loading.datasets import Dataset
from methods import checkpoints
from methods import experiment
from methods import keeping
from methods import logs
from methods import mixing
from methods.plain_network import PlainNetwork

from packnet_tf import files
from packnet_tf import sequence


@dataclasses.dataclass
class Progress:
    """Where a baseline stands.

    Attributes:
        group: Index of the tasks that are being learned.
        begun: Whether their classifiers are there.
        phase: Index of their phase.
        epoch: Epochs of it that are done.
        history: Logs of each epoch, per task.
        phases: Name and epochs of each finished phase, per task.
        matrix: Test accuracy of each task, after each task.
    """

    group: int = 0
    begun: bool = False
    phase: int = 0
    epoch: int = 0
    history: dict[str, list[dict[str, float]]] = dataclasses.field(
        default_factory=dict
    )
    phases: dict[str, list[list[Any]]] = dataclasses.field(default_factory=dict)
    matrix: list[list[float | None]] = dataclasses.field(default_factory=list)


class FineTuning:
    """Trains all of the network on one task after the other.

    The base of the other baselines. It goes on from its last completed epoch
    if it was interrupted.

    Args:
        setting: The experiment.
        name: Name of the method in results.
        plans: The tasks. Defaults to all.
    """

    def __init__(
        self,
        setting: experiment.Experiment,
        name: str,
        plans: list[sequence.TaskPlan] | None = None,
    ) -> None:
        self.setting = setting
        self.name = name
        self.plans = setting.plans if plans is None else plans
        self.keep = setting.keep.name if setting.keep else None
        self.teacher: PlainNetwork | None = None
        self.progress = Progress()

    # What a method may change.

    @property
    def groups(self) -> list[list[sequence.TaskPlan]]:
        """The tasks that are learned together, one group after the other."""
        return [[plan] for plan in self.plans]

    def imitated(self, tasks: list[str]) -> list[str]:
        """Names the tasks whose outputs are held while learning others."""
        return []

    @property
    def hold(self) -> float:
        """The weight of the loss of each task that is held."""
        return 1.0

    def learns(self, phase: str) -> bool:
        """Tells whether the shared part learns in a phase."""
        return phase != "warmup"

    def make_model(self, tasks: list[str]) -> keras.Model:
        """Makes the model that learns some tasks."""
        return self.network.model(tasks)

    def begin(self) -> None:
        """Is called before the first task, unless it was begun before."""

    def end_group(self, tasks: list[str]) -> None:
        """Is called when tasks have been learned."""

    def extra_arrays(self) -> dict[str, np.ndarray]:
        """Returns what else a checkpoint holds."""
        return {}

    def take_extra_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        """Takes what `extra_arrays` gave."""

    # How it goes.

    def learn_once(self) -> dict[str, Any]:
        """The same as `learn`, and nothing if it is done already."""
        return experiment.once(self.setting.folder, self.name, self.learn)

    def learn(self) -> dict[str, Any]:
        """Learns all tasks.

        Returns:
            What `results.json` holds of a method.
        """
        saved = checkpoints.read(self._checkpoint)
        keras.utils.set_random_seed(self.setting.seed)
        self.network = PlainNetwork(self.setting.network, self.keep)
        if saved is not None:
            self._restore(*saved)
        else:
            self.begin()
        for index in range(self.progress.group, len(self.groups)):
            self._learn_group(index)
        return self._finish()

    @property
    def _checkpoint(self) -> Any:
        return self.setting.folder / "progress" / f"{self.name}.npz"

    def _learn_group(self, index: int) -> None:
        plans = self.groups[index]
        tasks = [plan.name for plan in plans]
        if not self.progress.begun:
            keras.utils.set_random_seed(self.setting.seed + index)
            for plan in plans:
                self.network.add_head(plan.name, plan.units)
            if self.imitated(tasks):
                self.teacher = self.network.copy()
            self.progress.begun = True
        phases = _phases(plans[0])
        for place in range(self.progress.phase, len(phases)):
            # The order of the images follows from it, too: the same where a
            # phase goes on after a kill.
            keras.utils.set_random_seed(self.setting.seed + index)
            self._learn_phase(plans, *phases[place])
            self.progress.phase, self.progress.epoch = place + 1, 0
            self._optimizer = None
        self.network.let_learn(True)
        self.end_group(tasks)
        unknown = [None] * len(self.plans)
        self.progress.matrix += [unknown] * (len(plans) - 1) + [self._test()]
        self.progress.group += 1
        self.progress.phase, self.progress.begun = 0, False
        self._save()

    _optimizer: dict[str, np.ndarray] | None = None

    def _learn_phase(
        self, plans: list[sequence.TaskPlan], phase: str, epochs: int
    ) -> None:
        tasks = [plan.name for plan in plans]
        label = "+".join(tasks)
        steps = sum(plan.steps_per_epoch for plan in plans)
        history = self.progress.history.setdefault(label, [])
        done = self.progress.phases.setdefault(label, [])
        before = sum(count for _, count in done)
        self.network.let_learn(self.learns(phase), tasks)
        imitated = self.imitated(tasks)
        model = self.make_model([*tasks, *imitated])
        self._compile(model, phase, epochs, steps, len(tasks), len(imitated))
        if self._optimizer is not None:
            model.optimizer.build(model.trainable_variables)
            for index, variable in enumerate(model.optimizer.variables):
                variable.assign(self._optimizer[f"optimizer/{index}"])
        data = [self.setting.find(task) for task in tasks]
        whole = data[0] if len(data) == 1 else joined.join(data, label)
        start = (before + self.progress.epoch) * steps
        pipeline = self.setting.pipeline
        batches = (
            pipeline.training(whole, start)
            if len(data) == 1
            else mixing.training(
                pipeline, data, [plan.steps_per_epoch for plan in plans], start
            )
        )
        self._model = model
        if not _is_over(plans[0], history[before:]):
            model.fit(
                self._targets(batches, data, imitated),
                steps_per_epoch=steps,
                epochs=epochs,
                initial_epoch=self.progress.epoch,
                validation_data=self._targets(
                    pipeline.evaluation(whole, whole.val),
                    data,
                    imitated,
                ),
                shuffle=False,  # The pipeline does that.
                callbacks=[
                    *self.setting.journal(self.name, label, phase, before),
                    _AfterEpoch(self, history, tasks, before, plans[0]),
                ],
                verbose=self.setting.verbose,
            )
        done.append([phase, len(history) - before])

    def _compile(
        self,
        model: keras.Model,
        phase: str,
        epochs: int,
        steps: int,
        own: int,
        imitated: int,
    ) -> None:
        if own + imitated == 1:
            self.setting.compile(model, phase, epochs, steps)
            return
        soft = keeping.Distillation(self.setting.recipe.lwf_temperature)
        self.setting.compile(
            model,
            phase,
            epochs,
            steps,
            loss=["sparse_categorical_crossentropy"] * own + [soft] * imitated,
            loss_weights=[1.0] * own + [self.hold] * imitated,
            metrics=None,
            weighted_metrics=[["accuracy"]] * own + [[]] * imitated,
        )

    def _targets(
        self,
        batches: tf.data.Dataset,
        data: list[Dataset],
        imitated: list[str],
    ) -> tf.data.Dataset:
        """Gives each output its target, and a weight for each example."""
        if len(data) + len(imitated) == 1:
            return batches
        ends = np.cumsum([task.num_classes for task in data])
        model = self.teacher.model(imitated) if imitated else None

        def give(x: tf.Tensor, y: tf.Tensor) -> tuple[Any, Any, Any]:
            targets, weights = [], []
            for task, end in zip(data, ends):
                label = y - (end - task.num_classes)
                own = (label >= 0) & (label < task.num_classes)
                targets.append(tf.where(own, label, 0))
                weights.append(tf.cast(own, tf.float32))
            if model is not None:
                soft = model(x, training=False)
                soft = soft if isinstance(soft, list) else [soft]
                targets += soft
                weights += [tf.ones_like(weights[0])] * len(soft)
            return x, tuple(targets), tuple(weights)

        return batches.map(give).prefetch(2)

    def _test(self) -> list[float | None]:
        """Returns the accuracy on all tasks that are learned."""
        row: list[float | None] = []
        self.predicted = {}
        for plan in self.plans:
            if plan.name not in self.network.heads:
                row.append(None)
                continue
            data = self.setting.find(plan.name)
            predicted = self.setting.predict(
                self.network.model([plan.name]), data
            )
            self.predicted[plan.name] = predicted
            row.append(self.setting.accuracy(predicted, data))
        return row

    def _finish(self) -> dict[str, Any]:
        setting = self.setting
        self._test()
        for task, predicted in self.predicted.items():
            setting.write_predictions(self.name, setting.find(task), predicted)
        path = setting.folder / "baselines" / f"{self.name}.keras"
        with files.replacing(path) as new:
            # For inference only: without the optimizer's state.
            self.network.model(list(self.network.heads)).save(new)
        result = {
            "matrix": self.progress.matrix,
            "history": self.progress.history,
            "phases": self.progress.phases,
            "bytes": experiment.size_of(path),
            "seconds": round(logs.seconds(setting.folder, self.name), 1),
        }
        if setting.keep:
            result["kept"] = keeping.test(
                setting, self.network.model([self.keep])
            )
        return result

    def _save(self) -> None:
        arrays = {**self.network.to_arrays(), **self.extra_arrays()}
        if self.progress.epoch:
            optimizer = self._model.optimizer
            for index, variable in enumerate(optimizer.variables):
                arrays[f"optimizer/{index}"] = variable.numpy()
        if self.progress.begun and self.teacher is not None:
            arrays |= {
                f"teacher/{name}": value
                for name, value in self.teacher.to_arrays().items()
            }
        checkpoints.write(
            self._checkpoint, arrays, dataclasses.asdict(self.progress)
        )

    def _restore(
        self, arrays: dict[str, np.ndarray], progress: dict[str, Any]
    ) -> None:
        self.progress = Progress(**progress)
        begun = self.progress.group + self.progress.begun
        groups = self.groups[:begun]
        for plan in (plan for group in groups for plan in group):
            self.network.add_head(plan.name, plan.units)
        self.network.assign(arrays)
        taught = {
            name.removeprefix("teacher/"): value
            for name, value in arrays.items()
            if name.startswith("teacher/")
        }
        if taught:
            self.teacher = self.network.copy()
            self.teacher.assign(taught)
        if self.progress.epoch:
            self._optimizer = {
                name: value
                for name, value in arrays.items()
                if name.startswith("optimizer/")
            }
        self.take_extra_arrays(arrays)


class ClassifierOnly(FineTuning):
    """Trains a classifier per task; the network stays as it came."""

    def learns(self, phase: str) -> bool:
        return False


class Joint(FineTuning):
    """Trains on the data of all tasks together: what forgets nothing."""

    @property
    def groups(self) -> list[list[sequence.TaskPlan]]:
        return [list(self.plans)]

    def imitated(self, tasks: list[str]) -> list[str]:
        return [self.keep] if self.keep else []


class LearningWithoutForgetting(FineTuning):
    """Holds the outputs for earlier tasks, on the images of the new one.

    Reference:
        - [Li and Hoiem, 2016](https://arxiv.org/abs/1606.09282)
    """

    def imitated(self, tasks: list[str]) -> list[str]:
        return [task for task in self.network.heads if task not in tasks]

    @property
    def hold(self) -> float:
        # The loss of distillation has the square of the temperature in it,
        # that of learning without forgetting has not.
        recipe = self.setting.recipe
        return recipe.lwf_strength / recipe.lwf_temperature**2


class _AfterEpoch(keras.callbacks.Callback):
    """Keeps the logs of an epoch and saves; stops where nothing improves.

    Comes last: what is saved has been logged.
    """

    def __init__(
        self,
        method: FineTuning,
        history: list[dict[str, float]],
        tasks: list[str],
        before: int,
        plan: sequence.TaskPlan,
    ) -> None:
        super().__init__()
        self._method = method
        self._history = history
        self._tasks = tasks
        self._before = before
        self._plan = plan

    def on_epoch_end(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        logs = {name: float(value) for name, value in (logs or {}).items()}
        heads = [self._method.network.heads[task].name for task in self._tasks]
        for part in ("", "val_"):
            # Of a model with other outputs, too, the logs carry its name.
            own = [f"{part}{head}_accuracy" for head in heads]
            if all(name in logs for name in own):
                logs[f"{part}accuracy"] = float(
                    np.mean([logs[name] for name in own])
                )
                if len(own) == 1:
                    del logs[own[0]]
        self._history.append(logs)
        self._method.progress.epoch = epoch + 1
        self._method._save()
        if _is_over(self._plan, self._history[self._before :]):
            self.model.stop_training = True


def learn_individual(setting: experiment.Experiment) -> dict[str, Any]:
    """Trains a network of its own for each task.

    Args:
        setting: The experiment.

    Returns:
        What `results.json` holds of a method.
    """
    plans = setting.plans
    matrix: list[list[float | None]] = [[None] * len(plans) for _ in plans]
    whole: dict[str, Any] = {
        "matrix": matrix,
        "history": {},
        "phases": {},
        "bytes": 0,
        "seconds": 0.0,
    }
    alone = dataclasses.replace(setting, keep=None)
    for place, plan in enumerate(plans):
        name = f"individual/{plan.name}"
        result = FineTuning(alone, name, [plan]).learn_once()
        ((matrix[place][place],),) = result["matrix"]
        whole["history"] |= result["history"]
        whole["phases"] |= result["phases"]
        whole["bytes"] += result["bytes"]
        whole["seconds"] += result["seconds"]
    return whole


def _phases(plan: sequence.TaskPlan) -> list[tuple[str, int]]:
    """Lists the phases of a task that the packed network has, too."""
    pruned = plan.sparsity > 0.0 or plan.schedule is not None
    phases = [
        ("warmup", plan.warmup_epochs),
        ("train", plan.epochs),
        ("retrain", plan.retrain_epochs if pruned else 0),
    ]
    return [(phase, epochs) for phase, epochs in phases if epochs]


def _is_over(plan: sequence.TaskPlan, history: list[dict[str, float]]) -> bool:
    return bool(history) and plan.is_over(history)
