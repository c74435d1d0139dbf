"""Two tasks in one process, or in one of several; a program of its own.

`TF_CONFIG` says which of several workers it is. What came of it is written to
a folder: `values.npz` and `results.json` with the number of the worker.
"""

import argparse
import json
import os
import pathlib
import signal
import sys

import keras
import numpy as np
import tensorflow as tf

import packnet_tf
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


def learn(make, folder, kill):
    """Learns both tasks, from where an earlier process was killed."""

    def callbacks(plan, phase):
        wanted = (plan.name, phase) == ("task_2", "train") and kill is not None
        return [Killing(kill)] if wanted else []

    keras.utils.set_random_seed(5)
    model = sequence.restore(folder) or packnet_tf.wrap(
        make(), head=None, normalization="per_task"
    )
    results = sequence.run(
        model,
        plans(),
        compile_for,
        callbacks=callbacks,
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


class Plain(keras.Model):
    """A model as Keras trains it."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1)

    def call(self, inputs):
        return self.dense(inputs)


class Built(Plain, ReplicatedModel):
    """A model with the first of two seams alone."""

    def _make_function(self, step_function):
        return keras.Model._make_function(self, step_function)


def needed_seams():
    """Returns what of Keras' own `fit` fails here."""
    found = {}
    x, y = np.ones((8, 2), "float32"), np.zeros(8)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    for name, kind in (("build", Plain), ("logs", Built)):
        model = kind()
        model.build((None, 2))
        model.compile("sgd", "mse")
        try:
            model.fit(data, verbose=0)
        except Exception as error:
            found[name] = type(error).__name__
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--kill", type=int, help="Epoch of task 2.")
    flags = parser.parse_args()
    strategy = tf.distribute.get_strategy()
    worker = 0
    if "TF_CONFIG" in os.environ:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
        worker = strategy.cluster_resolver.task_id
    elif flags.devices > 1:
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * flags.devices,
        )
        strategy = tf.distribute.MirroredStrategy(
            [f"CPU:{device}" for device in range(flags.devices)]
        )
    found = {"replicas": strategy.num_replicas_in_sync}
    with strategy.scope():
        if "TF_CONFIG" in os.environ:
            found["seams"] = needed_seams()
        for make in (plain, normalized):
            folder = flags.folder / make.__name__
            try:
                model, found[make.__name__] = learn(make, folder, flags.kill)
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
