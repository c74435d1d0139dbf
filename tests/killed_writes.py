"""Writes that are killed again and again; a program of its own."""

import os
import pathlib
import random
import resource
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

X = np.random.default_rng(0).normal(size=(3, 6)).astype("float32")


def read_packed(path):
    model = packnet_tf.load_model(path)
    model.verify()
    return model(X, task="one")


def read_pack(path):
    return packnet_tf.load_pack(path)(X, task="one")


def read_delta(path):
    """Adds the task to whichever version takes it."""
    for seed in (0, 1):
        device = make(seed)
        device.remove_task("two", also=["three"])
        try:
            packnet_tf.load_task(device, path)
        except packnet_tf.errors.FileError as error:
            if "other tasks" not in str(error):
                raise
            continue
        return device(X, task="two")
    raise SystemExit("no version takes the delta")


def read_served(path, endpoint):
    loaded = tf.saved_model.load(str(path))
    return getattr(loaded, endpoint)(X)


# Name of the target, how it is written, and how its outputs are had again.
TARGETS = {
    "packed.keras": (lambda model, path: model.save(path), read_packed),
    "packed": (
        lambda model, path: model.save(path, zipped=False),
        read_packed,
    ),
    "model.packnet": (packnet_tf.save_pack, read_pack),
    "two.packtask": (
        lambda model, path: packnet_tf.save_task(model, "two", path),
        read_delta,
    ),
    "plain.keras": (
        lambda model, path: model.export_task("one", path),
        lambda path: keras.saving.load_model(path)(X),
    ),
    "plain": (
        lambda model, path: model.export_task("one", path),
        lambda path: read_served(path, "serve"),
    ),
    "all": (
        lambda model, path: model.export(path),
        lambda path: read_served(path, "one"),
    ),
}


def make(seed):
    """Makes one of two packed models, with two frozen tasks, one begun."""
    keras.utils.set_random_seed(seed)
    layers = [
        keras.Input((6,)),
        keras.layers.Dense(12, "tanh", name="first"),
        keras.layers.Dense(3, "softmax", name="top"),
    ]
    model = packnet_tf.wrap(keras.Sequential(layers), task="one")
    model.prune(0.5)
    model.freeze_task()
    model.add_task("two", units=2)
    model.prune(0.5)
    model.freeze_task()
    model.add_task("three", units=2)
    return model


def outputs(folder):
    """Reads all targets, and returns what they compute."""
    return {
        name: np.asarray(read(folder / name))
        for name, (_, read) in TARGETS.items()
    }


def write(folder, seed):
    """Writes all targets once."""
    model = make(seed)
    for name, (save, _) in TARGETS.items():
        save(model, folder / name)


def begin(base):
    """Writes both versions where nothing is killed, and the old one."""
    for seed in (0, 1):
        write(base / str(seed), seed)
        np.savez(base / f"{seed}.npz", **outputs(base / str(seed)))
    write(base / "killed", 0)


def write_on(folder, draw):
    """Writes targets for ever, now one version and now the other."""
    models = make(0), make(1)
    names = list(TARGETS)
    while True:
        name = draw.choice(names)
        TARGETS[name][0](draw.choice(models), folder / name)


def check(base):
    """Checks that each target is one version or the other."""
    found = outputs(base / "killed")
    versions = [np.load(base / f"{seed}.npz") for seed in (0, 1)]
    for name, value in found.items():
        if not any(np.array_equal(value, each[name]) for each in versions):
            raise SystemExit(f"'{name}' is neither version")


def write_without_room(folder):
    """Writes targets where the system allows no file of that size."""
    model = make(1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
    for name, (save, _) in TARGETS.items():
        try:
            save(model, folder / name)
        except packnet_tf.errors.FileError as error:
            if "File too large" in str(error):
                continue
            raise
        raise SystemExit(f"'{name}' was written all the same")


def write_until(folder, draw, event):
    if event:
        kill_at(event, folder)
    write_on(folder, draw)


def main(base, kills, seed):
    """Fails as often as asked, and checks after each time."""
    draw = random.Random(seed)
    folder = base / "killed"
    finish(fork(begin, base))
    finish(fork(write_without_room, folder))
    finish(fork(check, base))
    for _ in range(kills):
        # Half of them at a moment, half when it touches the folder.
        event = draw.choice((0, draw.randrange(1, 150)))
        child = fork(write_until, folder, random.Random(draw.random()), event)
        if not event:
            time.sleep(draw.uniform(0.3, 3.0))
            os.kill(child, signal.SIGKILL)
        finish(child)
        finish(fork(check, base))
    finish(fork(write, folder, 1))
    finish(fork(check, base))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
