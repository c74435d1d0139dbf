"""Packs several image-classification tasks into one network, one by one.

    python examples/fine_grained.py --flagfile=configs/quickstart.cfg

For each task: train, prune, retrain, freeze. Then the final network is
evaluated on all tasks, next to the same network trained on each task alone.
The run folder holds the packed model, a SavedModel per task, `results.json`
and `report.html`. Nothing is chosen on the test part of a task.
"""

import importlib.metadata
import json
import math
import pathlib
import shutil
import sys
import time
from typing import Any

from absl import app
from absl import flags
from absl import logging

try:
    import datasets
    import keras
    import networks
    import report
    import tensorflow as tf

    import packnet_tf
    from packnet_tf import files
    from packnet_tf import sequence
except ImportError as error:
    sys.exit(f"error: {error}")

FLAGS = flags.FLAGS

flags.DEFINE_list(
    "tasks",
    list(datasets.BUNDLED),
    f"Tasks in the order they are learned, of {', '.join(datasets.BUNDLED)}.",
)
flags.DEFINE_list(
    "sparsities",
    ["0.5"],
    "Fraction of its pool that each task releases after training, in [0, 1): "
    "one for all tasks or one per task.",
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
flags.DEFINE_float("learning_rate", 2e-3, "Adam's, at the start of training.")
flags.DEFINE_float(
    "retrain_learning_rate", 5e-4, "Adam's, at the start of retraining."
)
flags.DEFINE_integer("image_size", 28, "Height and width.", lower_bound=8)
flags.DEFINE_integer("width", 16, "Filters of the first layer.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Of weights, shuffling and dropout.")
flags.DEFINE_bool(
    "individual", True, "Also train the same network on each task alone."
)
flags.DEFINE_string("run_dir", "runs/fine_grained", "Where results go.")
flags.DEFINE_bool("overwrite", False, "Replace a finished run in `run_dir`.")
flags.DEFINE_string("data_dir", None, "Where the bundled data is.")


def plan_tasks(loaded: list[datasets.Dataset]) -> list[sequence.TaskPlan]:
    """Makes the plan of every task from the flags."""
    try:
        sparsities = [float(fraction) for fraction in FLAGS.sparsities]
    except ValueError:
        raise packnet_tf.errors.ArgumentError(
            "--sparsities takes numbers in [0, 1), separated by commas. "
            f"Received: {','.join(FLAGS.sparsities)}"
        ) from None
    if len(sparsities) == 1:
        sparsities *= len(loaded)
    if len(sparsities) != len(loaded):
        raise packnet_tf.errors.ArgumentError(
            "--sparsities takes one number for all tasks or one per task. "
            f"Received: {len(sparsities)} for {len(loaded)} tasks"
        )
    return [
        sequence.TaskPlan(
            name=data.name,
            train=make_pipeline(data),
            validation=(data.x_val, data.y_val),
            units=data.num_classes,
            epochs=FLAGS.epochs,
            retrain_epochs=FLAGS.retrain_epochs,
            steps_per_epoch=steps_per_epoch(data),
            sparsity=sparsity,
        )
        for data, sparsity in zip(loaded, sparsities)
    ]


def steps_per_epoch(data: datasets.Dataset) -> int:
    """Returns the steps of an epoch of one task."""
    return FLAGS.steps_per_epoch or math.ceil(
        len(data.x_train) / FLAGS.batch_size
    )


def make_pipeline(data: datasets.Dataset) -> tf.data.Dataset:
    """Returns the endless, shuffled training batches of a task."""
    examples = tf.data.Dataset.from_tensor_slices((data.x_train, data.y_train))
    shuffled = examples.shuffle(len(data.x_train), seed=FLAGS.seed)
    return shuffled.repeat().batch(FLAGS.batch_size).prefetch(2)


def compile_for(
    model: keras.Model, plan: sequence.TaskPlan, phase: str
) -> None:
    """Compiles a model for one phase of one task."""
    retraining = phase == "retrain"
    epochs = plan.retrain_epochs if retraining else plan.epochs
    schedule = keras.optimizers.schedules.CosineDecay(
        FLAGS.retrain_learning_rate if retraining else FLAGS.learning_rate,
        decay_steps=epochs * plan.steps_per_epoch,
    )
    model.compile(
        optimizer=keras.optimizers.Adam(schedule),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )


def accuracy(
    model: keras.Model, data: datasets.Dataset, **kwargs: Any
) -> float:
    """Returns the accuracy on the test part, in [0, 1]."""
    logs = model.evaluate(
        data.x_test, data.y_test, verbose=0, return_dict=True, **kwargs
    )
    return float(logs["accuracy"])


def pack_tasks(
    loaded: list[datasets.Dataset],
    plans: list[sequence.TaskPlan],
    run_dir: pathlib.Path,
    verbose: int,
) -> tuple[packnet_tf.PackNetModel, list[dict[str, Any]]]:
    """Learns all tasks in one network; saves it after each of them."""
    keras.utils.set_random_seed(FLAGS.seed)
    model = packnet_tf.wrap(
        networks.small_convnet(FLAGS.image_size, FLAGS.width),
        head=None,
        name="packed",
    )
    by_name = {data.name: data for data in loaded}
    rows: list[dict[str, Any]] = []

    def on_frozen(plan: sequence.TaskPlan, result: sequence.TaskResult) -> None:
        rows.append(
            {
                "name": plan.name,
                "classes": plan.units,
                "sparsity": plan.sparsity,
                "after_learning": accuracy(model, by_name[plan.name]),
                "fingerprint": result.fingerprint,
                "history": result.history,
                "retrain_from": result.retrain_from,
            }
        )
        model.save(run_dir / "packed.keras")

    def announce(plan: sequence.TaskPlan, phase: str) -> list[Any]:
        print(f"\n{plan.name}: {phase}", flush=True)
        return []

    sequence.run(
        model,
        plans,
        compile_for,
        callbacks=announce,
        on_frozen=on_frozen,
        verbose=verbose,
    )
    return model, rows


def train_alone(
    data: datasets.Dataset,
    plan: sequence.TaskPlan,
    run_dir: pathlib.Path,
    verbose: int,
) -> dict[str, Any]:
    """Trains the same network on one task alone, for as many epochs."""
    print(f"\n{data.name}: the same network alone", flush=True)
    keras.utils.set_random_seed(FLAGS.seed)
    model = networks.small_convnet(
        FLAGS.image_size, FLAGS.width, data.num_classes
    )
    history: list[dict[str, float]] = []
    for phase, epochs in (
        ("train", plan.epochs),
        ("retrain", plan.retrain_epochs if plan.sparsity else 0),
    ):
        if not epochs:
            continue
        compile_for(model, plan, phase)
        logs = model.fit(
            plan.train,
            steps_per_epoch=plan.steps_per_epoch,
            epochs=epochs,
            validation_data=plan.validation,
            shuffle=False,  # The pipeline does that.
            verbose=verbose,
        ).history
        history += [
            {name: float(values[epoch]) for name, values in logs.items()}
            for epoch in range(epochs)
        ]
    result = {
        "individual": accuracy(model, data),
        "individual_history": history,
    }
    # For inference only, as the packed model: without the optimizer's state.
    plain = keras.Model(model.inputs[0], model.outputs[0], name=data.name)
    path = run_dir / "individual" / f"{data.name}.keras"
    with files.replacing(path) as new:
        plain.save(new)
    result["individual_bytes"] = path.stat().st_size
    return result


def finish(
    model: packnet_tf.PackNetModel,
    loaded: list[datasets.Dataset],
    rows: list[dict[str, Any]],
    run_dir: pathlib.Path,
) -> dict[str, Any]:
    """Evaluates the final network on all tasks and exports each of them."""
    capacity = model.summary_capacity(print_fn=lambda text: None)
    model.verify()
    for row, data in zip(rows, loaded):
        name = row["name"]
        row["at_end"] = accuracy(model, data, task=name)
        row["share"] = capacity.share(name)
        row["owned"] = capacity.owned[name]
        folder = run_dir / "export" / name
        model.export_task(name, folder)
        row["export_bytes"] = sum(
            path.stat().st_size for path in folder.rglob("*") if path.is_file()
        )
    capacity.plot(run_dir / "capacity.png")
    return {
        "tasks": rows,
        "capacity": capacity.to_dict(),
        "packed_bytes": (run_dir / "packed.keras").stat().st_size,
    }


def describe_run() -> dict[str, Any]:
    """Returns the flags and versions that make a run reproducible."""
    own = FLAGS.flags_by_module_dict()[sys.argv[0]]
    packages = ("tensorflow", "keras", "numpy")
    return {
        "flags": {flag.name: flag.value for flag in own},
        "versions": {
            "python": sys.version.split()[0],
            "packnet_tf": packnet_tf.__version__,
            **{name: importlib.metadata.version(name) for name in packages},
        },
    }


def prepare_run_dir() -> pathlib.Path:
    """Checks that results can be written, before anything is computed."""
    run_dir = pathlib.Path(FLAGS.run_dir)
    if (run_dir / "results.json").exists() and not FLAGS.overwrite:
        raise packnet_tf.errors.FileError(
            "The run folder holds a finished run. Choose another with "
            "--run_dir, or replace it with --overwrite. "
            f"Received: --run_dir={run_dir}"
        )
    with files.replacing(run_dir / "results.json.test") as probe:
        probe.write_text("")
    (run_dir / "results.json.test").unlink()
    for name in ("results.json", "report.html", "capacity.png"):
        (run_dir / name).unlink(missing_ok=True)
    for name in ("individual", "export"):
        shutil.rmtree(run_dir / name, ignore_errors=True)
    return run_dir


def main(argv: list[str]) -> None:
    """Runs the whole experiment."""
    if len(argv) > 1:
        raise packnet_tf.errors.ArgumentError(
            "Only flags are taken; --helpfull lists them. "
            f"Received: {' '.join(argv[1:])}"
        )
    started = time.time()
    verbose = 1 if sys.stdout.isatty() else 2
    loaded = [
        datasets.load(name, FLAGS.image_size, FLAGS.data_dir)
        for name in FLAGS.tasks
    ]
    plans = plan_tasks(loaded)
    sequence.check(plans)
    run_dir = prepare_run_dir()
    model, rows = pack_tasks(loaded, plans, run_dir, verbose)
    if FLAGS.individual:
        for row, data, plan in zip(rows, loaded, plans):
            row.update(train_alone(data, plan, run_dir, verbose))
    results = {
        **describe_run(),
        **finish(model, loaded, rows, run_dir),
        "seconds": round(time.time() - started, 1),
    }
    with files.replacing(run_dir / "results.json") as new:
        new.write_text(json.dumps(results, indent=2) + "\n")
    report.write(results, run_dir)
    print("\n" + report.to_text(results))
    print(f"\nReport: {run_dir / 'report.html'}")


def run(argv: list[str]) -> None:
    """Runs `main` and turns what users can mend into one clear line."""
    logging.set_verbosity(logging.WARNING)
    try:
        main(argv)
    except (packnet_tf.errors.PackNetError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    app.run(run)
