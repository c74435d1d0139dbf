"""Feeds examples to training and to evaluation."""

import atexit
import dataclasses
import os
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from loading import augmentation
from loading import datasets
from loading import streams
from loading.bundled import DataError

# Batches that are decoded at once; each is held in memory.
_PARALLEL = max(2, min(os.cpu_count() or 1, 8))
AUGMENTATIONS = augmentation.AUGMENTATIONS


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
        padding: Pixels that are added on each side, as in a mirror, before
            training images are cropped.
    """

    image_size: int
    batch_size: int
    augmentation: str = "none"
    preprocess: Callable[[Any], Any] | None = None
    seed: int = 0
    padding: int = 0

    def training(
        self,
        data: datasets.Dataset,
        start: int = 0,
        answer: Callable[[tf.Tensor], tf.Tensor] | None = None,
    ) -> tf.data.Dataset:
        """Returns endless, shuffled and augmented batches.

        The same seed gives the same batches, each time that they are asked
        for anew. From a later start they are those that would follow there.

        Args:
            data: The task; its training part is taken.
            start: How many batches are passed over, without being read.
            answer: Returns what takes the place of the labels, for a batch of
                images. It is called as it is, on any device, while functions
                that a `tf.data.Dataset` maps are bound to the CPU.

        Returns:
            Batches of `float32` images and `int32` labels, or answers.
        """
        part = data.train
        places = tf.data.Dataset.range(len(part))
        places = places.shuffle(len(part), seed=self.seed).repeat()
        places = places.skip(start * self.batch_size).batch(self.batch_size)
        batches = self._read(part, places)
        if self.augmentation != "none":
            seeds = tf.data.Dataset.random(seed=self.seed).batch(2).skip(start)
            augment = self._augmenter(data)
            batches = tf.data.Dataset.zip(batches, seeds).map(
                lambda batch, seed: (
                    augment(batch[0], seed, *batch[2:]),
                    batch[1],
                ),
                num_parallel_calls=tf.data.AUTOTUNE,
            )
        batches = self._finish(batches)
        return batches if answer is None else _answered(batches, answer)

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

    def inputs(self, data: datasets.Dataset) -> keras.Model:
        """Returns what makes of raw images what the network is tested on.

        Args:
            data: The task.

        Returns:
            A Keras model that takes `uint8` images of any size, cut to their
            boxes if those of the task are, and scales them as the task's
            were. Those that have the size of the task's images become what
            `evaluation` makes of them.
        """
        side, _, channels = data.test.images.shape[1:]
        images = keras.Input(
            (None, None, channels), dtype="uint8", name="images"
        )
        x = keras.layers.Rescaling(1.0, dtype="float32")(images)
        x = keras.layers.Resizing(
            side, side, crop_to_aspect_ratio=not data.boxed, antialias=True
        )(x)
        x = x / 255.0
        if side > self.image_size:
            x = keras.layers.CenterCrop(self.image_size, self.image_size)(x)
        if self.preprocess is not None:
            x = keras.layers.Lambda(self.preprocess)(x)
        return keras.Model(images, x, name="inputs")

    def _read(
        self, part: datasets.Part, places: tf.data.Dataset
    ) -> tf.data.Dataset:
        """Reads images and labels, and sides of images where they differ."""
        dtype = part.images.dtype
        shape = part.images.shape[1:]
        sides = () if part.sides is None else (part.sides[part.rows],)

        def read(chosen: tf.Tensor) -> tuple[tf.Tensor, ...]:
            x, y = tf.numpy_function(
                lambda rows: _take(part, rows), [chosen], (dtype, tf.int32)
            )
            x = tf.ensure_shape(x, (None, *shape))
            x = tf.cast(x, tf.float32)
            return (
                x / 255.0 if dtype == np.uint8 else x,
                tf.ensure_shape(y, (None,)),
                *(tf.gather(table, chosen) for table in sides),
            )

        if not isinstance(part.images, streams.Stream):
            return places.map(read)
        return places.map(read, num_parallel_calls=_PARALLEL)

    def _finish(self, batches: tf.data.Dataset) -> tf.data.Dataset:
        size = self.image_size

        def finish(
            x: tf.Tensor, y: tf.Tensor, *sides: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor]:
            if x.shape[1] > size:
                x = augmentation.middle(x, size)
            if self.preprocess is not None:
                x = self.preprocess(x)
            return x, y

        return batches.map(finish).prefetch(2)

    def _augmenter(self, data: datasets.Dataset) -> Callable[..., tf.Tensor]:
        crops = self.augmentation in augmentation.CROPPING and (
            data.train.images.shape[1] + self.padding > self.image_size
        )
        change = (
            augmentation.make_randaugment()
            if self.augmentation == "randaugment"
            else None
        )
        fold_in = tf.random.experimental.stateless_fold_in

        def augment(
            x: tf.Tensor, seed: tf.Tensor, sides: tf.Tensor | None = None
        ) -> tf.Tensor:
            size = self.image_size
            if crops:
                x = augmentation.crop(x, size, seed, self.padding, sides)
            elif x.shape[1] > size:
                x = augmentation.middle(x, size)
            x = augmentation.flip(x, fold_in(seed, 1))
            return x if change is None else change(x, fold_in(seed, 2))

        return augment


def data_error(error: tf.errors.OpError) -> DataError | None:
    """Returns what was wrong with the data, when training ended with it.

    Args:
        error: What TensorFlow raised while it asked for a batch.

    Returns:
        The error that reading the data raised, `None` if it was another.
    """
    _, found, text = str(error).partition("DataError: ")
    return DataError(text.splitlines()[0]) if found else None


def _answered(
    batches: tf.data.Dataset, answer: Callable[[tf.Tensor], tf.Tensor]
) -> tf.data.Dataset:
    """Replaces labels by what a function returns for the images."""
    images = batches.element_spec[0]
    answers = tf.function(answer).get_concrete_function(images)

    def generate() -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
        for x, _ in batches:
            with _reading:
                y = answers(x)
            yield x, y

    return tf.data.Dataset.from_generator(
        generate,
        output_signature=(
            images,
            tf.TensorSpec.from_tensor(answers.outputs[0]),
        ),
    )


def _take(
    part: datasets.Part, places: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    with _reading:
        images, labels = part.take(places)
        return np.ascontiguousarray(images), labels.astype(np.int32, copy=False)


class _Reading:
    """Counts the threads of TensorFlow that read, to end them at the exit.

    Python stops other threads when it exits. One that was stopped while it
    read would be waited for without end by the pipeline it belongs to.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._count = 0
        self._ended = False

    def __enter__(self) -> None:
        with self._lock:
            if self._ended:
                raise RuntimeError("the program ends")
            self._count += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._count -= 1

    def end(self) -> None:
        """Lets nobody begin any more, and waits for those who read."""
        with self._lock:
            self._ended = True
        quiet = 0
        while quiet < 3:  # Some may be just about to begin, and be refused.
            time.sleep(0.02)
            quiet = 0 if self._count else quiet + 1


_reading = _Reading()
atexit.register(_reading.end)
