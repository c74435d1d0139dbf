"""What the flags of the data mean together: how images are prepared."""

from absl import flags
from loading import augmentation
from loading import datasets
from methods import networks
from program import flags_data  # noqa: F401
from program import flags_network  # noqa: F401

from packnet_tf.errors import ArgumentError

FLAGS = flags.FLAGS


def size() -> int:
    """Returns the height and width that the network takes, in pixels."""
    return FLAGS.image_size or (28 if _all_bundled() else 224)


def _all_bundled() -> bool:
    return {datasets.parse(text).kind for text in FLAGS.tasks} == {"bundled"}


def channels() -> int:
    """Returns how many channels images have."""
    if FLAGS.channels != "auto":
        return int(FLAGS.channels)
    own = FLAGS.network.lower() in networks.OWN
    return 1 if own and _all_bundled() else 3


def settings(channels: int) -> datasets.Settings:
    """Returns how data is prepared.

    Args:
        channels: 3 for RGB, 1 for gray.

    Raises:
        ArgumentError: If the sizes contradict each other.
    """
    side = size()
    crops = FLAGS.augmentation in augmentation.CROPPING and not FLAGS.padding
    resize = FLAGS.resize or (side * 8 // 7 if crops else side)
    if resize < side:
        raise ArgumentError(
            "Images are scaled to --resize and cut down to --image_size. "
            f"Received: --resize={resize}, --image_size={side}"
        )
    return datasets.Settings(
        size=resize,
        boxed_size=side,
        channels=channels,
        boxed=tuple(FLAGS.boxed),
        val_fraction=FLAGS.val_fraction,
        test_fraction=FLAGS.test_fraction,
        seed=FLAGS.split_seed,
        cache_dir=FLAGS.cache_dir,
        data_dir=FLAGS.data_dir,
        tfds_dir=FLAGS.tfds_dir,
        download=FLAGS.download,
        max_bad=FLAGS.max_bad_images,
        store_gigabytes=FLAGS.store_gigabytes,
    )


def padding() -> int:
    """Returns by how many pixels training images are padded.

    Raises:
        ArgumentError: If nothing crops them, or if it is as much as they have.
    """
    crops = FLAGS.augmentation in augmentation.CROPPING
    if FLAGS.padding and not (crops and FLAGS.padding < size()):
        raise ArgumentError(
            "--padding is less than --image_size, and goes with "
            "--augmentation=crop_flip or randaugment. "
            f"Received: --padding={FLAGS.padding}, "
            f"--image_size={size()}, "
            f"--augmentation={FLAGS.augmentation}"
        )
    return FLAGS.padding
