"""What several processes need that Keras and TensorFlow leave open.

The seams are here, one function each, and tests say which versions need them.
"""

import contextlib
import functools
import hashlib
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from concurrent import futures
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from packnet_tf.errors import WorkerError

_GONE = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.UnavailableError,
)
_PIECE = 2**23  # Words that are sent at once.


def is_multi_worker(strategy: tf.distribute.Strategy | None = None) -> bool:
    """Tells whether a strategy spans more than one process.

    Args:
        strategy: Defaults to the current one.
    """
    strategy = strategy or tf.distribute.get_strategy()
    return (
        isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        and _workers(strategy) > 1
    )


@contextlib.contextmanager
def made_alike() -> Iterator[None]:
    """Makes variables that have the same initial values in all processes.

    TensorFlow sends initial values from the first process to the others, but
    has no such operation for small integers, as of owner maps. Those begin as
    zeros everywhere, so that nothing has to be sent.
    """
    strategy = tf.distribute.get_strategy()
    if not is_multi_worker(strategy):
        yield
        return
    extended = strategy.extended
    workers = extended._num_workers
    extended._num_workers = 1
    try:
        yield
    finally:
        extended._num_workers = workers


def is_chief(strategy: tf.distribute.Strategy | None = None) -> bool:
    """Tells whether this process is the one that writes files.

    For a program of one's own: callbacks that write (`ModelCheckpoint`,
    `CSVLogger`, `TensorBoard`) are for it alone, as all workers would write
    to the same place.

    Args:
        strategy: Defaults to the current one.

    Returns:
        `True` for the first of several workers, and where there is only one.
    """
    strategy = strategy or tf.distribute.get_strategy()
    if not is_multi_worker(strategy):
        return True
    resolver = strategy.cluster_resolver
    return resolver.task_type in (None, "chief") or (
        resolver.task_id == 0 and "chief" not in resolver.cluster_spec().jobs
    )


def align(
    variables: Sequence[keras.Variable], strategy: tf.distribute.Strategy
) -> list[keras.Variable]:
    """Gives all replicas, of all processes, the values of the first one.

    What is equal in all processes is not sent; to tell, they exchange a
    hash of each variable.

    Args:
        variables: The same in all processes, in the same order.
        strategy: Of whose replicas they are.

    Returns:
        The variables that were not equal in all processes.
    """
    differing = []
    if is_multi_worker(strategy):
        hashes = np.array([_hash(v.numpy()) for v in variables], np.int64)
        apart = (hashes != send(hashes, strategy)).astype(np.int64)
        differing = [
            variables[place] for place in np.flatnonzero(total(apart, strategy))
        ]
        for variable in differing:
            variable.assign(send(variable.numpy(), strategy))
    if len(strategy.extended.worker_devices) > 1:
        for variable in variables:
            variable.assign(variable.numpy())
    return differing


def send(value: np.ndarray, strategy: tf.distribute.Strategy) -> np.ndarray:
    """Sends an array from the first process to all others.

    Args:
        value: In the first process what is sent; elsewhere any array of its
            shape and dtype.
        strategy: Of several workers; all of them call this.

    Returns:
        The array of the first process, bit for bit.
    """
    # Integers, of which a sum with zeros is the same bit for bit.
    content = np.frombuffer(value.tobytes(), np.uint8)
    words = np.zeros(-(-content.size // 8), np.int64)
    words.view(np.uint8)[: content.size] = content
    if not is_chief(strategy):
        words[:] = 0
    pieces = [
        total(words[start : start + _PIECE], strategy)
        for start in range(0, words.size, _PIECE)
    ]
    received = np.concatenate([np.empty(0, np.int64), *pieces])
    return (
        received.view(np.uint8)[: content.size]
        .view(value.dtype)
        .reshape(value.shape)
    )


def total(values: np.ndarray, strategy: tf.distribute.Strategy) -> np.ndarray:
    """Adds up arrays of all processes.

    Args:
        values: `int64` array of shape `(size,)`.
        strategy: Of several workers; all of them call this.

    Returns:
        The sum, the same in all processes.

    Raises:
        WorkerError: If another worker is gone.
    """
    with watched(strategy):
        summed = _adder(strategy)(tf.constant(values, tf.int64))
        return strategy.experimental_local_results(summed)[0].numpy()


@functools.lru_cache(maxsize=4)
def _adder(strategy: tf.distribute.Strategy) -> Callable[[tf.Tensor], Any]:
    """Returns the function that adds up, which is traced once."""
    replicas = strategy.num_replicas_in_sync // _workers(strategy)

    def add(values: tf.Tensor) -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        # Each process counts once, whatever number of replicas it has.
        local = context.replica_id_in_sync_group % replicas
        mine = tf.where(local == 0, values, tf.zeros_like(values))
        return context.all_reduce(tf.distribute.ReduceOp.SUM, mine)

    return tf.function(
        lambda values: strategy.run(add, (values,)),
        input_signature=[tf.TensorSpec([None], tf.int64)],
        autograph=False,
    )


def _hash(value: np.ndarray) -> int:
    digest = hashlib.sha256(np.ascontiguousarray(value))
    return int.from_bytes(digest.digest()[:8], "little", signed=True)


def _workers(strategy: tf.distribute.Strategy) -> int:
    """Counts the processes that train; a chief is one of them."""
    resolver = strategy.cluster_resolver
    if resolver is None:
        return 1
    spec = resolver.cluster_spec()
    return sum(
        spec.num_tasks(job) for job in ("chief", "worker") if job in spec.jobs
    )


def check_equal(
    contents: Mapping[str, Any], strategy: tf.distribute.Strategy
) -> None:
    """Checks that all workers have the same.

    Args:
        contents: What has to be equal, by its name for the message. Compared
            by its `repr`.
        strategy: Of whose workers; where there is one alone, all is well.

    Raises:
        WorkerError: In all workers, if it differs in any; or if another
            worker is gone.
    """
    if not is_multi_worker(strategy):
        return
    # Arrays of two sizes could not be added up.
    apart = _count_apart({"program": list(contents)}, strategy)
    if not apart:
        apart = _count_apart(contents, strategy)
    if apart:
        raise WorkerError(
            f"All workers need the same {' and '.join(apart)}. Give them the "
            "same program, arguments and data, and a folder that all of them "
            f"can read. Received: {max(apart.values())} of "
            f"{_workers(strategy)} workers with another than the first has"
        )


def _count_apart(
    contents: Mapping[str, Any], strategy: tf.distribute.Strategy
) -> dict[str, int]:
    """Counts workers that have another than the first, where there are any."""
    mine = np.array(
        [
            _hash(np.frombuffer(repr(content).encode(), np.uint8))
            for content in contents.values()
        ],
        np.int64,
    )
    counts = total((send(mine, strategy) != mine).astype(np.int64), strategy)
    return {name: int(count) for name, count in zip(contents, counts) if count}


def chief_does(
    action: Callable[[], Any], strategy: tf.distribute.Strategy
) -> None:
    """Lets the chief write; all workers wait until it is done.

    Args:
        action: What one of them does for all.
        strategy: Of whose workers; one alone is the chief.

    Raises:
        Exception: In the chief, whatever the action raises.
        WorkerError: In the others, if it does.
    """
    if not is_multi_worker(strategy):
        action()
        return
    failure = None
    if is_chief(strategy):
        try:
            outside(action)
        except Exception as error:
            failure = error
    failed = total(np.array([failure is not None], np.int64), strategy).any()
    if failure is not None:
        raise failure
    if failed:
        raise WorkerError(
            "The first worker, which writes the files, could not; its own "
            "message says why. Received: a failure of worker 0"
        )


def outside(action: Callable[[], Any]) -> Any:
    """Does something in no strategy's scope.

    Variables that are made there belong to this process alone.

    Args:
        action: What to do. It runs in a thread of its own, as scopes belong
            to threads; the dtype policy of this one is taken along.

    Returns:
        What the action returns.
    """
    policy = keras.config.dtype_policy()

    def act() -> Any:
        keras.config.set_dtype_policy(policy)
        return action()

    with futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(act).result()


@contextlib.contextmanager
def watched(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Says what it means when other workers do not answer.

    Args:
        strategy: Of whose workers.

    Yields:
        Once; training takes place in the body.

    Raises:
        WorkerError: If another worker is gone.
    """
    try:
        yield
    except Exception as error:
        gone = _find_gone(error)
        if gone is None or not is_multi_worker(strategy):
            raise
        raise WorkerError(
            "Another worker does not answer; it was stopped, or its machine "
            "or network failed. Start all workers again with the same "
            "commands; a sequence with a `checkpoint_dir` goes on from its "
            "last completed epoch. "
            f"Received: {str(gone).splitlines()[0][:200]}"
        ) from error


def _find_gone(error: BaseException | None) -> tf.errors.OpError | None:
    """Returns what TensorFlow said of a worker that is gone, if it did.

    Keras and this library put errors of their own around those of a layer, a
    head or a file.
    """
    while error is not None and not isinstance(error, WorkerError):
        if isinstance(error, _GONE):
            return error
        # So TensorFlow calls a worker that came back meanwhile.
        if isinstance(error, tf.errors.FailedPreconditionError) and (
            "incarnation" in str(error)
        ):
            return error
        error = error.__cause__ or error.__context__
    return None


def watching(method: Callable[..., Any]) -> Callable[..., Any]:
    """Says of a model's method what it means when others do not answer.

    Args:
        method: Of a `keras.Model`, whose strategy's workers it needs.

    Returns:
        The method, in `watched`.
    """

    @functools.wraps(method)
    def watch(self: keras.Model, *args: Any, **kwargs: Any) -> Any:
        with watched(self.distribute_strategy):
            return method(self, *args, **kwargs)

    return watch


class ReplicatedModel(keras.Model):
    """A model that `fit` trains in several processes too.

    Keras' own `fit` fails there twice: it builds metrics from the mean of a
    batch over all replicas, which several processes do not have, and takes
    the mean of logs along an axis that scalars have not. Subclasses define
    `call`; Keras would make all of them functional together.
    """

    def _maybe_symbolic_build(
        self, iterator: Any = None, data_batch: Any = None
    ) -> None:
        strategy = self.distribute_strategy
        if iterator is not None and is_multi_worker(strategy):
            for *_, batches in iterator:  # Two of Keras 3.10, three of 3.15.
                data_batch = keras.tree.map_structure(
                    lambda value: strategy.experimental_local_results(value)[0],
                    next(batches),
                )
                break
            iterator = None
        super()._maybe_symbolic_build(iterator, data_batch)

    def _make_function(
        self, step_function: Callable[[Any], dict[str, Any]]
    ) -> Callable[[Any], Any]:
        if not is_multi_worker(self.distribute_strategy):
            return super()._make_function(step_function)

        def step(data: Any) -> dict[str, Any]:
            return {
                name: tf.reshape(value, (1,))
                for name, value in step_function(data).items()
            }

        return super()._make_function(step)
