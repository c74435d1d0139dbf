"""Keeps what a pretrained network can do as the first task.

With its data, the network is pruned and retrained on the labels, as in the
paper. Without, it is pruned while it imitates itself as it was: its soft
outputs on whatever images there are. How well that went is said by how often
both choose the same class on images that were not trained on, and where there
are labels, by accuracy.
"""

import math
from collections.abc import Sequence
from typing import Any

import datasets
import keras
import numpy as np
import pipelines
import tensorflow as tf

import packnet_tf
from packnet_tf.errors import ArgumentError


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


def distillation_loss(temperature: float) -> Any:
    """Makes the loss of imitating soft targets.

    Args:
        temperature: What both distributions are softened by.

    Returns:
        A loss of probabilities of shape `(batch, classes)`: the
        Kullback-Leibler divergence of the softened ones, times the square of
        the temperature.

    Reference:
        - [Hinton et al., 2015](https://arxiv.org/abs/1503.02531)
    """

    def loss(y_true: Any, y_pred: Any) -> Any:
        # Softening probabilities is softening their logits.
        soft = [
            keras.ops.log_softmax(
                keras.ops.log(keras.ops.maximum(y, 1e-12)) / temperature
            )
            for y in (y_true, y_pred)
        ]
        divergence = keras.ops.sum(
            keras.ops.exp(soft[0]) * (soft[0] - soft[1]), axis=-1
        )
        return temperature**2 * divergence

    return loss


def imitate(
    model: packnet_tf.PackNetModel,
    teacher: keras.Model,
    data: Sequence[datasets.Dataset],
    pipeline: pipelines.Pipeline,
    sparsity: float,
    epochs: int,
    learning_rate: float,
    temperature: float,
    steps_per_epoch: int,
    verbose: int,
) -> list[dict[str, float]]:
    """Prunes the first task of a model while it imitates a network.

    The sparsity grows over the first half of the steps, fast at first.

    Args:
        model: The packed model, in its first task.
        teacher: The network as it was.
        data: Tasks whose training images are taken, without their labels.
        pipeline: Feeds images to both.
        sparsity: Fraction of all weights to release.
        epochs: Epochs of training.
        learning_rate: Adam's, at the start.
        temperature: What soft targets are softened by.
        steps_per_epoch: Steps of an epoch.
        verbose: As for `fit`.

    Returns:
        The logs of each epoch.
    """
    from tensorflow_model_optimization.sparsity.keras import PolynomialDecay

    total = epochs * steps_per_epoch
    model.compile(
        keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(learning_rate, total)
        ),
        distillation_loss(temperature),
        metrics=["categorical_accuracy"],
    )
    frequency = max(total // 50, 1)
    schedule = PolynomialDecay(
        0.0,
        sparsity,
        begin_step=0,
        end_step=max(total // 2 // frequency, 1) * frequency,
        frequency=frequency,
    )
    logs = model.fit(
        _soft_targets(teacher, data, pipeline),
        steps_per_epoch=steps_per_epoch,
        epochs=epochs,
        callbacks=[packnet_tf.PruneOnSchedule(schedule)],
        shuffle=False,
        verbose=verbose,
    ).history
    return [
        {name: float(values[epoch]) for name, values in logs.items()}
        for epoch in range(epochs)
    ]


def retrain(
    model: packnet_tf.PackNetModel,
    data: datasets.Dataset,
    pipeline: pipelines.Pipeline,
    sparsity: float,
    epochs: int,
    learning_rate: float,
    steps_per_epoch: int | None = None,
    verbose: int = 2,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> list[dict[str, float]]:
    """Prunes the first task of a model at once and retrains it on its labels.

    SGD with momentum 0.9; the learning rate falls to a tenth every five
    epochs.

    Args:
        model: The packed model, in its first task.
        data: What the network was trained on, or data of the same classes in
            the same order. Its test part is not looked at.
        pipeline: Feeds images.
        sparsity: Fraction of all weights to release.
        epochs: Epochs of retraining.
        learning_rate: At the start.
        steps_per_epoch: Steps of an epoch. Defaults to one pass over the
            training part.
        verbose: As for `fit`.
        callbacks: As for `fit`.

    Returns:
        The logs of each epoch.

    Raises:
        ArgumentError: If the classifier is not of as many classes. Nothing
            is changed then.

    Reference:
        - [Mallya and Lazebnik, 2018](https://arxiv.org/abs/1711.05769),
          section 4
    """
    size = pipeline.image_size
    channels = data.train.images.shape[-1]
    check(model, (size, size, channels), data.num_classes)
    steps = steps_per_epoch or math.ceil(len(data.train) / pipeline.batch_size)
    model.prune(sparsity)
    model.compile(
        keras.optimizers.SGD(
            keras.optimizers.schedules.ExponentialDecay(
                learning_rate, 5 * steps, 0.1, staircase=True
            ),
            momentum=0.9,
        ),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    logs = model.fit(
        pipeline.training(data),
        steps_per_epoch=steps,
        epochs=epochs,
        validation_data=pipeline.evaluation(data, data.val),
        callbacks=list(callbacks),
        shuffle=False,  # The pipeline does that.
        verbose=verbose,
    ).history
    return [
        {name: float(values[epoch]) for name, values in logs.items()}
        for epoch in range(epochs)
    ]


def agreement(
    model: keras.Model,
    teacher: keras.Model,
    data: Sequence[datasets.Dataset],
    pipeline: pipelines.Pipeline,
    **kwargs: Any,
) -> float:
    """Returns for which share of the test images both choose the same class.

    Args:
        model: A model.
        teacher: Another.
        data: Tasks whose test images are taken.
        pipeline: Feeds images to both.
        **kwargs: Also for `model.predict`.
    """
    same = []
    for task in data:
        batches = pipeline.evaluation(task, task.test)
        chosen = [
            np.argmax(model.predict(batches, verbose=0, **kwargs), axis=-1),
            np.argmax(teacher.predict(batches, verbose=0), axis=-1),
        ]
        same.append(chosen[0] == chosen[1])
    return float(np.mean(np.concatenate(same)))


def accuracy(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Returns the share of rows whose largest entry is the label's."""
    return float(np.mean(np.argmax(outputs, axis=-1) == labels))


def _soft_targets(
    teacher: keras.Model,
    data: Sequence[datasets.Dataset],
    pipeline: pipelines.Pipeline,
) -> tf.data.Dataset:
    sizes = np.array([len(task.train) for task in data], np.float64)
    mixed = tf.data.Dataset.sample_from_datasets(
        [pipeline.training(task) for task in data],
        weights=(sizes / sizes.sum()).tolist(),
        seed=pipeline.seed,
    )
    return mixed.map(lambda x, y: (x, teacher(x, training=False))).prefetch(2)
