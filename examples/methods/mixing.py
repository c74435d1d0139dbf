"""Batches of several tasks, with as many images of each as it would get alone.

Drawn from all images alike, a small task would hardly be seen where epochs
have a number of steps that the sizes of the tasks have no part in.
"""

from collections.abc import Callable
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from loading.datasets import Dataset
from loading.pipelines import Pipeline


def training(
    pipeline: Pipeline,
    data: Sequence[Dataset],
    steps: Sequence[int],
    start: int = 0,
) -> tf.data.Dataset:
    """Returns endless batches in which images of all tasks are mixed.

    The images of a task are those of its own batches, in their order and as
    they are augmented there. In each epoch they come at places drawn at
    random. The same seed gives the same batches, from any start.

    Args:
        pipeline: Makes the batches of each task.
        data: The tasks.
        steps: How many batches an epoch has of each task alone. Of all it has
            as many as that together.
        start: How many batches are passed over, without being read.

    Returns:
        Batches of `float32` images and `int32` labels, where the classes of
        the tasks are counted one after the other.
    """
    size, offset = pipeline.batch_size, 0
    epoch, batches = divmod(start, sum(steps))
    slots = np.repeat(np.arange(len(data)), np.multiply(steps, size))

    def mix(epoch: tf.Tensor) -> tf.Tensor:
        seed = tf.stack([tf.constant(pipeline.seed, tf.int64), epoch])
        return tf.random.experimental.stateless_shuffle(slots, seed)

    passed = mix(tf.constant(epoch, tf.int64))[: batches * size].numpy()
    streams = []
    for index, task in enumerate(data):
        seen = epoch * steps[index] * size + int(np.sum(passed == index))
        images = pipeline.training(task, seen // size).unbatch()
        streams.append(images.skip(seen % size).map(_counted_from(offset)))
        offset += task.num_classes
    places = tf.data.Dataset.range(epoch, tf.int64.max).flat_map(
        lambda epoch: tf.data.Dataset.from_tensor_slices(mix(epoch))
    )
    return (
        tf.data.Dataset.choose_from_datasets(
            streams, places.skip(batches * size), stop_on_empty_dataset=False
        )
        .batch(size)
        .prefetch(2)
    )


def _counted_from(offset: int) -> Callable[..., tuple[tf.Tensor, tf.Tensor]]:
    return lambda x, y: (x, y + offset)
