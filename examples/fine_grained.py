"""Packs several image-classification tasks into one network, one by one.

    python examples/fine_grained.py --flagfile=configs/quickstart.cfg

For each task: train, prune, retrain, freeze. Then the final network is
evaluated on all tasks, next to the same network trained on each task alone.
The run folder holds the packed model, a SavedModel per task, `results.json`
and `report.html`. Nothing is chosen on the test part of a task.
"""

import dataclasses
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
    import keeping
    import keras
    import networks
    import options
    import pipelines
    import recipes
    import report

    import packnet_tf
    from packnet_tf import files
    from packnet_tf import sequence
except ImportError as error:
    sys.exit(f"error: {error}")

FLAGS = flags.FLAGS

flags.adopt_module_key_flags(options)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What all parts of a run share.

    Attributes:
        network: Makes the network.
        pipeline: Feeds images to it.
        recipe: How it is trained.
        data: The tasks, in order.
        plans: What to do for each.
        run_dir: Where results go.
        verbose: As for `fit`.
        keep_test: What the kept task is tested on, if there is any.
    """

    network: networks.Network
    pipeline: pipelines.Pipeline
    recipe: recipes.Recipe
    data: list[datasets.Dataset]
    plans: list[sequence.TaskPlan]
    run_dir: pathlib.Path
    verbose: int
    keep_test: datasets.Dataset | None

    def compile_for(
        self, model: keras.Model, plan: sequence.TaskPlan, phase: str
    ) -> None:
        """Compiles a model for one phase of one task."""
        retraining = phase == "retrain"
        epochs = plan.retrain_epochs if retraining else plan.epochs
        model.compile(
            optimizer=self.recipe.optimizer(
                retraining, epochs, plan.steps_per_epoch
            ),
            loss="sparse_categorical_crossentropy",
            metrics=["accuracy"],
        )

    def accuracy(
        self, model: keras.Model, data: datasets.Dataset, **kwargs: Any
    ) -> float:
        """Returns the accuracy on the test part, in [0, 1]."""
        logs = model.evaluate(
            self.pipeline.evaluation(data, data.test),
            verbose=0,
            return_dict=True,
            **kwargs,
        )
        return float(logs["accuracy"])


def plan_tasks(
    loaded: list[datasets.Dataset], pipeline: pipelines.Pipeline
) -> list[sequence.TaskPlan]:
    """Makes the plan of every task from the flags."""
    return [
        sequence.TaskPlan(
            name=data.name,
            train=pipeline.training(data),
            validation=pipeline.evaluation(data, data.val),
            units=data.num_classes,
            epochs=FLAGS.epochs,
            retrain_epochs=FLAGS.retrain_epochs,
            steps_per_epoch=FLAGS.steps_per_epoch
            or math.ceil(len(data.train) / FLAGS.batch_size),
            sparsity=sparsity,
        )
        for data, sparsity in zip(loaded, options.sparsities())
    ]


def describe_plans(
    loaded: list[datasets.Dataset], plans: list[sequence.TaskPlan]
) -> list[dict[str, str]]:
    """Says what is going to be done, a row per task."""
    pool = FLAGS.keep_sparsity if FLAGS.keep else 1.0
    rows = []
    for data, plan in zip(loaded, plans):
        epochs = plan.epochs + (plan.retrain_epochs if plan.sparsity else 0)
        rows.append(
            {
                "task": data.name,
                "classes": str(data.num_classes),
                "train": f"{len(data.train):,}",
                "validation": f"{len(data.val):,}",
                "test": f"{len(data.test):,}",
                "sparsity": f"{plan.sparsity:.4g}",
                "keeps of all": f"{100 * pool * (1 - plan.sparsity):.2f} %",
                "steps": f"{epochs * plan.steps_per_epoch:,}",
            }
        )
        pool *= plan.sparsity
    return rows


def pack_tasks(
    experiment: Experiment,
) -> tuple[packnet_tf.PackNetModel, list[dict[str, Any]], dict[str, Any]]:
    """Learns all tasks in one network; saves it after each of them.

    Returns:
        The model, a row for each task, and what is to be said of the task
        that was kept, empty if there is none.
    """
    model, kept = begin(experiment)
    by_name = {data.name: data for data in experiment.data}
    rows: list[dict[str, Any]] = []

    def on_frozen(plan: sequence.TaskPlan, result: sequence.TaskResult) -> None:
        rows.append(
            {
                "name": plan.name,
                **describe_data(by_name[plan.name]),
                "sparsity": plan.sparsity,
                "after_learning": experiment.accuracy(
                    model, by_name[plan.name]
                ),
                "fingerprint": result.fingerprint,
                "history": result.history,
                "retrain_from": result.retrain_from,
            }
        )
        model.save(experiment.run_dir / "packed.keras")

    def announce(plan: sequence.TaskPlan, phase: str) -> list[Any]:
        print(f"\n{plan.name}: {phase}", flush=True)
        return []

    sequence.run(
        model,
        experiment.plans,
        experiment.compile_for,
        callbacks=announce,
        on_frozen=on_frozen,
        verbose=experiment.verbose,
    )
    return model, rows, kept


def begin(
    experiment: Experiment,
) -> tuple[packnet_tf.PackNetModel, dict[str, Any]]:
    """Packs the network, and keeps what it can do if that is asked for."""
    keras.utils.set_random_seed(FLAGS.seed)
    network = experiment.network
    if not FLAGS.keep:
        return pack(network.build(), head=None), {}
    print(f"\n{FLAGS.keep}: imitate", flush=True)
    teacher = network.build_whole()
    model = pack(teacher, task=FLAGS.keep)
    history = keeping.imitate(
        model,
        teacher,
        experiment.data,
        experiment.pipeline,
        sparsity=FLAGS.keep_sparsity,
        epochs=FLAGS.keep_epochs,
        learning_rate=FLAGS.keep_learning_rate,
        temperature=FLAGS.keep_temperature,
        steps_per_epoch=sum(plan.steps_per_epoch for plan in experiment.plans),
        verbose=experiment.verbose,
    )
    kept = {
        "name": FLAGS.keep,
        "fingerprint": model.freeze_task(),
        "sparsity": FLAGS.keep_sparsity,
        "history": history,
        **test_kept(experiment, model, teacher),
    }
    model.save(experiment.run_dir / "packed.keras")
    return model, kept


def pack(network: keras.Model, **kwargs: Any) -> packnet_tf.PackNetModel:
    """Packs a network as the flags say."""
    return packnet_tf.wrap(
        network,
        filters=FLAGS.filters or None,
        biases=FLAGS.biases,
        normalization=FLAGS.normalization,
        name="packed",
        **kwargs,
    )


def test_kept(
    experiment: Experiment,
    model: packnet_tf.PackNetModel,
    teacher: keras.Model,
) -> dict[str, Any]:
    """Compares the kept task with the network as it was."""
    found = {
        "agreement": keeping.agreement(
            model,
            teacher,
            experiment.data,
            experiment.pipeline,
            task=FLAGS.keep,
        )
    }
    data = experiment.keep_test
    if data is not None:
        batches = experiment.pipeline.evaluation(data, data.test)
        labels = data.test.labels[data.test.rows]
        found |= {
            "accuracy": keeping.accuracy(
                model.predict(batches, task=FLAGS.keep, verbose=0), labels
            ),
            "accuracy_before": keeping.accuracy(
                teacher.predict(batches, verbose=0), labels
            ),
            "agreement_on_test": keeping.agreement(
                model,
                teacher,
                [data],
                experiment.pipeline,
                task=FLAGS.keep,
            ),
        }
    return found


def describe_data(data: datasets.Dataset) -> dict[str, Any]:
    """Returns what is needed to know what a task was learned from."""
    return {
        "source": data.source,
        "classes": data.num_classes,
        "class_names": list(data.class_names),
        "examples": {
            "train": len(data.train),
            "val": len(data.val),
            "test": len(data.test),
        },
        "data_fingerprint": data.fingerprint(),
        "skipped": list(data.skipped),
    }


def train_alone(
    experiment: Experiment, data: datasets.Dataset, plan: sequence.TaskPlan
) -> dict[str, Any]:
    """Trains the same network on one task alone, for as many epochs."""
    print(f"\n{data.name}: the same network alone", flush=True)
    keras.utils.set_random_seed(FLAGS.seed)
    network = experiment.network.build()
    top = keras.layers.Dense(data.num_classes, activation="softmax")
    model = keras.Model(network.inputs[0], top(network.outputs[0]))
    history: list[dict[str, float]] = []
    for phase, epochs in (
        ("train", plan.epochs),
        ("retrain", plan.retrain_epochs if plan.sparsity else 0),
    ):
        if not epochs:
            continue
        experiment.compile_for(model, plan, phase)
        logs = model.fit(
            plan.train,
            steps_per_epoch=plan.steps_per_epoch,
            epochs=epochs,
            validation_data=plan.validation,
            shuffle=False,  # The pipeline does that.
            verbose=experiment.verbose,
        ).history
        history += [
            {name: float(values[epoch]) for name, values in logs.items()}
            for epoch in range(epochs)
        ]
    result = {
        "individual": experiment.accuracy(model, data),
        "individual_history": history,
    }
    # For inference only, as the packed model: without the optimizer's state.
    plain = keras.Model(model.inputs[0], model.outputs[0], name=data.name)
    path = experiment.run_dir / "individual" / f"{data.name}.keras"
    with files.replacing(path) as new:
        plain.save(new)
    result["individual_bytes"] = path.stat().st_size
    return result


def finish(
    experiment: Experiment,
    model: packnet_tf.PackNetModel,
    rows: list[dict[str, Any]],
) -> dict[str, Any]:
    """Evaluates the final network on all tasks and exports each of them."""
    run_dir = experiment.run_dir
    capacity = model.summary_capacity(print_fn=lambda text: None)
    model.verify()
    for row, data in zip(rows, experiment.data):
        name = row["name"]
        row["at_end"] = experiment.accuracy(model, data, task=name)
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
    own = FLAGS.get_key_flags_for_module(sys.argv[0])
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
    for name in ("results.json", "results.csv", "report.html", "capacity.png"):
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
    channels = options.channels()
    network = options.network(channels)
    pipeline = pipelines.Pipeline(
        FLAGS.image_size,
        FLAGS.batch_size,
        FLAGS.augmentation,
        network.preprocess,
        FLAGS.seed,
    )
    loaded = options.load_tasks(channels)
    plans = plan_tasks(loaded, pipeline)
    sequence.check(plans)
    if FLAGS.dry_run:
        print(report.plan_to_text(describe_plans(loaded, plans)))
        return
    experiment = Experiment(
        network,
        pipeline,
        recipes.Recipe.from_flags(FLAGS),
        loaded,
        plans,
        prepare_run_dir(),
        1 if sys.stdout.isatty() else 2,
        None
        if not (FLAGS.keep and FLAGS.keep_test)
        else datasets.load_test(
            FLAGS.keep_test, options.data_settings(channels)
        ),
    )
    run_dir = experiment.run_dir
    model, rows, kept = pack_tasks(experiment)
    if FLAGS.individual:
        for row, data, plan in zip(rows, loaded, plans):
            row.update(train_alone(experiment, data, plan))
    results = {
        **describe_run(),
        **finish(experiment, model, rows),
        **({"kept": kept} if kept else {}),
        "seconds": round(time.time() - started, 1),
    }
    with files.replacing(run_dir / "results.json") as new:
        new.write_text(json.dumps(results, indent=2) + "\n")
    report.write_csv(results, run_dir)
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
