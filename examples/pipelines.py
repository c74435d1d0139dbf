"""Feeds examples to training and to evaluation."""

import dataclasses
from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import tensorflow as tf

AUGMENTATIONS = ("none", "flip", "crop_flip", "randaugment")


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """How images become batches.

    Attributes:
        image_size: Height and width that the network takes, in pixels.
        batch_size: Examples in a batch.
        augmentation: One of `AUGMENTATIONS`: horizontal flips, random crops
            of `image_size` with flips, or RandAugment on top of those.
        preprocess: Takes float images in [0, 1] to what the network takes.
        seed: Of shuffling and augmentation.
    """

    image_size: int
    batch_size: int
    augmentation: str = "none"
    preprocess: Callable[[Any], Any] | None = None
    seed: int = 0

    def training(self, data: datasets.Dataset) -> tf.data.Dataset:
        """Returns endless, shuffled and augmented batches.

        The same seed gives the same batches.

        Args:
            data: The task; its training part is taken.

        Returns:
            Batches of `float32` images and `int32` labels.
        """
        part = data.train
        places = tf.data.Dataset.range(len(part))
        places = places.shuffle(len(part), seed=self.seed).repeat()
        batches = self._read(part, places.batch(self.batch_size))
        # One batch after the other: what is drawn at random has its order.
        if self._crops(data):
            seeds = tf.data.Dataset.random(seed=self.seed).batch(2)
            batches = tf.data.Dataset.zip(batches, seeds).map(
                lambda batch, seed: (self._crop(batch[0], seed), batch[1])
            )
        augment = self._augmenter()
        if augment is not None:
            batches = batches.map(lambda x, y: (augment(x), y))
        return self._finish(batches)

    def evaluation(
        self, data: datasets.Dataset, part: datasets.Part
    ) -> tf.data.Dataset:
        """Returns batches of a part in its order, cut in the middle.

        Args:
            data: The task.
            part: One of its parts.

        Returns:
            Batches of `float32` images and `int32` labels.
        """
        places = tf.data.Dataset.range(len(part)).batch(self.batch_size)
        return self._finish(self._read(part, places))

    def _read(
        self, part: datasets.Part, places: tf.data.Dataset
    ) -> tf.data.Dataset:
        dtype = part.images.dtype
        shape = part.images.shape[1:]

        def read(chosen: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            x, y = tf.numpy_function(
                lambda rows: _take(part, rows), [chosen], (dtype, tf.int32)
            )
            x = tf.ensure_shape(x, (None, *shape))
            x = tf.cast(x, tf.float32)
            return x / 255.0 if dtype == np.uint8 else x, tf.ensure_shape(
                y, (None,)
            )

        return places.map(read)

    def _finish(self, batches: tf.data.Dataset) -> tf.data.Dataset:
        size = self.image_size

        def finish(x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            margin = x.shape[1] - size
            if margin > 0:
                start = margin // 2
                x = x[:, start : start + size, start : start + size]
            if self.preprocess is not None:
                x = self.preprocess(x)
            return x, y

        return batches.map(finish).prefetch(2)

    def _crops(self, data: datasets.Dataset) -> bool:
        return self.augmentation in ("crop_flip", "randaugment") and (
            data.train.images.shape[1] > self.image_size
        )

    def _crop(self, x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Cuts each image at a place of its own."""
        size, count = self.image_size, tf.shape(x)[0]
        start = tf.random.stateless_uniform(
            (count, 2), seed, 0, x.shape[1] - size + 1, tf.int32
        )
        steps = tf.range(size)
        rows = start[:, :1] + steps
        columns = start[:, 1:] + steps
        x = tf.transpose(tf.gather(x, rows, batch_dims=1), (0, 2, 1, 3))
        x = tf.gather(x, columns, batch_dims=1)
        return tf.ensure_shape(
            tf.transpose(x, (0, 2, 1, 3)), (None, size, size, None)
        )

    def _augmenter(self) -> Callable[[tf.Tensor], tf.Tensor] | None:
        if self.augmentation == "none":
            return None
        import keras_cv

        layers: list[Any] = [
            keras_cv.layers.RandomFlip("horizontal", seed=self.seed)
        ]
        if self.augmentation == "randaugment":
            layers.append(
                keras_cv.layers.RandAugment((0.0, 1.0), seed=self.seed)
            )
        return keras_cv.layers.Augmenter(layers)


def _take(
    part: datasets.Part, places: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    images, labels = part.take(places)
    return np.ascontiguousarray(images), labels.astype(np.int32, copy=False)
