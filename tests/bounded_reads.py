"""Reads damaged files within limits of time and memory; a program of its own.

    python bounded_reads.py KIND FOLDER COUNT

For each way to damage a file of a kind, so many examples are read. One that
takes longer than a minute ends the process, as does one that takes more memory
than twice the file and 256 MB. What was read last is on standard output.
"""

import argparse
import collections
import contextlib
import os
import pathlib
import random
import resource
import signal
import sys

import damage
import damaged_packs_test
import keras

import packnet_tf
from packnet_tf.errors import FileError
from packnet_tf.errors import FingerprintError

SECONDS = 60
SPARE = 2**28
FAR = 2**33  # Where there is no memory left at all, in any case.
STATUS = pathlib.Path("/proc/self/status")


def memory():
    """Returns in bytes: what is in memory, at most was, and is addressed."""
    lines = STATUS.read_text(encoding="ascii").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return [
        int(fields[key].split()[0]) * 2**10
        for key in ("VmRSS", "VmHWM", "VmSize")
    ]


def say(line):
    """Writes a line that is there even if the process is ended."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


@contextlib.contextmanager
def limited(size):
    """Ends the process if the body takes too much for a file of a size."""
    with contextlib.suppress(OSError):  # Else the most of all examples counts.
        pathlib.Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before, most, addressed = memory()
    limit = 2 * size + SPARE
    resource.setrlimit(resource.RLIMIT_AS, (addressed + FAR, -1))
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
    after = memory()[1]
    if after > most and after - before > limit:
        say(f"it took {after - before} bytes, expected {limit} at most")
        os._exit(1)  # The tests would take an error for one of their own.


class Loader(damaged_packs_test.Loader):
    """Loads packs and deltas within the limits."""

    count = 0

    def load(self, content):
        self.count += 1
        with limited(len(content)):
            return super().load(content)


def read_packs(kind, folder, count):
    """Returns how many files were read, by how they were damaged."""
    found = {}
    for name, (check, _, _) in damaged_packs_test.CHECKS.items():
        loader = Loader(kind, folder)
        say(name)
        check(loader, count)
        found[name] = loader.count
    return found


def graph():
    """Makes a model that calls its layers several times."""
    inputs = keras.Input((4,), name="x")
    dense = keras.layers.Dense(4, name="dense")
    inner = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(4)], name="inner"
    )
    x = inner(dense(inner(dense(inputs)) + inputs))
    x = keras.layers.LSTM(4)(keras.ops.expand_dims(x, 1))
    outputs = keras.layers.Dense(3, name="top")(x)
    model = packnet_tf.wrap(keras.Model(inputs, outputs), task="one")
    model.compile("adam", "mse")
    model.prune(0.5)
    model.freeze_task()
    model.add_task("two", units=2)
    return model


def read_keras(name, folder, count):
    """Returns how many files were read and how many refused, by damage."""
    path = folder / name
    graph().save(path)
    content, found = path.read_bytes(), {}
    packnet_tf.load_model(path)
    for kind in damage.KERAS:
        outcomes = collections.Counter()
        for seed in range(count):
            say(f"{kind.__name__} {seed}")
            damaged = kind(content, random.Random(seed))
            path.write_bytes(damaged)
            with limited(len(damaged)):
                try:
                    packnet_tf.load_model(path)
                    outcomes["read"] += 1
                except (FileError, FingerprintError):
                    outcomes["refused"] += 1
            keras.backend.clear_session(free_memory=False)
        found[kind.__name__] = dict(outcomes)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", help="`pack`, `delta`, or `model.keras`")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("count", type=int)
    args = parser.parse_args()
    read = read_packs if args.kind in ("pack", "delta") else read_keras
    found = read(args.kind, args.folder, args.count)
    say(f"{args.kind}: {found}")
