"""What all methods of an experiment share, and how they are tested."""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Callable
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from loading import datasets
from loading import pipelines
from methods import keeping
from methods import logs
from methods import networks
from methods import recipes

from packnet_tf import files
from packnet_tf import sequence

_EXAMPLES = 12


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One repeat of an experiment: a seed, and an order of the tasks.

    Attributes:
        network: Makes the network.
        pipeline: Feeds images to it.
        recipe: How it is trained.
        data: The tasks, in the order they are learned.
        plans: What to do for each.
        folder: Where results go.
        seed: Of weights, shuffling and dropout.
        verbose: As for `fit`.
        keep: How the network's own classifier is kept, if it is.
    """

    network: networks.Network
    pipeline: pipelines.Pipeline
    recipe: recipes.Recipe
    data: list[datasets.Dataset]
    plans: list[sequence.TaskPlan]
    folder: pathlib.Path
    seed: int
    verbose: int
    keep: keeping.Keeping | None = None

    def find(self, name: str) -> datasets.Dataset:
        """Returns the task of that name."""
        return next(data for data in self.data if data.name == name)

    def compile(
        self,
        model: keras.Model,
        phase: str,
        epochs: int,
        steps: int,
        **kwargs: Any,
    ) -> None:
        """Compiles a model for a phase with a new optimizer.

        Args:
            model: The model.
            phase: `"warmup"`, `"train"` or `"retrain"`.
            epochs: Epochs of the phase.
            steps: Steps of an epoch.
            **kwargs: Also for `model.compile`, in place of a classifier's.
        """
        model.compile(
            **{
                "optimizer": self.recipe.optimizer(phase, epochs, steps),
                "loss": "sparse_categorical_crossentropy",
                "metrics": ["accuracy"],
                "jit_compile": self.recipe.jit_compile,
                **kwargs,
            }
        )

    def journal(
        self, method: str, task: str, phase: str, before: int = 0
    ) -> list[keras.callbacks.Callback]:
        """Says what begins, and returns what writes its logs.

        Args:
            method: Name of the method.
            task: Name of the task.
            phase: Name of the phase.
            before: Epochs of the task in the phases before.
        """
        print(f"\n{method}, {task}: {phase}", flush=True)
        return logs.callbacks(self.folder, method, task, phase, before)

    def predict(
        self, model: keras.Model, data: datasets.Dataset, **kwargs: Any
    ) -> np.ndarray:
        """Returns the class that a model chooses for each test image.

        Args:
            model: The model.
            data: The task.
            **kwargs: Also for `model.predict`.

        Returns:
            `int32` array of shape `(n,)`.
        """
        batches = self.pipeline.evaluation(data, data.test)
        outputs = model.predict(batches, verbose=0, **kwargs)
        return np.argmax(outputs, axis=-1).astype(np.int32)

    def accuracy(self, predicted: np.ndarray, data: datasets.Dataset) -> float:
        """Returns the share of right ones among predictions of a test."""
        return float(np.mean(predicted == data.test.labels[data.test.rows]))

    def write_predictions(
        self,
        method: str,
        data: datasets.Dataset,
        predicted: np.ndarray,
        examples: bool = False,
    ) -> None:
        """Keeps what was chosen for the test images of a task.

        Args:
            method: Name of the method.
            data: The task.
            predicted: What `predict` returned.
            examples: Whether to keep a few of the images, too.
        """
        labels = data.test.labels[data.test.rows].astype(np.int32)
        arrays = {"labels": labels, "predicted": predicted}
        if examples:
            places = np.random.default_rng(0).permutation(len(labels))
            places = np.sort(places[:_EXAMPLES])
            images, _ = data.test.take(places)
            if images.dtype != np.uint8:
                images = np.round(images * 255).clip(0, 255).astype(np.uint8)
            arrays |= {"places": places.astype(np.int64), "images": images}
        path = self.folder / "predictions" / method / f"{data.name}.npz"
        with files.replacing(path) as new:
            np.savez(new, **arrays)


def size_of(path: pathlib.Path) -> int:
    """Returns the bytes of a file, or of all files in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def once(
    folder: pathlib.Path, method: str, learn: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Learns with a method unless its result is there.

    Args:
        folder: Where results go.
        method: Name of the method.
        learn: Returns the result.

    Returns:
        The result.
    """
    path = _path_of_result(folder, method)
    if path.exists():
        result = json.loads(path.read_text())
    else:
        result = learn()
        with files.replacing(path) as new:
            new.write_text(json.dumps(result, indent=2) + "\n")
    # Also what is there as a kill came after the result.
    shutil.rmtree(folder / "progress" / method, ignore_errors=True)
    (folder / "progress" / f"{method}.npz").unlink(missing_ok=True)
    return result


def is_done(folder: pathlib.Path, method: str) -> bool:
    """Tells whether the result of a method is there.

    Args:
        folder: Where results go.
        method: Name of the method.
    """
    return _path_of_result(folder, method).exists()


def finished(
    folder: pathlib.Path, methods: Iterable[str]
) -> dict[str, dict[str, Any]]:
    """Returns the results of those methods that have one, by name.

    Args:
        folder: Where results go.
        methods: Names of methods.
    """
    return {
        method: json.loads(_path_of_result(folder, method).read_text())
        for method in methods
        if is_done(folder, method)
    }


def _path_of_result(folder: pathlib.Path, method: str) -> pathlib.Path:
    return folder / "methods" / f"{method}.json"
