"""The flags of the tasks: where their data is, and how it is prepared."""

from absl import flags
from loading import datasets
from loading import pipelines

flags.DEFINE_list(
    "tasks",
    [],
    "Tasks in the order they are learned, each [NAME:]SOURCE. SOURCE is "
    f"bundled:NAME of {', '.join(datasets.BUNDLED)}; folder:PATH, with a "
    "folder of images per class, or train and test that hold those; npz:PATH, "
    "with x_train, y_train, x_test and y_test; a name of TensorFlow Datasets; "
    "split:FIRST-LAST:SOURCE, some classes of another source; or "
    "permuted:SEED:SOURCE, its pixels in another order.",
)
flags.DEFINE_integer(
    "image_size",
    None,
    "Height and width that the network takes, in pixels. Defaults to 28 if all "
    "tasks are bundled, else to the 224 of the paper.",
    lower_bound=8,
    upper_bound=1024,
)
flags.DEFINE_integer(
    "resize",
    None,
    "What the shorter edge of images is scaled to, in pixels. Their middle "
    "square is kept and then cut down to --image_size: at random in training "
    "with --augmentation=crop_flip, else in the middle. Defaults to "
    "--image_size, and with crop_flip without --padding to a seventh more, as "
    "the paper has 256 for 224.",
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
    "crop_flip",
    pipelines.AUGMENTATIONS,
    "What is done to training images: by default crops and mirror images, as "
    "in the paper.",
)
flags.DEFINE_integer(
    "padding",
    0,
    "Pixels that training images get on each side, as in a mirror, before they "
    "are cropped at random; --augmentation=crop_flip and randaugment do that.",
    lower_bound=0,
)
flags.DEFINE_list(
    "boxed",
    [],
    "Tasks of TensorFlow Datasets whose images are cut to their bounding "
    "boxes, and these scaled to squares of --image_size.",
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
