"""The flags of what is packed, and how it is pruned."""

from absl import flags

flags.DEFINE_list(
    "sparsities",
    ["paper"],
    "Fraction of its pool that each task releases after training, in [0, 1): "
    "one for all tasks or one per task; or the word equal, so that all tasks "
    "keep as much; or the word paper, which is 0.75, and 0 for the last task.",
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
    "auto",
    "Layers that are packed, by a regular expression searched in their names. "
    "The others stay dense: they are frozen with the first task. By default "
    "all are packed, but of a network with depthwise layers whose classifier "
    "is kept, those and the first convolution stay dense, as pruning them "
    "costs most.",
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
