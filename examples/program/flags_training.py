"""The flags of training: how long, with which optimizer, computed how.

The defaults are the recipe of PackNet's paper.
"""

from absl import flags
from methods import recipes

flags.DEFINE_integer("epochs", 20, "Epochs of training.", lower_bound=1)
flags.DEFINE_integer(
    "retrain_epochs", 10, "Epochs of retraining after pruning.", lower_bound=0
)
flags.DEFINE_integer(
    "warmup_epochs",
    0,
    "Epochs before training in which a new classifier trains alone.",
    lower_bound=0,
)
flags.DEFINE_integer(
    "steps_per_epoch",
    None,
    "Steps of an epoch. Defaults to one pass over the training part.",
    lower_bound=1,
)
flags.DEFINE_integer("batch_size", 32, "Images per step.", lower_bound=1)
flags.DEFINE_enum(
    "optimizer", "sgd", recipes.OPTIMIZERS, "What trains, as Keras names it."
)
flags.DEFINE_float("momentum", 0.9, "Of sgd.", lower_bound=0.0, upper_bound=1.0)
flags.DEFINE_float(
    "weight_decay", 0.0, "Per step, decoupled from the loss.", lower_bound=0.0
)
flags.DEFINE_float(
    "learning_rate", 1e-3, "At the start of training.", lower_bound=0.0
)
flags.DEFINE_float(
    "retrain_learning_rate",
    1e-4,
    "At the start of retraining.",
    lower_bound=0.0,
)
flags.DEFINE_enum(
    "schedule",
    "step",
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
    ["none", "mirrored", "multi_worker"],
    "Whether each step is shared out: over all GPUs of the machine, or of all "
    "machines that TF_CONFIG lists, on each of which this program runs. "
    "Several machines train the packed network alone, no other --methods.",
)
