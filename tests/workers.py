"""Two tasks in one process, or in one of several; a program of its own.

`TF_CONFIG` says which of several workers it is. What came of it is written to
a folder: `values.npz` and `results.json` with the number of the worker.
"""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import signal
import sys

import keras
import numpy as np
import tensorflow as tf

import packnet_tf
from packnet_tf import distribute
from packnet_tf import errors
from packnet_tf import sequence
from packnet_tf.distribute import ReplicatedModel
from packnet_tf.sequence import TaskPlan

EPOCHS = 3


class Killing(keras.callbacks.Callback):
    """Kills this process at the end of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epoch:
            os.kill(os.getpid(), signal.SIGKILL)


def plain():
    """Makes a network that computes the same however a batch is divided."""
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(16, activation="tanh", name="first"),
            keras.layers.Dense(8, activation="tanh", name="second"),
        ],
        name="plain",
    )


def normalized():
    """Makes one with state that each replica has for itself."""
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(16, name="first"),
            keras.layers.BatchNormalization(momentum=0.5, name="norm"),
            keras.layers.ReLU(),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(8, activation="tanh", name="second"),
        ],
        name="normalized",
    )


def prune_once(step):
    """A schedule that prunes while the second task trains."""
    return int(step) == 6, 0.25


def plans():
    found = []
    for task, sparsity in ((1, 0.5), (2, 0.0)):
        draw = np.random.default_rng(task)
        x = draw.normal(size=(48, 6)).astype("float32")
        y = (x @ draw.normal(size=(6, 3))).argmax(axis=1)
        data = tf.data.Dataset.from_tensor_slices((x, y)).batch(12)
        found.append(
            TaskPlan(
                f"task_{task}",
                data,
                validation=data,
                units=3,
                epochs=EPOCHS,
                retrain_epochs=2,
                sparsity=sparsity,
                criterion="taylor" if task == 1 else "magnitude",
                schedule=prune_once if task == 2 else None,
            )
        )
    return found


def compile_for(model, plan, phase):
    model.compile(
        keras.optimizers.SGD(0.2, momentum=0.9, weight_decay=1e-3),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )


def learn(make, folder, kill, dies):
    """Learns both tasks, from where an earlier process was killed."""

    def callbacks(plan, phase):
        wanted = (plan.name, phase) == ("task_2", "train") and kill is not None
        return [Killing(kill)] if wanted else []

    def on_frozen(plan, result):
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        model.predict(plan.validation, task=plan.name, verbose=0)

    keras.utils.set_random_seed(5)
    model = sequence.restore(folder) or packnet_tf.wrap(
        make(), head=None, normalization="per_task"
    )
    results = sequence.run(
        model,
        plans(),
        compile_for,
        callbacks=callbacks,
        on_frozen=on_frozen,
        verbose=0,
        checkpoint_dir=folder,
        seed=11,
    )
    data = plans()[0].validation
    return model, {
        "fingerprints": [result.fingerprint for result in results],
        "proved": [proof.fingerprint for proof in model.verify().values()],
        "history": [result.history for result in results],
        "evaluated": model.evaluate(data, task="task_1", verbose=0),
        "predicted": list(model.predict(data, verbose=0).shape),
    }


def use_all_devices(count):
    """Lets a worker train on several CPU devices, as it does on GPUs.

    TensorFlow gives a worker without GPUs one device, whatever it has.
    """
    from tensorflow.python.distribute import collective_all_reduce_strategy

    def choose(self, resolver, worker_device):
        devices = [f"{worker_device}/device:CPU:{n}" for n in range(count)]
        return tuple(devices), "CPU"

    extended = collective_all_reduce_strategy.CollectiveAllReduceExtended
    extended._initialize_local_devices = choose


def apart(worker):
    """Returns what is said when workers are given something else each."""
    found = []
    for plan, seed in (
        (dataclasses.replace(plans()[0], epochs=worker), 0),
        (plans()[0], worker),
    ):
        model = packnet_tf.wrap(plain(), head=None)
        try:
            sequence.run(model, [plan], compile_for, verbose=0, seed=seed)
        except errors.WorkerError as error:
            found.append(str(error))
    return found


class Dense(keras.Model):
    """A model as Keras trains it."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1)

    def call(self, inputs):
        return self.dense(inputs)


class Both(Dense, ReplicatedModel):
    """A model with both seams."""


class WithoutBuild(Dense, ReplicatedModel):
    """A model that lacks the seam of the build alone."""

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        keras.Model._maybe_symbolic_build(self, iterator, data_batch)


class WithoutLogs(Dense, ReplicatedModel):
    """A model that lacks the seam of the logs alone."""

    def _make_function(self, step_function):
        return keras.Model._make_function(self, step_function)


def failures():
    """Returns what Keras' own `fit` fails with here, without each seam."""
    found = {}
    x, y = np.ones((8, 2), "float32"), np.zeros(8)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    for kind in (Both, WithoutBuild, WithoutLogs):
        model = kind()
        model.build((None, 2))
        model.compile("sgd", "mse")
        try:
            model.fit(data, verbose=0)
            found[kind.__name__] = ""
        except Exception as error:
            found[kind.__name__] = f"{type(error).__name__}: {error}"
    return found


class Answering(keras.layers.Layer):
    """A layer that fails when told to, as if another worker were gone."""

    gone = False

    def call(self, inputs):
        if self.gone:
            raise tf.errors.UnavailableError(None, None, "gone")
        return inputs


def explained(strategy):
    """Returns which calls say of a worker that is gone that it is."""
    came_back = "RecvBuf expects a different device incarnation: 1 vs. 2."
    found = []
    for name, kind, message in (
        ("came back", tf.errors.FailedPreconditionError, came_back),
        ("uninitialized", tf.errors.FailedPreconditionError, "no value"),
    ):
        try:
            with distribute.watched(strategy):
                raise kind(None, None, message)
        except (errors.WorkerError, tf.errors.OpError) as error:
            found.append([name, type(error).__name__])
    x, y = np.ones((4, 6), "float32"), np.zeros(4)
    model = packnet_tf.wrap(plain(), head=None)
    model.add_task("first", head=keras.Sequential([Answering(), head()]))
    model.compile("sgd", "sparse_categorical_crossentropy")
    for name, call in (
        ("fit", lambda: model.fit(x, y, verbose=0)),
        ("evaluate", lambda: model.evaluate(x, y, verbose=0)),
        ("predict", lambda: model.predict(x, verbose=0)),
        ("train_on_batch", lambda: model.train_on_batch(x, y)),
        ("test_on_batch", lambda: model.test_on_batch(x, y)),
        ("predict_on_batch", lambda: model.predict_on_batch(x)),
        (
            "prune",
            lambda: model.prune(0.5, "taylor", data=(x, y)),
        ),
    ):
        found.append([name, outcome(call)])
    model.freeze_task()
    add = functools.partial(model.add_task, "second")
    found.append(["add_task", outcome(lambda: add(head=Answering()))])
    return found


def head():
    return keras.layers.Dense(3, activation="softmax")


def outcome(call):
    """Returns the name of what a call raises while a worker is gone."""
    Answering.gone = True
    try:
        call()
    except Exception as error:
        return type(error).__name__
    finally:
        Answering.gone = False
    return ""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--kill", type=int, help="Epoch of task 2.")
    parser.add_argument(
        "--dies", action="store_true", help="When a task is frozen."
    )
    flags = parser.parse_args()
    strategy = tf.distribute.get_strategy()
    worker = 0
    if flags.devices > 1:
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * flags.devices,
        )
    if "TF_CONFIG" in os.environ:
        if flags.devices > 1:
            use_all_devices(flags.devices)
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
        worker = strategy.cluster_resolver.task_id
    elif flags.devices > 1:
        strategy = tf.distribute.MirroredStrategy(
            [f"CPU:{device}" for device in range(flags.devices)]
        )
    found = {"replicas": strategy.num_replicas_in_sync}
    with strategy.scope():
        if "TF_CONFIG" in os.environ:
            found["failures"] = failures()
            found["explained"] = explained(strategy)
            found["apart"] = apart(worker)
        for make in (plain, normalized):
            folder = flags.folder / make.__name__
            try:
                model, found[make.__name__] = learn(
                    make, folder, flags.kill, flags.dies
                )
            except errors.WorkerError as error:
                sys.exit(f"WorkerError: {error}")
            if make is plain:
                np.savez(
                    flags.folder / f"values_{worker}.npz",
                    *(variable.numpy() for variable in model.variables),
                )
    (flags.folder / f"results_{worker}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
