"""The flags of the experiment, and what they mean together."""

import datasets
import keeping
import networks
import pipelines
import recipes
from absl import flags
from absl import logging

import packnet_tf
from packnet_tf import selection
from packnet_tf import sequence
from packnet_tf.errors import ArgumentError

FLAGS = flags.FLAGS

flags.DEFINE_list(
    "tasks",
    list(datasets.BUNDLED),
    "Tasks in the order they are learned, each [NAME:]SOURCE. SOURCE is "
    f"bundled:NAME of {', '.join(datasets.BUNDLED)}; folder:PATH, with a "
    "folder of images per class, or train and test that hold those; npz:PATH, "
    "with x_train, y_train, x_test and y_test; a name of TensorFlow Datasets; "
    "split:FIRST-LAST:SOURCE, some classes of another source; or "
    "permuted:SEED:SOURCE, its pixels in another order.",
)
flags.DEFINE_list(
    "sparsities",
    ["0.5"],
    "Fraction of its pool that each task releases after training, in [0, 1): "
    "one for all tasks or one per task; or the word equal, so that all tasks "
    "keep as much.",
)
flags.DEFINE_integer("epochs", 20, "Epochs of training.", lower_bound=1)
flags.DEFINE_integer(
    "retrain_epochs", 10, "Epochs of retraining after pruning.", lower_bound=0
)
flags.DEFINE_integer(
    "steps_per_epoch",
    None,
    "Steps of an epoch. Defaults to one pass over the training part.",
    lower_bound=1,
)
flags.DEFINE_integer("batch_size", 32, "Images per step.", lower_bound=1)
flags.DEFINE_enum(
    "optimizer", "adam", recipes.OPTIMIZERS, "What trains, as Keras names it."
)
flags.DEFINE_float("momentum", 0.9, "Of sgd.", lower_bound=0.0, upper_bound=1.0)
flags.DEFINE_float(
    "weight_decay", 0.0, "Per step, decoupled from the loss.", lower_bound=0.0
)
flags.DEFINE_float(
    "learning_rate", 2e-3, "At the start of training.", lower_bound=0.0
)
flags.DEFINE_float(
    "retrain_learning_rate",
    5e-4,
    "At the start of retraining.",
    lower_bound=0.0,
)
flags.DEFINE_enum(
    "schedule",
    "cosine",
    recipes.SCHEDULES,
    "How the learning rate falls: to zero along a cosine, by --decay_rate "
    "every --decay_epochs, or not.",
)
flags.DEFINE_integer("decay_epochs", 10, "For --schedule=step.", lower_bound=1)
flags.DEFINE_float(
    "decay_rate",
    0.1,
    "For --schedule=step.",
    lower_bound=0.0,
    upper_bound=1.0,
)
flags.DEFINE_string(
    "network",
    "convnet",
    f"One of {', '.join(networks.OWN)}; a name of keras.applications; or the "
    "path of a .keras file.",
)
flags.DEFINE_string(
    "weights",
    "none",
    "For a network of keras.applications: none, imagenet, or the path of a "
    ".weights.h5 file.",
)
flags.DEFINE_enum(
    "train_normalization",
    "auto",
    ["auto", "true", "false"],
    "Whether batch normalization learns with the first task. By default where "
    "the network starts at random; a pretrained one keeps what it has.",
)
flags.DEFINE_string(
    "keep",
    None,
    "Name of a task that the network's own classifier is kept as: the first, "
    "pruned while it imitates the network as it was, on the images of all "
    "tasks, whose labels are not looked at.",
)
flags.DEFINE_string(
    "keep_train",
    None,
    "Labelled images to retrain the kept task on, as in --tasks, for instance "
    "tfds:imagenet2012: then it is pruned at once and retrained with SGD, as "
    "in the paper, and does not imitate. Its classes are those of the "
    "classifier, in the same order.",
)
flags.DEFINE_float(
    "keep_sparsity",
    0.5,
    "Fraction of all weights that the kept task releases.",
    lower_bound=0.0,
    upper_bound=1.0,
)
flags.DEFINE_integer(
    "keep_epochs",
    10,
    "Epochs of pruning and imitating, or of retraining.",
    lower_bound=1,
)
flags.DEFINE_float(
    "keep_learning_rate",
    1e-4,
    "At the start of it; with --keep_train it falls to a tenth every five "
    "epochs.",
    lower_bound=0.0,
)
flags.DEFINE_float(
    "keep_temperature",
    2.0,
    "What soft targets are softened by.",
    lower_bound=0.1,
)
flags.DEFINE_string(
    "keep_test",
    None,
    "Labelled images to test the kept task on, as in --tasks: folder:PATH "
    "with a folder per class of the classifier, sorted. All of it is tested. "
    "Defaults to the test part of --keep_train.",
)
flags.DEFINE_string(
    "filters",
    None,
    "Layers that are packed, by a regular expression searched in their names. "
    "The others stay dense: they are frozen with the first task.",
)
flags.DEFINE_enum(
    "biases",
    "frozen",
    ["frozen", "per_task"],
    "Whether biases are frozen with the first task, or each task has its own.",
)
flags.DEFINE_enum(
    "normalization",
    "frozen",
    ["frozen", "per_task"],
    "The same for normalization layers.",
)
flags.DEFINE_integer(
    "width",
    None,
    f"Filters of the first layer, or units of a hidden one, of "
    f"{', '.join(networks.OWN)}.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "image_size",
    28,
    "Height and width that the network takes, in pixels.",
    lower_bound=8,
    upper_bound=1024,
)
flags.DEFINE_integer(
    "resize",
    None,
    "Height and width that images are resized to, and then cut down to "
    "--image_size: at random in training with --augmentation=crop_flip, else "
    "in the middle. Defaults to --image_size.",
    lower_bound=8,
    upper_bound=1024,
)
flags.DEFINE_enum(
    "channels",
    "auto",
    ["auto", "1", "3"],
    "1 for gray images, 3 for color. By default what the network takes, else "
    "gray if all tasks are bundled.",
)
flags.DEFINE_enum(
    "augmentation",
    "none",
    pipelines.AUGMENTATIONS,
    "What is done to training images.",
)
flags.DEFINE_list(
    "boxed",
    [],
    "Tasks of TensorFlow Datasets whose images are cut to their bounding "
    "boxes, and resized to --image_size.",
)
flags.DEFINE_float(
    "val_fraction",
    0.1,
    "Part of the training images to validate on, where a task has none.",
)
flags.DEFINE_float(
    "test_fraction",
    0.2,
    "Part of the images to test on, where a task has none.",
)
flags.DEFINE_integer("split_seed", 0, "Of those two splits.", lower_bound=0)
flags.DEFINE_integer(
    "max_bad_images",
    10,
    "How many images of a part may fail to be decoded. They are left out, "
    "and named.",
    lower_bound=0,
)
flags.DEFINE_string("cache_dir", "runs/cache", "Where decoded images are kept.")
flags.DEFINE_float(
    "store_gigabytes",
    20.0,
    "How much the decoded images of one source may take on disk. Those of a "
    "larger one are decoded while training, each time anew.",
    lower_bound=0.0,
)
flags.DEFINE_string("data_dir", None, "Where the bundled data is.")
flags.DEFINE_string(
    "tfds_dir", None, "Where TensorFlow Datasets keeps its data."
)
flags.DEFINE_bool("download", True, "Whether TensorFlow Datasets may download.")
flags.DEFINE_integer("seed", 0, "Of weights, shuffling and dropout.")
flags.DEFINE_bool(
    "individual", True, "Also train the same network on each task alone."
)
flags.DEFINE_bool(
    "dry_run", False, "Only say what would be done; the data is prepared."
)
flags.DEFINE_string("run_dir", "runs/fine_grained", "Where results go.")
flags.DEFINE_bool("overwrite", False, "Replace a finished run in `run_dir`.")


def network(channels: int) -> networks.Network:
    """Returns the network that the flags describe.

    Args:
        channels: 3 for RGB, 1 for gray.

    Raises:
        ArgumentError: If there is none like it.
    """
    train = FLAGS.train_normalization
    pretrained = FLAGS.weights != "none" or FLAGS.network.endswith(".keras")
    found = networks.get(
        FLAGS.network,
        FLAGS.image_size,
        channels,
        FLAGS.width,
        FLAGS.weights,
        not pretrained if train == "auto" else train == "true",
    )
    if found.channels not in (None, channels):
        raise ArgumentError(
            f"{FLAGS.network} takes images of {found.channels} channels. "
            f"Received: --channels={FLAGS.channels}"
        )
    if FLAGS.keep and found.build_whole is None:
        raise ArgumentError(
            "--keep takes a network that comes with a classifier: one of "
            "keras.applications with --weights, or a .keras file. "
            f"Received: --network={FLAGS.network}, --weights={FLAGS.weights}"
        )
    return found


def data_settings(channels: int) -> datasets.Settings:
    """Returns how data is prepared.

    Args:
        channels: 3 for RGB, 1 for gray.

    Raises:
        ArgumentError: If the sizes contradict each other.
    """
    resize = FLAGS.resize or FLAGS.image_size
    if resize < FLAGS.image_size:
        raise ArgumentError(
            "Images are resized to --resize and cut down to --image_size. "
            f"Received: --resize={resize}, --image_size={FLAGS.image_size}"
        )
    return datasets.Settings(
        size=resize,
        boxed_size=FLAGS.image_size,
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


def load_tasks(channels: int) -> list[datasets.Dataset]:
    """Loads the data of all tasks.

    Args:
        channels: 3 for RGB, 1 for gray.

    Returns:
        The data, in the order of `--tasks`.

    Raises:
        ArgumentError: If flags contradict each other.
        DataError: If data is missing or malformed.
    """
    settings = data_settings(channels)
    specs = [datasets.parse(text) for text in FLAGS.tasks]
    unknown = set(FLAGS.boxed) - {spec.name for spec in specs}
    if unknown:
        raise ArgumentError(
            "--boxed names tasks of --tasks. "
            f"Received: {', '.join(sorted(unknown))}, where the tasks are "
            f"{', '.join(spec.name for spec in specs)}"
        )
    if not specs:
        raise ArgumentError("--tasks names one task or more. Received: none")
    # Names and numbers are cheap to check; data is not.
    names = [spec.name for spec in specs]
    if FLAGS.keep:
        names = [FLAGS.keep, *names]
    sequence.check([sequence.TaskPlan(name, None, units=2) for name in names])
    sparsities()
    if FLAGS.keep:
        selection.check_fraction(FLAGS.keep_sparsity)
    loaded = datasets.load_all(FLAGS.tasks, settings)
    for data in loaded:
        for name in data.skipped:
            logging.warning("left out of %s: %s", data.name, name)
    return loaded


def load_kept(
    network: networks.Network, channels: int
) -> tuple[datasets.Dataset | None, datasets.Dataset | None]:
    """Loads what the kept task is retrained on, and what it is tested on.

    Args:
        network: The network with its classifier.
        channels: 3 for RGB, 1 for gray.

    Returns:
        The data of `--keep_train`, and that of `--keep_test`, whose test part
        is looked at; each `None` if there is none.

    Raises:
        ArgumentError: If the network has no classifier of as many classes.
        DataError: If data is missing or malformed.
    """
    given = [f"--{n}" for n in ("keep_train", "keep_test") if FLAGS[n].value]
    if not FLAGS.keep:
        if given:
            raise ArgumentError(
                "--keep gives the kept task its name; without it none is "
                f"kept. Received: {' and '.join(given)} without --keep"
            )
        return None, None
    size = FLAGS.image_size
    count = keeping.check(network.build_whole(), (size, size, channels))
    settings = data_settings(channels)
    train = test = None
    if FLAGS.keep_train:
        train = datasets.load(FLAGS.keep_train, settings, classes=count)
    if FLAGS.keep_test:
        test = datasets.load_test(FLAGS.keep_test, settings, classes=count)
    for data in (train, test):
        for name in data.skipped if data is not None else ():
            logging.warning("left out of %s: %s", data.name, name)
    return train, test or train


def check_capacity(model: packnet_tf.PackNetModel) -> None:
    """Checks that the sparsities leave something to every task.

    Args:
        model: The packed network, before anything is trained; in the task
            `--keep` if there is one.

    Raises:
        ArgumentError: If a task would keep less than a weight per packed
            layer.
    """
    names = [datasets.parse(text).name for text in FLAGS.tasks]
    planned = dict(zip(names, sparsities()))
    if FLAGS.keep:
        planned = {FLAGS.keep: FLAGS.keep_sparsity, **planned}
    now = model.summary_capacity(print_fn=lambda text: None)
    owned = now.after(planned).owned
    for name in planned:
        if owned[name] < len(now.layers):
            flags = "--keep_sparsity or --sparsities"
            raise ArgumentError(
                "Every task keeps a weight per packed layer, or more. Let the "
                f"tasks before it release more by a higher {flags}, let it "
                "release less itself, or take a wider network. "
                f"Received: {owned[name]:,} of {now.total:,} weights for "
                f"{name!r}, in {len(now.layers)} packed layers"
            )


def channels() -> int:
    """Returns how many channels images have."""
    if FLAGS.channels != "auto":
        return int(FLAGS.channels)
    kinds = {datasets.parse(text).kind for text in FLAGS.tasks}
    own = FLAGS.network.lower() in networks.OWN
    return 1 if own and kinds == {"bundled"} else 3


def sparsities() -> list[float]:
    """Returns the sparsity of every task."""
    if FLAGS.sparsities == ["equal"]:
        count = len(FLAGS.tasks)
        return [1.0 - 1.0 / (count - place) for place in range(count)]
    try:
        found = [float(fraction) for fraction in FLAGS.sparsities]
    except ValueError:
        raise ArgumentError(
            "--sparsities takes numbers in [0, 1), separated by commas, or "
            "the word equal. "
            f"Received: {','.join(FLAGS.sparsities)}"
        ) from None
    if len(found) == 1:
        found *= len(FLAGS.tasks)
    if len(found) != len(FLAGS.tasks):
        raise ArgumentError(
            "--sparsities takes one number for all tasks or one per task. "
            f"Received: {len(found)} for {len(FLAGS.tasks)} tasks"
        )
    for fraction in found:
        selection.check_fraction(fraction)
    return found
