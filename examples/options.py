"""The flags of the experiment, and what they mean together."""

import dataclasses
from typing import Any

import datasets
import keeping
import networks
import numpy as np
import pipelines
import recipes
from absl import flags
from absl import logging

from packnet_tf import sequence
from packnet_tf.errors import ArgumentError

FLAGS = flags.FLAGS

METHODS = (
    "packnet",
    "individual",
    "classifier",
    "finetune",
    "joint",
    "lwf",
    "ewc",
)
_MAX_SEED = 2**31
# What says where things are, or what to do; the rest says what a run is.
_NOT_CONFIG = (
    "cache_dir",
    "data_dir",
    "download",
    "dry_run",
    "methods",
    "orders",
    "overwrite",
    "run_dir",
    "seeds",
    "tfds_dir",
)

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
flags.DEFINE_list(
    "methods",
    ["packnet", "individual"],
    f"What is run and compared, of {', '.join(METHODS)}: the packed network; "
    "a network of its own for each task; only a classifier for each task; "
    "fine-tuning one network on task after task; training on all tasks "
    "together; learning without forgetting; elastic weight consolidation.",
)
flags.DEFINE_list(
    "seeds",
    ["0"],
    "Of weights, shuffling and dropout; everything is run once for each.",
)
flags.DEFINE_integer(
    "orders",
    1,
    "Orders of the tasks to run: the given one, then others drawn at random.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "warmup_epochs",
    0,
    "Epochs before training in which a new classifier trains alone.",
    lower_bound=0,
)
flags.DEFINE_integer(
    "patience",
    None,
    "Ends a phase when --monitor has not been better for as many epochs.",
    lower_bound=1,
)
flags.DEFINE_enum(
    "monitor", "val_loss", ["val_loss", "val_accuracy"], "For --patience."
)
flags.DEFINE_enum(
    "pruning",
    "one_shot",
    ["one_shot", "gradual"],
    "Whether a task is pruned after training, or during it: over its first "
    "half, fast at first.",
)
flags.DEFINE_string(
    "criterion",
    "magnitude",
    "How weights are ranked, as packnet_tf.criteria names it.",
)
flags.DEFINE_enum(
    "scope",
    "layer",
    ["layer", "global"],
    "Whether each layer releases the fraction, or all of them together.",
)
flags.DEFINE_float(
    "lwf_temperature",
    2.0,
    "What learning without forgetting softens targets by.",
    lower_bound=0.1,
)
flags.DEFINE_float(
    "lwf_strength",
    1.0,
    "Weight of its loss for each earlier task.",
    lower_bound=0.0,
)
flags.DEFINE_float(
    "ewc_strength",
    1000.0,
    "Weight of the penalty of elastic weight consolidation.",
    lower_bound=0.0,
)
flags.DEFINE_integer(
    "ewc_samples",
    200,
    "Images of a task that it measures importance on.",
    lower_bound=1,
)
flags.DEFINE_enum(
    "precision",
    "float32",
    ["float32", "mixed_float16", "mixed_bfloat16"],
    "What is computed in; weights are float32.",
)
flags.DEFINE_enum(
    "jit_compile",
    "auto",
    ["auto", "true", "false"],
    "Whether training steps are compiled with XLA.",
)
flags.DEFINE_enum(
    "strategy",
    "none",
    ["none", "mirrored"],
    "Whether each step is shared out over all GPUs of the machine.",
)
flags.DEFINE_bool(
    "dry_run", False, "Only say what would be done; the data is prepared."
)
flags.DEFINE_string("run_dir", "runs/fine_grained", "Where results go.")
flags.DEFINE_bool(
    "overwrite",
    False,
    "Begin anew and replace what is in --run_dir. Without, a run that was "
    "interrupted goes on, and one that is finished is only reported.",
)


@dataclasses.dataclass(frozen=True)
class Repeat:
    """One run of all methods.

    Attributes:
        name: Name of the repeat.
        folder: Where it is in the run folder.
        seed: Of weights, shuffling and dropout.
        order: Which place in `--tasks` comes first, second, ...
    """

    name: str
    folder: str
    seed: int
    order: tuple[int, ...]


def config() -> dict[str, Any]:
    """Returns the flags that say what a run is, by name."""
    return {
        name: value
        for name, value in all_flags().items()
        if name not in _NOT_CONFIG
    }


def all_flags() -> dict[str, Any]:
    """Returns all flags of the experiment by name."""
    own = FLAGS.get_flags_for_module(__name__)
    return {flag.name: flag.value for flag in own}


def methods() -> list[str]:
    """Returns the methods to run, in the order of `METHODS`.

    Raises:
        ArgumentError: If there is none, or one that is not known.
    """
    unknown = set(FLAGS.methods) - set(METHODS)
    if unknown or not FLAGS.methods:
        raise ArgumentError(
            f"--methods names one or more of {', '.join(METHODS)}. "
            f"Received: {','.join(FLAGS.methods)!r}"
        )
    return [name for name in METHODS if name in FLAGS.methods]


def repeats() -> list[Repeat]:
    """Returns the repeats, for each order and seed.

    Raises:
        ArgumentError: If seeds are no numbers, or one comes twice.
    """
    if not all(text.isdecimal() for text in FLAGS.seeds) or not FLAGS.seeds:
        raise ArgumentError(
            "--seeds takes whole numbers from 0, separated by commas. "
            f"Received: {','.join(FLAGS.seeds)!r}"
        )
    seeds = [int(text) for text in FLAGS.seeds]
    if len(set(seeds)) != len(seeds) or max(seeds) >= _MAX_SEED:
        raise ArgumentError(
            f"--seeds takes different numbers below {_MAX_SEED}. "
            f"Received: {','.join(FLAGS.seeds)!r}"
        )
    found = []
    given = np.arange(len(FLAGS.tasks))
    for place in range(FLAGS.orders):
        order = np.random.default_rng(place).permutation(given)
        order = tuple((order if place else given).tolist())
        for seed in seeds:
            name = f"seed{seed}" if not place else f"order{place}_seed{seed}"
            folder = "." if not found else name
            found.append(Repeat(name, folder, seed, order))
    return found


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
    # Names are cheap to check; data is not.
    names = [spec.name for spec in specs]
    if FLAGS.keep:
        names = [FLAGS.keep, *names]
    sequence.check([sequence.TaskPlan(name, None, units=2) for name in names])
    sparsities()
    loaded = datasets.load_all(FLAGS.tasks, settings)
    for data in loaded:
        for name in data.skipped:
            logging.warning("left out of %s: %s", data.name, name)
    return loaded


def wrapping() -> dict[str, Any]:
    """Returns the arguments for `packnet_tf.wrap`."""
    return {
        "filters": FLAGS.filters or None,
        "biases": FLAGS.biases,
        "normalization": FLAGS.normalization,
    }


def keep(network: networks.Network, channels: int) -> keeping.Keeping | None:
    """Returns how the network's own classifier is kept, if it is.

    Args:
        network: The network with its classifier.
        channels: 3 for RGB, 1 for gray.

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
        return None
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
    return keeping.Keeping(
        FLAGS.keep,
        FLAGS.keep_sparsity,
        FLAGS.keep_epochs,
        FLAGS.keep_learning_rate,
        FLAGS.keep_temperature,
        train,
        test or train,
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
    return found
