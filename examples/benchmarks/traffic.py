"""How many bytes two workers on this machine send each other while they train.

The kernel counts what passes the loopback interface, of all processes. Others
can only add to it, so the least of several rounds counts, and the median tells
how much they disturb.
"""

import json
import math
import multiprocessing
import os
import pathlib
import socket
import statistics
import time
import traceback
from multiprocessing import connection
from typing import Any

import measuring

WORKERS = 2
SUBJECTS = ("plain", "first", "middle", "last", "layer_full", "all_full")

_COUNTERS = pathlib.Path("/proc/net/dev")
_LOOPBACK = "lo"
_MOST_NOISE = 0.01  # Of what a step sends.
_DOUBLINGS = 3  # Of the steps, for that.
_PATIENCE = 600  # Seconds.


def read_loopback() -> int | None:
    """Returns the bytes that passed the loopback interface so far.

    Returns:
        The bytes, or `None` where this cannot be known.
    """
    if not _COUNTERS.exists():
        return None
    for line in _COUNTERS.read_text(encoding="utf-8").splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == _LOOPBACK:
            return int(numbers.split()[0])
    return None


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Trains one subject in two processes and counts what they send.

    Args:
        spec: `"network"`, `"size"`, `"batch_size"` (of both workers),
            `"optimizer"`, `"subject"` of `SUBJECTS`, `"steps"` and
            `"repeats"`.

    Returns:
        What the first worker counted, in bytes per step and worker.

    Raises:
        CellError: If a worker fails or does not answer.
    """
    context = multiprocessing.get_context("spawn")
    addresses = _free_addresses(WORKERS)
    processes, waiting, rows = [], [], []
    try:
        for worker in range(WORKERS):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(
                target=_work, args=(spec, addresses, worker, sender)
            )
            process.start()
            sender.close()
            processes.append(process)
            waiting.append(receiver)
        while waiting:
            ready = connection.wait(waiting, _PATIENCE)
            if not ready:
                raise measuring.CellError("the workers do not answer")
            for receiver in ready:
                waiting.remove(receiver)
                rows.append(_receive(receiver))
    finally:
        # At once: one that ends would wait for one that is gone.
        for process in processes:
            process.kill()
            process.join()
    (row,) = [row for row in rows if row["worker"] == 0]
    return row


def _receive(receiver: connection.Connection) -> dict[str, Any]:
    try:
        row = receiver.recv()
    except EOFError:
        raise measuring.CellError("a worker ended without a word") from None
    if "error" in row:
        raise measuring.CellError(row["error"])
    return row


def _free_addresses(count: int) -> list[str]:
    """Returns addresses that nobody listens to, until somebody takes them."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("localhost", 0))
        return [f"localhost:{each.getsockname()[1]}" for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _work(
    spec: dict[str, Any],
    addresses: list[str],
    worker: int,
    sender: connection.Connection,
) -> None:
    """Is one of the workers: trains, counts, and sends its row."""
    os.environ["TF_CONFIG"] = json.dumps(
        {
            "cluster": {"worker": addresses},
            "task": {"type": "worker", "index": worker},
        }
    )
    try:
        row = {"worker": worker, **_train_and_count(spec)}
    except Exception as error:
        traceback.print_exc()
        row = {"error": f"worker {worker}: {type(error).__name__}: {error}"}
    sender.send(row)
    # Its end would be an error for the other, which may not be done yet.
    time.sleep(_PATIENCE)


def _train_and_count(spec: dict[str, Any]) -> dict[str, Any]:
    import keras
    import numpy as np
    import subjects
    import tensorflow as tf

    from packnet_tf import distribute

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    keras.utils.set_random_seed(0)
    with strategy.scope():
        network = subjects.build(spec["network"], spec["size"])
        model = _make(network, spec["subject"])
        subjects.compile_model(model, spec["optimizer"])
    data = subjects.batches(network, spec["batch_size"])

    def train(steps: int) -> None:
        model.fit(
            data, steps_per_epoch=steps, epochs=1, shuffle=False, verbose=0
        )

    def meet() -> None:
        distribute.total(np.zeros(1, np.int64), strategy)
        time.sleep(0.2)  # What the other still has to say.

    train(2)
    meet()
    row = describe(model)
    if read_loopback() is None:
        return {**row, "sent_bytes": None}
    steps = spec["steps"]
    for _ in range(1 + _DOUBLINGS):
        counted = _count(train, meet, steps, spec["repeats"])
        # The first worker decides for both: they have to do the same.
        noisy = np.array([counted["noise"] > _MOST_NOISE], np.int64)
        if not distribute.send(noisy, strategy)[0]:
            break
        steps *= 2
    return {**row, **counted}


def _count(train: Any, meet: Any, steps: int, repeats: int) -> dict[str, Any]:
    """Counts what steps send, without what a call of `fit` sends anyway."""
    one, more, idle = [], [], []
    for _ in range(repeats):
        before = read_loopback()
        train(1)
        meet()
        one.append(read_loopback() - before)
        before, started = read_loopback(), time.monotonic()
        train(1 + steps)
        meet()
        more.append(read_loopback() - before)
        seconds = time.monotonic() - started
        before = read_loopback()
        time.sleep(seconds)
        idle.append((read_loopback() - before) / seconds)
        meet()
    counted = min(more) - min(one)
    return {
        "sent_bytes": counted / steps / WORKERS,
        "noise": (statistics.median(more) - min(more)) / counted,
        "counted_steps": steps,
        "fit_bytes": min(one),
        "idle_bytes_per_second": {
            "least": min(idle),
            "median": statistics.median(idle),
        },
    }


def _make(network: Any, subject: str) -> Any:
    """Makes what trains, in the current strategy's scope."""
    import subjects

    from packnet_tf import distribute

    if subject == "plain":
        return distribute.ReplicatedModel(network.inputs, network.outputs)
    if subject in ("layer_full", "all_full"):
        return subjects.pack_full(network, subject == "all_full")
    return subjects.pack_at(network, subject)


def describe(model: Any) -> dict[str, Any]:
    """Tells from shapes what a step of a model has to send.

    Args:
        model: Plain or packed.

    Returns:
        `"gradient_bytes"`, of all that trains; `"owned_bytes"`, of these what
        is the newest task's own; `"full_bytes"`, of packed weights of which it
        owns nothing; `"frozen_head_bytes"`, of the heads of earlier tasks.
    """
    gradients = sum(map(_bytes, model.trainable_variables))
    not_owned = full = heads = 0
    if hasattr(model, "task_names"):
        training = {id(variable) for variable in model.trainable_variables}
        number = len(model.task_names)
        for entry in model.summary_protection(print_fn=lambda _: None):
            if entry.owner is None:
                continue
            size = _bytes(entry.variable)
            owner = entry.owner.numpy()
            if id(entry.variable) not in training:
                full += size
            else:
                not_owned += size * int((owner != number).sum()) // owner.size
        for name in model.task_names[:-1]:
            heads += sum(map(_bytes, model.heads[name].variables))
    return {
        "gradient_bytes": gradients,
        "owned_bytes": gradients - not_owned,
        "full_bytes": full,
        "frozen_head_bytes": heads,
    }


def _bytes(variable: Any) -> int:
    import tensorflow as tf

    return math.prod(variable.shape) * tf.as_dtype(variable.dtype).size
