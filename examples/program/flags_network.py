"""The flags of the network, and of the task that it comes with."""

from absl import flags
from methods import networks

flags.DEFINE_string(
    "network",
    "convnet",
    f"One of {', '.join(networks.OWN)}; a name of keras.applications; or the "
    "path of a .keras file, which gets images in [0, 1], without any "
    "preprocessing but that of its own layers.",
)
flags.DEFINE_alias("model", "network")
flags.DEFINE_string(
    "weights",
    "none",
    "For a network of keras.applications: none, imagenet, or the path of a "
    ".weights.h5 file.",
)
flags.DEFINE_integer(
    "width",
    None,
    f"Filters of the first layer, or units of a hidden one, of "
    f"{', '.join(networks.OWN)}.",
    lower_bound=1,
)
flags.DEFINE_enum(
    "train_normalization",
    "auto",
    ["auto", "true", "affine", "false"],
    "Whether batch normalization learns: all of it, its scale and offset but "
    "not its statistics, or nothing. By default all where the network starts "
    "at random; of a pretrained one affine if each task has its own, else "
    "nothing. A task that imitates never changes it.",
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
    None,
    "Fraction of all weights that the kept task releases. Defaults to 0.5, as "
    "in the paper, and to 0.3 for a network with depthwise layers, which does "
    "not survive more.",
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
