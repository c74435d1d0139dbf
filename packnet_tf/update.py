"""The masked update: gradient selection, optimizer, restore.

Zeroing gradients does not freeze weights: weight decay, momentum carried
over, averaging and constraints move entries whose gradient is zero. So the
frozen entries are put back after the optimizer, in every step.
"""

import dataclasses
import math
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from packnet_tf import optimizers
from packnet_tf import ownership
from packnet_tf.errors import ArgumentError

_LARGE = 2**21  # Entries.


@dataclasses.dataclass(frozen=True)
class Target:
    """A variable to update, and its owner map if it is packed."""

    variable: keras.Variable
    owner: keras.Variable | None = None


def apply_gradients(
    optimizer: keras.optimizers.Optimizer,
    grads_and_vars: Sequence[tuple[Any, keras.Variable]],
    targets: Sequence[Target],
    task: int,
) -> None:
    """Applies gradients to what the current task owns, and to nothing else.

    Works inside `tf.function` and out of it, with or without XLA, and in
    replica context under a distribution strategy.

    Args:
        optimizer: Any Keras optimizer.
        grads_and_vars: A tensor, `tf.IndexedSlices` or `None`, and the
            variable it belongs to.
        targets: All variables that the optimizer may reach, those without a
            gradient included: averaging touches them too.
        task: Number of the current task.
    """
    packed = [target for target in targets if target.owner is not None]
    pairs = list(grads_and_vars)
    # Weight decay needs no gradient. In a graph it could run before the loss
    # fails on bad labels, and the restore would then never run.
    with tf.control_dependencies(_barrier(pairs)):
        kept = [tf.identity(target.variable.value) for target in packed]
        try:
            masked_update(optimizer, pairs, packed, kept, task)
        except BaseException:
            if tf.executing_eagerly():
                assign([target.variable for target in packed], kept)
            raise


def may_branch(targets: Sequence[Target]) -> bool:
    """Tells whether `apply_unmasked_if` can be called, and is worth it.

    Above a size the masked update compiled with XLA is faster than an
    optimizer that runs operation by operation.

    Args:
        targets: All variables that the optimizer may reach.

    Returns:
        Whether this is a graph, of one device, for a small network.
    """
    if tf.executing_eagerly() or tf.distribute.has_strategy():
        return False
    return sum(math.prod(t.variable.shape) for t in targets) < _LARGE


def apply_unmasked_if(
    all_owned: tf.Tensor,
    optimizer: keras.optimizers.Optimizer,
    grads_and_vars: Sequence[tuple[Any, keras.Variable]],
    masked: Callable[[Sequence[tuple[Any, keras.Variable]]], None],
) -> None:
    """Runs the optimizer alone where there is nothing to keep.

    Args:
        all_owned: Scalar, whether the current task owns every entry that the
            optimizer may reach. Looked at in each step.
        optimizer: Any Keras optimizer.
        grads_and_vars: As for `apply_gradients`.
        masked: Makes the masked update instead, of the gradients and
            variables that it is given.
    """

    def branch(apply: Callable[..., Any]) -> Callable[[], None]:
        def run() -> None:
            # Keras asks for gradients that are all of one graph.
            apply(
                [
                    (None if grad is None else tf.identity(grad), variable)
                    for grad, variable in grads_and_vars
                ]
            )

        return run

    with tf.control_dependencies(_barrier(grads_and_vars)):
        tf.cond(all_owned, branch(optimizer.apply_gradients), branch(masked))


def masked_update(
    optimizer: keras.optimizers.Optimizer,
    pairs: Sequence[tuple[Any, keras.Variable]],
    packed: Sequence[Target],
    kept: Sequence[tf.Tensor],
    task: int,
) -> None:
    """Selects gradients, runs the optimizer, and restores.

    Args:
        optimizer: Any Keras optimizer.
        pairs: Gradients and variables, as for `apply_gradients`.
        packed: The packed weights that the optimizer may reach.
        kept: The value of each of those before the step.
        task: Number of the current task.
    """
    owners = {id(target.variable): target.owner for target in packed}
    optimizer.apply_gradients(
        [
            (
                select_gradient(gradient, owners.get(id(variable)), task),
                variable,
            )
            for gradient, variable in pairs
        ]
    )
    assign(
        [target.variable for target in packed],
        [
            _where_trainable(target, target.variable, value, task)
            for target, value in zip(packed, kept)
        ],
    )
    align_averages(optimizer, packed, task)


def select_gradient(
    gradient: Any, owner: keras.Variable | None, task: int
) -> Any:
    """Zeroes a gradient where the weight is not the current task's.

    Selects instead of multiplying, as 0 times infinity is not 0.

    Args:
        gradient: Tensor of the weight's shape, `tf.IndexedSlices` of its
            rows, or `None`.
        owner: `uint8` owner map of the weight, or `None` if it is not packed.
        task: Number of the current task.

    Returns:
        The gradient, of the type it came in.
    """
    if gradient is None or owner is None:
        return gradient
    trainable = ownership.trainable_mask(owner.value, task)
    zero = tf.zeros((), gradient.dtype)
    if isinstance(gradient, tf.IndexedSlices):
        rows = tf.gather(trainable, gradient.indices)
        return tf.IndexedSlices(
            tf.where(rows, gradient.values, zero),
            gradient.indices,
            gradient.dense_shape,
        )
    return tf.where(trainable, gradient, zero)


def align_averages(
    optimizer: keras.optimizers.Optimizer | None,
    targets: Sequence[Target],
    task: int,
) -> None:
    """Makes moving averages equal the weights wherever those do not move.

    An optimizer with `use_ema` overwrites the weights with their averages
    from time to time and when `fit` ends. Averages that are equal make that
    harmless for frozen and for released entries.

    Args:
        optimizer: The optimizer, or `None`.
        targets: The trainable variables.
        task: Number of the current task.
    """
    averages = moving_averages(optimizer)
    for target in targets:
        average = averages.get(id(target.variable))
        if average is not None and target.owner is not None:
            assign(
                [average],
                [_where_trainable(target, average, target.variable, task)],
            )


def check_optimizer(
    optimizer: keras.optimizers.Optimizer, targets: Sequence[Target]
) -> None:
    """Checks that an optimizer reaches nothing but the trainable variables.

    Args:
        optimizer: An optimizer, built or not.
        targets: The trainable variables.

    Raises:
        ArgumentError: If it was built for other variables, such as those of
            an earlier task.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if not optimizer.built:
        return
    known = {id(variable) for variable in optimizer._trainable_variables}
    if known != {id(target.variable) for target in targets}:
        raise ArgumentError(
            "The optimizer was built for other variables than train now. "
            "Compile with a new one; one of an earlier task is carried over "
            "by passing it to `compile()` after `add_task()`. "
            f"Received: optimizer={optimizer.name!r} with {len(known)} "
            f"variables, where {len(targets)} train"
        )


def seed_averages(optimizer: keras.optimizers.Optimizer | None) -> None:
    """Starts moving averages at the weights instead of at zero.

    Keras overwrites the first value anyway. Without a first step, as when a
    finished training is called once more, `fit` would end by writing zeros
    over all weights.

    Args:
        optimizer: A built optimizer that has made no step, or `None`.
    """
    for variable, average in _averages(optimizer):
        average.assign(variable)


def moving_averages(
    optimizer: keras.optimizers.Optimizer | None,
) -> dict[int, keras.Variable]:
    """Finds the moving averages of an optimizer with `use_ema`.

    Args:
        optimizer: The optimizer, or `None`.

    Returns:
        The average for each `id(variable)`; empty if there is none.
    """
    return {id(variable): average for variable, average in _averages(optimizer)}


def _averages(
    optimizer: keras.optimizers.Optimizer | None,
) -> Iterator[tuple[keras.Variable, keras.Variable]]:
    for part in optimizers.parts(optimizer):
        if part.use_ema and part.built:
            for variable, average in zip(
                part._trainable_variables, part._model_variables_moving_average
            ):
                if average is not None:
                    yield variable, average


def _barrier(pairs: Sequence[tuple[Any, keras.Variable]]) -> list[Any]:
    """Returns what waits for all gradients, in a graph.

    As one operation: each that waits would otherwise hold an edge to every
    gradient, which takes gigabytes in a deep network.
    """
    if tf.executing_eagerly():
        return []
    tensors = [
        getattr(gradient, "values", gradient)
        for gradient, _ in pairs
        if gradient is not None
    ]
    return [tf.group(*tensors)] if tensors else []


def _where_trainable(target: Target, new: Any, old: Any, task: int) -> Any:
    new = new.value if isinstance(new, keras.Variable) else new
    old = old.value if isinstance(old, keras.Variable) else old
    trainable = ownership.trainable_mask(target.owner.value, task)
    if new.dtype != tf.bfloat16:
        return tf.where(trainable, new, old)
    # XLA may select these as float32, which changes a signaling NaN.
    bits = tf.where(trainable, _to_bits(new), _to_bits(old))
    return tf.bitcast(tf.cast(bits, tf.uint16), tf.bfloat16)


def _to_bits(value: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.bitcast(value, tf.uint16), tf.int32)


def assign(variables: Sequence[keras.Variable], values: Sequence[Any]) -> None:
    """Assigns to variables, each replica its own value.

    Args:
        variables: Keras variables.
        values: A tensor for each.
    """
    raw = [variable.value for variable in variables]
    if not tf.distribute.has_strategy():
        for variable, value in zip(raw, values):
            variable.assign(value)
        return

    def update(strategy: Any, variables: Any, values: Any) -> None:
        for variable, value in zip(variables, values):
            strategy.extended.update(
                variable, lambda v, x: v.assign(x), args=(value,), group=False
            )

    context = tf.distribute.get_replica_context()
    if context is None:
        update(tf.distribute.get_strategy(), raw, values)
    else:
        context.merge_call(update, args=(raw, list(values)))
