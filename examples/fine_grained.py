"""Packs several image-classification tasks into one network, one by one.

    python examples/fine_grained.py --flagfile=configs/quickstart.cfg

For each task: train, prune, retrain, freeze. Then the final network is
evaluated on all tasks, next to the same network trained in other ways. The
run folder holds the packed model, a SavedModel per task, all results and a
report. The same command goes on where it was interrupted. Nothing is chosen
on the test part of a task.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import math
import os
import pathlib
import sys
import tempfile
from typing import Any

from absl import app
from absl import flags
from absl import logging

try:
    # First, as it says what is wrong with Keras' backend.
    import packnet_tf  # isort: skip
    import keras
    import tensorflow as tf
    from loading import datasets
    from loading import pipelines
    from methods import baselines
    from methods import ewc
    from methods import experiment
    from methods import keeping
    from methods import networks
    from methods import packing
    from methods import recipes
    from program import dry_run
    from program import image_options
    from program import options
    from program import repetition
    from program import run_folder
    from reporting import outcomes
    from reporting import page
    from reporting import report

    from packnet_tf import distribute
    from packnet_tf import sequence
except ImportError as error:
    sys.exit(f"error: {error}")

FLAGS = flags.FLAGS

flags.adopt_module_key_flags(options)

_PACKAGES = (
    "tensorflow",
    "keras",
    "numpy",
    "tensorflow-model-optimization",
    "tensorflow-datasets",
    "keras-cv",
)
_SEQUENTIAL = {
    "classifier": baselines.ClassifierOnly,
    "finetune": baselines.FineTuning,
    "joint": baselines.Joint,
    "lwf": baselines.LearningWithoutForgetting,
    "ewc": ewc.ElasticWeightConsolidation,
}


def main(argv: list[str]) -> None:
    """Runs the whole experiment, or what is left of it."""
    if len(argv) > 1:
        raise packnet_tf.errors.ArgumentError(
            "Only flags are taken; --help lists them. "
            f"Received: {' '.join(argv[1:])}"
        )
    methods, repeats = options.methods(), repetition.from_flags()
    # Before TensorFlow does anything, as it demands.
    with distribute.watched(strategy()):
        carry_out(methods, repeats)


def carry_out(methods: list[str], repeats: list[repetition.Repeat]) -> None:
    """Runs what is asked for, or what is left of it; on each of the workers."""
    folder = run_folder.RunFolder(
        pathlib.Path(FLAGS.run_dir),
        options.config(),
        options.fingerprints_of_files(),
    )
    distribute.check_equal(asked(methods, repeats), strategy())
    if not (FLAGS.overwrite or FLAGS.dry_run):
        distribute.check_equal({"run in --run_dir": folder.run()}, strategy())
        folder.check()
        repeats = folder.place(repeats)
        results = folder.results()
        if results is not None and covers(results, methods, repeats):

            def report_again() -> None:
                with folder.locked():
                    write_report(results, folder.path)

            distribute.chief_does(report_again, strategy())
            return
    keras.config.set_dtype_policy(FLAGS.precision)
    channels = image_options.channels()
    network = options.network(channels)
    # Before data is read, which may take hours.
    options.check_tasks(channels)
    options.check_network(network, methods, channels)
    loaded = options.load_tasks(channels)
    keep = options.keep(network, channels)
    settings = [
        set_up(network, loaded, keep, repeat, folder.path) for repeat in repeats
    ]
    sequence.check(settings[0].plans)
    wrap = options.wrapping(network)
    if FLAGS.dry_run:
        print(dry_run.describe(settings[0], methods, len(repeats), wrap))
        return
    if packing.NAME in methods and (FLAGS.overwrite or folder.is_new()):
        # Before anything is written: what is refused leaves nothing behind.
        with tempfile.TemporaryDirectory() as elsewhere:
            first = dataclasses.replace(
                settings[0], folder=pathlib.Path(elsewhere)
            )
            model, _ = packing.begin(first, wrap)
            options.plan(model, keep=keep)
    fingerprints = {data.name: data.fingerprint() for data in loaded}
    known = dict(fingerprints)
    if keep is not None:
        for flag, data in data_of_kept(keep).items():
            known[flag] = data.fingerprint()
    distribute.check_equal(
        {f"data of {name}": value for name, value in known.items()}, strategy()
    )

    with contextlib.ExitStack() as stack:

        def begin() -> None:
            stack.enter_context(folder.locked())
            if FLAGS.overwrite:
                folder.clear()
            folder.begin(repeats, known, versions())

        def end() -> None:
            results = put_together(folder, loaded, keep, known)
            folder.write_results(results)
            write_report(results, folder.path)

        distribute.chief_does(begin, strategy())
        for setting in settings:
            for name in methods:
                learn(name, setting, wrap)
        distribute.chief_does(end, strategy())


def asked(
    methods: list[str], repeats: list[repetition.Repeat]
) -> dict[str, Any]:
    """Returns what all workers have to be asked for alike, by its name."""
    return {
        **{f"--{name}": value for name, value in options.config().items()},
        "--methods": methods,
        "--orders and --seeds": repeats,
        "files of --network and --weights": options.fingerprints_of_files(),
        "--overwrite": FLAGS.overwrite,
        "--dry_run": FLAGS.dry_run,
    }


def put_together(
    folder: run_folder.RunFolder,
    loaded: list[datasets.Dataset],
    keep: keeping.Keeping | None,
    fingerprints: dict[str, str],
) -> dict[str, Any]:
    """Returns what `results.json` holds: all that is finished in the folder."""
    found = []
    for repeat in folder.repeats():
        methods = experiment.finished(
            folder.path / repeat.folder, options.METHODS
        )
        if methods:
            found.append(
                {
                    **dataclasses.asdict(repeat),
                    "order": [loaded[place].name for place in repeat.order],
                    "methods": methods,
                }
            )
    results = {
        "flags": options.all_flags(),
        "versions": versions(),
        "tasks": [describe(data, fingerprints[data.name]) for data in loaded],
        "kept": None if keep is None else describe_kept(keep, fingerprints),
        "repeats": found,
        # Over all restarts.
        "seconds": round(
            sum(
                method["seconds"]
                for repeat in found
                for method in repeat["methods"].values()
            ),
            1,
        ),
    }
    for repeat, measures in zip(found, outcomes.summarize(results)):
        repeat["measures"] = measures
    return results


def data_of_kept(keep: keeping.Keeping) -> dict[str, datasets.Dataset]:
    """Returns the data that a kept task has, by flag."""
    given = {"--keep_train": keep.train, "--keep_test": keep.test}
    return {flag: data for flag, data in given.items() if data is not None}


def describe_kept(
    keep: keeping.Keeping, fingerprints: dict[str, str]
) -> dict[str, Any]:
    """Returns what a kept task is, and what data it was kept with."""
    return {
        "name": keep.name,
        "classes": keep.classes,
        "source": None if keep.test is None else keep.test.source,
        "data": [
            {
                **describe(data, fingerprints[flag]),
                "name": f"{keep.name} ({flag})",
            }
            for flag, data in data_of_kept(keep).items()
        ],
    }


def covers(
    results: dict[str, Any],
    methods: list[str],
    repeats: list[repetition.Repeat],
) -> bool:
    """Tells whether results have these methods in these repeats."""
    found = {
        repeat["name"]: set(repeat["methods"]) for repeat in results["repeats"]
    }
    return all(
        set(methods) <= found.get(repeat.name, set()) for repeat in repeats
    )


def set_up(
    network: networks.Network,
    loaded: list[datasets.Dataset],
    keep: keeping.Keeping | None,
    repeat: repetition.Repeat,
    run_dir: pathlib.Path,
) -> experiment.Experiment:
    """Makes one repeat of the experiment from the flags."""
    pipeline = pipelines.Pipeline(
        image_options.size(),
        FLAGS.batch_size,
        FLAGS.augmentation,
        network.preprocess,
        repeat.seed,
        image_options.padding(),
    )
    data = [loaded[place] for place in repeat.order]
    verbose = 1 if sys.stdout.isatty() else 2
    return experiment.Experiment(
        network,
        pipeline,
        recipes.Recipe.from_flags(FLAGS),
        data,
        [
            plan_task(task, pipeline, sparsity)
            for task, sparsity in zip(data, options.sparsities())
        ],
        run_dir / repeat.folder,
        repeat.seed,
        verbose if distribute.is_chief(strategy()) else 0,
        keep,
    )


def plan_task(
    data: datasets.Dataset, pipeline: pipelines.Pipeline, sparsity: float
) -> sequence.TaskPlan:
    """Makes the plan of a task from the flags."""
    steps = FLAGS.steps_per_epoch or math.ceil(
        len(data.train) / FLAGS.batch_size
    )
    schedule = None
    if sparsity and FLAGS.pruning == "gradual":
        schedule = keeping.gradual(sparsity, FLAGS.epochs * steps)
    return sequence.TaskPlan(
        name=data.name,
        train=lambda epoch: pipeline.training(data, epoch * steps),
        validation=pipeline.evaluation(data, data.val),
        units=data.num_classes,
        epochs=FLAGS.epochs,
        retrain_epochs=FLAGS.retrain_epochs,
        steps_per_epoch=steps,
        sparsity=0.0 if schedule else sparsity,
        schedule=schedule,
        criterion=FLAGS.criterion,
        scope=FLAGS.scope,
        warmup_epochs=FLAGS.warmup_epochs,
        patience=FLAGS.patience,
        monitor=FLAGS.monitor,
    )


def learn(
    method: str, setting: experiment.Experiment, wrap: dict[str, Any]
) -> None:
    """Learns all tasks with one method, unless that is done already.

    Its result is in the folder then; of several workers, the first one alone
    writes it.

    Args:
        method: Its name.
        setting: The experiment.
        wrap: Arguments for `packnet_tf.wrap`.
    """
    done = experiment.is_done(setting.folder, method)
    distribute.check_equal({f"results of {method}": done}, strategy())

    def work() -> dict[str, Any]:
        if method == packing.NAME:
            return packing.learn(setting, wrap)
        if method == "individual":
            return baselines.learn_individual(setting)
        return _SEQUENTIAL[method](setting, method).learn()

    keras.backend.clear_session()
    result: dict[str, Any] = {}
    with strategy().scope():
        if not done:
            result = work()
        distribute.chief_does(
            lambda: experiment.once(setting.folder, method, result.copy),
            strategy(),
        )


@functools.cache
def strategy() -> tf.distribute.Strategy:
    """Returns how steps are shared out, as `--strategy` says."""
    if FLAGS.strategy == "multi_worker":
        if "TF_CONFIG" not in os.environ:
            raise packnet_tf.errors.ArgumentError(
                "--strategy=multi_worker runs on each of several machines, and "
                "TF_CONFIG says which those are and which one this is. Set "
                "it, or take --strategy=mirrored. Received: no TF_CONFIG"
            )
        return tf.distribute.MultiWorkerMirroredStrategy()
    if FLAGS.strategy == "mirrored":
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


def describe(data: datasets.Dataset, fingerprint: str) -> dict[str, Any]:
    """Returns what is needed to know what a task was learned from."""
    return {
        "name": data.name,
        "source": data.source,
        "classes": data.num_classes,
        "class_names": list(data.class_names),
        "examples": {
            "train": len(data.train),
            "val": len(data.val),
            "test": len(data.test),
        },
        "data_fingerprint": fingerprint,
        "skipped": list(data.skipped),
    }


def versions() -> dict[str, str]:
    """Returns the versions that make a run reproducible."""
    found = {
        "python": sys.version.split()[0],
        "packnet_tf": packnet_tf.__version__,
    }
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def write_report(results: dict[str, Any], run_dir: pathlib.Path) -> None:
    """Writes the tables and the page, and prints the table."""
    report.write_csv(results, run_dir)
    report.write_summary(results, run_dir)
    page.write(results, run_dir)
    print("\n" + report.to_text(results))
    print(f"\nReport: {run_dir / 'report.html'}")


def run(argv: list[str]) -> None:
    """Runs `main` and turns what users can mend into one clear line."""
    logging.set_verbosity(logging.WARNING)
    try:
        main(argv)
    except (packnet_tf.errors.PackNetError, OSError) as error:
        sys.exit(f"error: {error}")
    except tf.errors.OpError as error:
        # What went wrong while images were read comes wrapped.
        known = pipelines.data_error(error)
        if known is None:
            raise
        sys.exit(f"error: {known}")


if __name__ == "__main__":
    app.run(run)
