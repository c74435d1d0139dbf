"""The masked update as one function compiled with XLA.

Run operation by operation, an update passes over the weights many times: to
select, for each term of the optimizer, and to restore. Compiled as one, XLA
fuses these passes, and what is kept to be restored needs no copy.
"""

import warnings
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from packnet_tf import optimizers
from packnet_tf import update

_LEAST = 8  # At least 2**8 slices.


class FusedUpdate:
    """Applies gradients in a graph by functions that it compiles once.

    Graphs that are traced for the same step, as for batches of other sizes,
    share one. Make another object where an optimizer's settings may have
    changed: what is compiled keeps to those of then.

    Attributes:
        functions: By what they were compiled for; `None` where XLA does not
            compile the optimizer.
    """

    def __init__(self) -> None:
        self.functions: dict[Any, Callable[..., None] | None] = {}

    def apply_gradients(
        self,
        optimizer: keras.optimizers.Optimizer,
        grads_and_vars: Sequence[tuple[Any, keras.Variable]],
        targets: Sequence[update.Target],
        task: int,
    ) -> None:
        """Applies gradients to what the current task owns, as one function.

        Where that cannot be it does the same by `update.apply_gradients`:
        outside of a graph, under a distribution strategy, and with an
        optimizer that XLA does not compile. Either way the same entries are
        kept; those that train may be rounded otherwise.

        Args:
            optimizer: A built Keras optimizer.
            grads_and_vars: A tensor, `tf.IndexedSlices` or `None`, and the
                variable it belongs to.
            targets: All variables that the optimizer may reach.
            task: Number of the current task.
        """
        compiled = None
        parts: list[list[tf.Tensor]] = []
        if not (tf.executing_eagerly() or tf.distribute.has_strategy()):
            parts = [_tensors(*pair) for pair in grads_and_vars]
            compiled = self._get(
                optimizer,
                [variable for _, variable in grads_and_vars],
                tuple(tuple(map(_spec, tensors)) for tensors in parts),
                targets,
                task,
            )
        if compiled is None:
            update.apply_gradients(optimizer, grads_and_vars, targets, task)
        else:
            compiled(*[tensor for tensors in parts for tensor in tensors])

    def _get(
        self,
        optimizer: keras.optimizers.Optimizer,
        variables: Sequence[keras.Variable],
        specs: tuple[tuple[tf.TensorSpec, ...], ...],
        targets: Sequence[update.Target],
        task: int,
    ) -> Callable[..., None] | None:
        """Returns the function for these variables, `None` if there is none."""
        key = (
            id(optimizer),
            task,
            tuple(map(id, variables)),
            specs,
            tuple(id(target.variable) for target in targets),
        )
        if key not in self.functions:
            # Built outside of the graph being traced, for others to use too.
            with tf.init_scope():
                self.functions[key] = _compile(
                    optimizer, variables, specs, targets, task
                )
        return self.functions[key]


def _compile(
    optimizer: keras.optimizers.Optimizer,
    variables: Sequence[keras.Variable],
    specs: Sequence[Sequence[tf.TensorSpec]],
    targets: Sequence[update.Target],
    task: int,
) -> Callable[..., None] | None:
    """Compiles the update for gradients that consist of such tensors."""
    packed = [target for target in targets if target.owner is not None]

    def step(*tensors: tf.Tensor) -> None:
        left = iter(tensors)
        update.masked_update(
            optimizer,
            [
                (_gradient([next(left) for _ in each], variable), variable)
                for each, variable in zip(specs, variables)
            ],
            packed,
            [tf.identity(target.variable.value) for target in packed],
            task,
        )

    function = tf.function(step, jit_compile=True, autograph=False)
    flat = [spec for each in specs for spec in each]
    if _is_all_of_keras(optimizer, targets) or _compiles(
        function, flat, variables[0].value.device
    ):
        return function.get_concrete_function(*flat)
    return None


def _compiles(
    function: Any, specs: Sequence[tf.TensorSpec], device: str
) -> bool:
    """Tells whether XLA compiles a function."""
    try:
        with warnings.catch_warnings():
            # Without its name, a random number is drawn to find the device.
            warnings.simplefilter("ignore")
            compiler = function.experimental_get_compiler_ir(
                *map(_example, specs)
            )
            compiler(stage="hlo_serialized", device_name=device)
    except Exception:  # What is wrong with more than XLA fails without it too.
        return False
    return True


def _tensors(gradient: Any, variable: keras.Variable) -> list[tf.Tensor]:
    """Returns the tensors that a gradient consists of.

    XLA compiles a function for each shape. So the number of slices, which may
    be another in each batch, is rounded up to a power of two. The rows added
    lie behind the last of the variable, where XLA leaves them out.
    """
    if gradient is None:
        return []
    if not isinstance(gradient, tf.IndexedSlices):
        return [gradient]
    values, indices = gradient.values, gradient.indices
    if indices.shape.is_fully_defined():
        return [values, indices]
    count = tf.shape(indices)[0]
    sizes = tf.constant([2**power for power in range(_LEAST, 31)])
    missing = sizes[tf.searchsorted(sizes, count[None])[0]] - count
    return [
        tf.pad(values, [[0, missing]] + [[0, 0]] * (values.shape.rank - 1)),
        tf.pad(indices, [[0, missing]], constant_values=variable.shape[0]),
    ]


def _gradient(tensors: list[tf.Tensor], variable: keras.Variable) -> Any:
    """Makes a gradient of the tensors that it consists of."""
    if not tensors:
        return None
    if len(tensors) == 1:
        return tensors[0]
    shape = tf.constant(tuple(variable.shape), tensors[1].dtype)
    return tf.IndexedSlices(*tensors, shape)


def _spec(tensor: tf.Tensor) -> tf.TensorSpec:
    return tf.TensorSpec(tensor.shape, tensor.dtype)


def _example(spec: tf.TensorSpec) -> tf.TensorSpec:
    """Returns one of the shapes that a spec allows."""
    sizes = [2**_LEAST if size is None else size for size in spec.shape]
    return tf.TensorSpec(sizes, spec.dtype)


def _is_all_of_keras(
    optimizer: keras.optimizers.Optimizer, targets: Sequence[update.Target]
) -> bool:
    """Tells whether an update runs code of Keras alone, known to compile."""
    parts = optimizers.parts(optimizer)
    used = [
        *parts,
        *[getattr(part, "_learning_rate", None) for part in parts],
        *[target.variable.constraint for target in targets],
    ]
    return all(
        type(each).__module__.startswith("keras.")
        for each in used
        if each is not None
    )
