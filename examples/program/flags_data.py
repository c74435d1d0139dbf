"""The flags of the tasks: where their data is, and how it is prepared."""

from absl import flags
from loading import datasets
from loading import pipelines

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
