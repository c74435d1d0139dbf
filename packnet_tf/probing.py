"""What a network does when it is called, found by tracing it.

A layer's class does not tell whether its call draws random numbers, assigns
to variables or uses some that Keras does not know of. Its trace does.
"""

import dataclasses
from typing import Any

import keras
import tensorflow as tf

from packnet_tf.errors import UnsupportedLayerError

_OPAQUE = ("PyFunc", "PyFuncStateless", "EagerPyFunc")
_RANDOM = (
    "Multinomial",
    "ParameterizedTruncatedNormal",
    "Random",
    "StatefulRandom",
    "StatefulStandardNormal",
    "StatefulTruncatedNormal",
    "StatefulUniform",
    "TruncatedNormal",
)
_NEUTRAL = ("Equal", "NotEqual", "Shape")  # The same of floats and integers.
# Assignments of Keras leave no operation behind while they are observed.
_WRITING = (
    "Assign",
    "LookupTableImport",
    "LookupTableInsert",
    "LookupTableRemove",
    "ResourceApply",
    "ResourceScatter",
    "ResourceSparseApply",
    "ResourceStridedSliceAssign",
)


@dataclasses.dataclass(frozen=True)
class Observation:
    """What a call did.

    Attributes:
        assigned: The model's variables that it assigned to.
        foreign: Names of TensorFlow variables that it read and that are no
            weights of the model.
        created: Variables that it made.
        random: Types of operations that draw random numbers by themselves.
        opaque: Types of operations that run Python code.
        writes: Types of operations that write without Keras knowing.
    """

    assigned: list[keras.Variable]
    foreign: list[str]
    created: list[keras.Variable]
    random: list[str]
    opaque: list[str]
    writes: list[str]


def casts_to_integers(model: keras.Model) -> list[bool]:
    """Tells which inputs a model takes for integers, such as token ids.

    Args:
        model: A built Functional model whose inputs are dense.

    Returns:
        Of each of `model.inputs`, whether all that the model computes from it
        goes through a cast to integers.
    """
    traced = tf.function(
        lambda inputs: model(inputs, training=False), autograph=False
    ).get_concrete_function(keras.tree.map_structure(_spec, model.input))
    count = len(model.inputs)
    return [_meets_integer_cast(x) for x in traced.inputs[:count]]


def _meets_integer_cast(tensor: tf.Tensor) -> bool:
    consumers = [op for op in tensor.consumers() if op.type not in _NEUTRAL]
    return bool(consumers) and all(
        op.type in ("Cast", "Identity")
        and (
            op.outputs[0].dtype.is_integer or _meets_integer_cast(op.outputs[0])
        )
        for op in consumers
    )


def observe(model: keras.Model, training: bool | None) -> Observation:
    """Traces a call of a model. Nothing of the model changes.

    Args:
        model: A built Functional model.
        training: Whether to call it as in training; `None` leaves it to
            each layer.

    Returns:
        What the call did.

    Raises:
        UnsupportedLayerError: If it cannot be traced.
    """
    before = {id(variable) for variable in model.variables}
    assigned: dict[int, keras.Variable] = {}

    def call(inputs: Any) -> None:
        with keras.StatelessScope() as scope:
            model(inputs, training=training)
        for variable in model.variables:
            if scope.get_current_value(variable) is not None:
                assigned[id(variable)] = variable

    inputs = keras.tree.map_structure(_spec, model.input)
    try:
        traced = tf.function(call, autograph=False).get_concrete_function(
            inputs
        )
    except Exception as error:
        raise UnsupportedLayerError(
            "The network cannot be traced, so what its layers do cannot be "
            f"seen: {error} Received: model={model.name!r}"
        ) from error
    known = {
        id(part)
        for variable in model.variables
        for part in _parts(variable.value)
    }
    types = _operation_types(traced.graph)
    return Observation(
        assigned=[v for key, v in assigned.items() if key in before],
        foreign=sorted(
            variable.name
            for variable in traced.graph.variables
            if not any(id(part) in known for part in _parts(variable))
        ),
        created=[v for v in model.variables if id(v) not in before],
        random=sorted(t for t in types if t.startswith(_RANDOM)),
        opaque=sorted(t for t in types if t in _OPAQUE),
        writes=sorted(t for t in types if t.startswith(_WRITING)),
    )


def _parts(variable: Any) -> list[Any]:
    """Returns a variable, and its replicas under a distribution strategy."""
    return [variable, *getattr(variable, "values", ())]


def _spec(x: keras.KerasTensor) -> Any:
    if getattr(x, "sparse", False):
        return tf.SparseTensorSpec(x.shape, x.dtype)
    if getattr(x, "ragged", False):
        return tf.RaggedTensorSpec(
            x.shape, x.dtype, ragged_rank=getattr(x, "ragged_rank", None) or 1
        )
    return tf.TensorSpec(x.shape, x.dtype, name=x.name)


def _operation_types(graph: tf.Graph) -> set[str]:
    definition = graph.as_graph_def()
    types = {node.op for node in definition.node}
    for function in definition.library.function:
        types.update(node.op for node in function.node_def)
    return types
