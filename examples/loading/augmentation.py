"""Changes training images at random, as a seed alone says.

What is drawn for a batch depends on its seed and on nothing that was drawn
before, so that training can go on from any step.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

AUGMENTATIONS = ("none", "flip", "crop_flip", "randaugment")
CROPPING = ("crop_flip", "randaugment")

_Change = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def middle(x: tf.Tensor, size: int) -> tf.Tensor:
    """Cuts images in the middle.

    Args:
        x: Images of shape `(n, side, side, channels)`.
        size: Height and width to cut out, in pixels.

    Returns:
        Images of shape `(n, size, size, channels)`.
    """
    start = (x.shape[1] - size) // 2
    return x[:, start : start + size, start : start + size]


def crop(
    x: tf.Tensor,
    size: int,
    seed: tf.Tensor,
    padding: int = 0,
    sides: tf.Tensor | None = None,
) -> tf.Tensor:
    """Cuts each image at a place of its own.

    Args:
        x: Images of shape `(n, side, side, channels)`.
        size: Height and width to cut out, in pixels.
        seed: Int tensor of shape `(2,)`.
        padding: How many pixels beyond each edge may be cut out, less than
            an image has; a mirror at the edge would show them.
        sides: Int tensor of shape `(n,)`, where images are smaller: the
            height and width of each, in the middle of its place in `x`.

    Returns:
        Images of shape `(n, size, size, channels)`.
    """
    shape, side = (tf.shape(x)[0], 2), x.shape[1]
    more = 2 * padding - size + 1
    if sides is None:
        start = tf.random.stateless_uniform(
            shape, seed, 0, side + more, tf.int32
        )
        sides = tf.fill(shape[:1], side)
    else:
        places = tf.cast(sides + more, tf.float32)[:, tf.newaxis]
        drawn = tf.random.stateless_uniform(shape, seed)
        start = tf.cast(drawn * places, tf.int32)
    sides = sides[:, tf.newaxis]

    def lines(start: tf.Tensor) -> tf.Tensor:
        wanted = start - padding + tf.range(size)
        mirrored = sides - 1 - tf.abs(sides - 1 - tf.abs(wanted))
        return (side - sides) // 2 + mirrored

    x = tf.gather(x, lines(start[:, :1]), batch_dims=1)
    x = tf.transpose(x, (0, 2, 1, 3))
    x = tf.gather(x, lines(start[:, 1:]), batch_dims=1)
    return tf.ensure_shape(
        tf.transpose(x, (0, 2, 1, 3)), (None, size, size, None)
    )


def flip(x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Mirrors about half of the images, left to right.

    Args:
        x: Images of shape `(n, height, width, channels)`.
        seed: Int tensor of shape `(2,)`.

    Returns:
        Images of the same shape.
    """
    drawn = tf.random.stateless_uniform((tf.shape(x)[0], 1, 1, 1), seed)
    return tf.where(drawn < 0.5, tf.reverse(x, (2,)), x)


def make_randaugment() -> _Change:
    """Makes a function that applies keras-cv's RandAugment.

    Returns:
        A function of images of shape `(n, height, width, 3)` in [0, 1] and an
        int tensor of shape `(2,)`, the seed.

    Reference:
        - [Cubuk et al., 2019](https://arxiv.org/abs/1909.13719)
    """
    import keras_cv

    class FromSeed(keras_cv.core.FactorSampler):
        """Samples what another sampler would, from the seed."""

        def __init__(self, sampler: Any):
            self.sampler = sampler

        def __call__(self, shape: Any = (), dtype: Any = "float32") -> Any:
            sampler = self.sampler
            if isinstance(sampler, keras_cv.core.NormalFactorSampler):
                return tf.clip_by_value(
                    draws.normal(shape, sampler.mean, sampler.stddev, dtype),
                    sampler.min_value,
                    sampler.max_value,
                )
            return draws.uniform(shape, sampler.lower, sampler.upper, dtype)

    draws = _Draws()
    layer = keras_cv.layers.RandAugment((0.0, 1.0))
    for part in layer._flatten_layers():
        # keras-cv draws from generators and operations that go on from where
        # they are, one batch after the other.
        part._random_generator = draws
        for name, value in list(vars(part).items()):
            if isinstance(
                value,
                (
                    keras_cv.core.NormalFactorSampler,
                    keras_cv.core.UniformFactorSampler,
                ),
            ):
                setattr(part, name, FromSeed(value))

    def change_one(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        draws.begin(seed)
        return tf.ensure_shape(layer(image), image.shape)

    def change(x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        seeds = tf.random.stateless_uniform(
            (tf.shape(x)[0], 2), seed, None, None, tf.int32
        )
        return tf.map_fn(
            lambda pair: change_one(*pair),
            (x, seeds),
            fn_output_signature=tf.float32,
        )

    return change


class _Draws:
    """Draws as `tf.random.Generator` does, from a seed and a count."""

    def begin(self, seed: tf.Tensor) -> None:
        self._seed = seed
        self._count = 0

    def uniform(
        self,
        shape: Any,
        minval: Any = 0,
        maxval: Any = None,
        dtype: Any = tf.float32,
    ) -> tf.Tensor:
        return tf.random.stateless_uniform(
            shape, self._next(), minval, maxval, dtype
        )

    def normal(
        self,
        shape: Any,
        mean: Any = 0.0,
        stddev: Any = 1.0,
        dtype: Any = tf.float32,
    ) -> tf.Tensor:
        return tf.random.stateless_normal(
            shape, self._next(), mean, stddev, dtype
        )

    def _next(self) -> tf.Tensor:
        self._count += 1
        return tf.random.experimental.stateless_fold_in(self._seed, self._count)
