"""A sequence that is killed again and again; a program of its own."""

import dataclasses
import json
import os
import pathlib
import random
import signal
import sys
import time

import keras
import numpy as np
import tensorflow as tf
from killing import finish
from killing import fork
from killing import kill_at

import packnet_tf
from packnet_tf import sequence
from packnet_tf.sequence import TaskPlan

EAGER = "--eager" in sys.argv  # Begins faster, as nothing is traced.
STEPS = 3
BATCH = 8


def data_from(task):
    """Returns endless shuffled data that can begin at any epoch."""

    def train(epoch):
        generator = np.random.default_rng(task)
        x = generator.normal(size=(24, 6)).astype("float32")
        y = generator.integers(0, 3, 24)

        def batch(step):
            order = tf.random.experimental.stateless_shuffle(
                tf.range(24), seed=[task, step // STEPS]
            )
            place = step % STEPS * BATCH
            rows = order[place : place + BATCH]
            return tf.gather(x, rows), tf.gather(y, rows)

        steps = tf.data.Dataset.range(epoch * STEPS, 2**40)
        return steps.map(batch)

    return train


def grow(step):
    """A schedule that prunes more and more."""
    return int(step) % 4 == 0, min(0.05 * int(step), 0.5)


def plans():
    """Returns two tasks with every kind of phase."""
    x = np.random.default_rng(9).normal(size=(16, 6)).astype("float32")
    y = np.arange(16) % 3
    validation = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    common = {
        "units": 3,
        "steps_per_epoch": STEPS,
        "validation": validation,
        "monitor": "val_accuracy",
    }
    return [
        TaskPlan(
            "one",
            data_from(1),
            epochs=3,
            retrain_epochs=2,
            sparsity=0.5,
            criterion="taylor",
            **common,
        ),
        TaskPlan(
            "two",
            data_from(2),
            epochs=8,
            retrain_epochs=2,
            warmup_epochs=2,
            patience=2,
            schedule=grow,
            criterion="random",
            **common,
        ),
    ]


def network():
    """Makes a small network with dropout and moving statistics."""
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(12, name="first"),
            keras.layers.BatchNormalization(momentum=0.5),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(8, activation="tanh", name="second"),
        ]
    )


def compile_for(model, plan, phase):
    """Compiles with state that has to be kept: slots, averages, a schedule."""
    rate = 0.02 if phase == "train" else 0.01
    model.compile(
        keras.optimizers.AdamW(
            keras.optimizers.schedules.CosineDecay(rate, 30),
            weight_decay=0.01,
            use_ema=True,
            ema_momentum=0.5,
        ),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=False,
        run_eagerly=EAGER,
    )


def run(folder):
    """Begins the sequence or goes on with it; writes what came of it."""
    model = sequence.restore(folder) or packnet_tf.wrap(
        network(), normalization="per_task"
    )
    results = sequence.run(
        model,
        plans(),
        compile_for,
        verbose=0,
        checkpoint_dir=folder,
        seed=11,
    )
    text = json.dumps([dataclasses.asdict(result) for result in results])
    (folder / "results.new").write_text(text)
    (folder / "results.new").rename(folder / "results.json")


def run_until(folder, event):
    kill_at(event, folder)
    run(folder)


def main(base, kills, seed):
    """Runs once without a kill, once with many."""
    draw = random.Random(seed)
    whole, killed = base / "whole", base / "killed"
    began = time.monotonic()
    finish(fork(run, whole))
    seconds = time.monotonic() - began
    count = finished = 0
    while count < kills:
        # Half of them while it trains, half while it writes.
        if draw.random() < 0.5:
            child = fork(run, killed)
            time.sleep(draw.uniform(0.0, seconds))
            os.kill(child, signal.SIGKILL)
        else:
            child = fork(run_until, killed, draw.randrange(1, 60))
        if finish(child):
            count += 1
        if (killed / "results.json").exists():
            finished += 1
            killed.rename(base / f"finished_{finished}")
    finish(fork(run, killed))
    killed.rename(base / f"finished_{finished + 1}")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
