"""Keeps what a pretrained network can do as the first task.

With labels it is pruned and retrained as in the paper. Without, it is pruned
while it imitates itself as it was: its soft outputs on whatever images there
are. How well that went is said by how often both choose the same class on
images that were not trained on, and where there are labels, by accuracy.
"""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from loading import datasets
from loading import joined
from methods import networks

from packnet_tf import distribute
from packnet_tf import sequence
from packnet_tf.errors import ArgumentError

if TYPE_CHECKING:
    from methods import experiment


_CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)


@dataclasses.dataclass(frozen=True)
class Keeping:
    """How the classifier of a pretrained network is kept.

    Attributes:
        name: Name of the task.
        sparsity: Fraction of all weights to release.
        epochs: Epochs of imitating, or of retraining on labels.
        learning_rate: At the start.
        temperature: What soft targets are softened by.
        train: Labelled data; `None` to imitate.
        test: Labelled data whose test part is looked at, if there is any.
        classes: How many classes the classifier tells apart.
    """

    name: str
    sparsity: float
    epochs: int
    learning_rate: float
    temperature: float
    train: datasets.Dataset | None = None
    test: datasets.Dataset | None = None
    classes: int | None = None

    def compile(self, model: keras.Model, steps: int, **kwargs: Any) -> None:
        """Compiles a model to be kept.

        Args:
            model: The model.
            steps: Steps of an epoch.
            **kwargs: Also for `model.compile`.
        """
        schedules = keras.optimizers.schedules
        if self.train is not None:
            rate = schedules.ExponentialDecay(
                self.learning_rate, 5 * steps, 0.1, staircase=True
            )
            model.compile(
                keras.optimizers.SGD(rate, momentum=0.9),
                "sparse_categorical_crossentropy",
                ["accuracy"],
                **kwargs,
            )
            return
        # It imitates what the network computes in inference. With statistics
        # of batches it would be another network.
        networks.freeze_normalization(model)
        rate = schedules.CosineDecay(self.learning_rate, self.epochs * steps)
        model.compile(
            keras.optimizers.Adam(rate),
            Distillation(self.temperature),
            ["categorical_accuracy"],
            **kwargs,
        )


@keras.saving.register_keras_serializable("packnet_tf_examples")
class Distillation(keras.losses.Loss):
    """The loss of imitating probabilities, softened by a temperature.

    Args:
        temperature: What both distributions are softened by.
        **kwargs: For `keras.losses.Loss`.

    Call arguments:
        y_true: Probabilities of shape `(batch, classes)`.
        y_pred: The same.

    Returns:
        The Kullback-Leibler divergence of the softened ones, times the square
        of the temperature.

    Reference:
        - [Hinton et al., 2015](https://arxiv.org/abs/1503.02531)
    """

    def __init__(self, temperature: float = 2.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.temperature = temperature

    def call(self, y_true: Any, y_pred: Any) -> Any:
        # Softening probabilities is softening their logits.
        soft = [
            keras.ops.log_softmax(
                keras.ops.log(keras.ops.maximum(y, 1e-12)) / self.temperature
            )
            for y in (y_true, y_pred)
        ]
        divergence = keras.ops.sum(
            keras.ops.exp(soft[0]) * (soft[0] - soft[1]), axis=-1
        )
        return self.temperature**2 * divergence

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "temperature": self.temperature}


def check(
    network: keras.Model,
    shape: tuple[int, int, int],
    num_classes: int | None = None,
) -> int:
    """Checks that a network's classifier can be kept as a task.

    Args:
        network: A network with its classifier, packed or not.
        shape: Height, width and channels of the images.
        num_classes: How many classes the data has that it is retrained or
            tested on; `None` if there is none.

    Returns:
        How many classes the classifier tells apart.

    Raises:
        ArgumentError: If it gives no probabilities, or of another number of
            classes.
    """
    generator = np.random.default_rng(0)
    outputs = np.asarray(
        network.predict_on_batch(
            generator.uniform(-1.0, 1.0, (2, *shape)).astype("float32")
        ),
        np.float32,
    )
    if (
        outputs.ndim != 2
        or outputs.shape[1] < 2
        or outputs.min() < 0.0
        or not np.allclose(outputs.sum(axis=-1), 1.0, atol=0.02)
    ):
        raise ArgumentError(
            "--keep takes a network whose classifier gives a probability for "
            "each class, as a softmax does. "
            f"Received: {network.name!r}, with outputs of shape "
            f"{outputs.shape} from {outputs.min():.3g} to {outputs.max():.3g}"
        )
    count = outputs.shape[1]
    if num_classes not in (None, count):
        raise ArgumentError(
            "The labels that the kept task is retrained or tested on are "
            "those of its classifier, in the same order. "
            f"Received: {num_classes} classes for {count} outputs"
        )
    return count


def sensitive_layers(network: keras.Model) -> frozenset[str]:
    """Names the layers that a pretrained network loses most by pruning.

    These are its depthwise layers, with a handful of weights for each channel,
    and its first convolution, if it has depthwise layers at all. They hold few
    of its weights: 3 % in MobileNetV2.

    Args:
        network: The network, with or without its classifier.

    Returns:
        Names of layers; none for a network without depthwise layers.
    """
    convolutions = [
        layer
        for layer in _in_order(network)
        if isinstance(layer, _CONVOLUTIONS)
    ]
    depthwise = [layer for layer in convolutions if _is_depthwise(layer)]
    if not depthwise:
        return frozenset()
    return frozenset(layer.name for layer in [convolutions[0], *depthwise])


def default_sparsity(network: keras.Model) -> float:
    """Returns which fraction the kept task releases if nothing is said.

    Args:
        network: The network, with or without its classifier.

    Returns:
        The paper's 0.5; 0.3 for a network with depthwise layers, which does
        not survive more.
    """
    return 0.3 if sensitive_layers(network) else 0.5


def _in_order(layer: keras.layers.Layer) -> Iterator[keras.layers.Layer]:
    """Yields the layers in a layer, in the order in which a model has them."""
    yield layer
    inside = (
        layer.layers
        if isinstance(layer, keras.Model)
        else layer._flatten_layers(recursive=False, include_self=False)
    )
    for inner in inside:
        yield from _in_order(inner)


def _is_depthwise(layer: keras.layers.Layer) -> bool:
    if isinstance(layer, keras.layers.Conv2D):
        return layer.groups == layer.filters > 1
    return True


def make_plan(
    setting: "experiment.Experiment", classifier: keras.Model
) -> sequence.TaskPlan:
    """Plans the first task: what the network can do already.

    Imitating, the sparsity grows over the first half of the steps, fast at
    first. With labels, it is pruned at once and then retrained.

    Args:
        setting: The experiment, with what is to be kept.
        classifier: The classifier that the network came with.

    Returns:
        The plan.
    """
    keep = setting.keep
    if keep.train is not None:
        return sequence.TaskPlan(
            keep.name,
            lambda epoch: setting.pipeline.training(
                keep.train, epoch * steps_per_epoch(setting)
            ),
            setting.pipeline.evaluation(keep.train, keep.train.val),
            head=classifier,
            epochs=0,
            retrain_epochs=keep.epochs,
            steps_per_epoch=steps_per_epoch(setting),
            sparsity=keep.sparsity,
        )
    steps = steps_per_epoch(setting)
    return sequence.TaskPlan(
        keep.name,
        lambda epoch: _soft_targets(setting, epoch * steps),
        head=classifier,
        epochs=keep.epochs,
        retrain_epochs=0,
        steps_per_epoch=steps,
        schedule=gradual(keep.sparsity, keep.epochs * steps),
    )


def gradual(sparsity: float, steps: int) -> Any:
    """Makes a schedule that prunes during training.

    Args:
        sparsity: Fraction of the pool to release.
        steps: Steps of training; the sparsity grows over the first half.

    Returns:
        TF-MOT's `PolynomialDecay`, which is fast at first.
    """
    from tensorflow_model_optimization.sparsity.keras import PolynomialDecay

    frequency = max(steps // 50, 1)
    return PolynomialDecay(
        0.0,
        sparsity,
        begin_step=0,
        end_step=max(steps // 2 // frequency, 1) * frequency,
        frequency=frequency,
    )


def steps_per_epoch(setting: "experiment.Experiment") -> int:
    """Returns how many steps an epoch of keeping has."""
    if setting.keep.train is not None:
        return joined.steps_of(
            [setting.keep.train], setting.pipeline.batch_size
        )
    return sum(plan.steps_per_epoch for plan in setting.plans)


def test(
    setting: "experiment.Experiment", model: keras.Model, **kwargs: Any
) -> dict[str, Any]:
    """Compares a network with what it was.

    Args:
        setting: The experiment, with what is to be kept.
        model: The network, with the classifier that it came with.
        **kwargs: Also for `model.predict`.

    Returns:
        The share of test images of all tasks for which both choose the same
        class; of labelled images the same, and both accuracies.
    """
    keep, teacher = setting.keep, _teacher(setting)

    def ask_teacher(data: datasets.Dataset) -> np.ndarray:
        return distribute.outside(lambda: setting.predict(teacher, data))

    same = np.concatenate(
        [
            setting.predict(model, data, **kwargs) == ask_teacher(data)
            for data in setting.data
        ]
    )
    found = {"name": keep.name, "agreement": float(np.mean(same))}
    labelled = keep.test
    if labelled is not None:
        now = setting.predict(model, labelled, **kwargs)
        before = ask_teacher(labelled)
        found |= {
            "accuracy": setting.accuracy(now, labelled),
            "accuracy_before": setting.accuracy(before, labelled),
            "agreement_on_test": float(np.mean(now == before)),
        }
    return found


def _teacher(setting: "experiment.Experiment") -> keras.Model:
    """Returns the network as it was, which no strategy shares out."""
    return distribute.outside(setting.network.build_whole)


def _soft_targets(
    setting: "experiment.Experiment", start: int
) -> tf.data.Dataset:
    teacher = _teacher(setting)
    data = joined.join(setting.data, setting.keep.name)
    return setting.pipeline.training(
        data, start, tf.function(lambda x: teacher(x, training=False))
    )
