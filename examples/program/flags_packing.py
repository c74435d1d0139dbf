"""The flags of what is packed, and how it is pruned."""

from absl import flags

flags.DEFINE_list(
    "sparsities",
    ["0.5"],
    "Fraction of its pool that each task releases after training, in [0, 1): "
    "one for all tasks or one per task; or the word equal, so that all tasks "
    "keep as much.",
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
