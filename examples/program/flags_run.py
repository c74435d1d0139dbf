"""The flags of a run: what is compared, how often, and where results go."""

from absl import flags

METHODS = (
    "packnet",
    "individual",
    "classifier",
    "finetune",
    "joint",
    "lwf",
    "ewc",
)

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
