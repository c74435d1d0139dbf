"""What a network does when it is called, found by tracing it.

A layer's class does not tell whether its call draws random numbers, assigns
to variables or uses some that Keras does not know of. Its trace does.
"""

import collections
import dataclasses
from typing import Any

import keras
import tensorflow as tf

from packnet_tf.errors import UnsupportedLayerError

_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
# Keras convolves in groups by a `tf.function` that it makes anew in each call.
_HARMLESS_CALL = "__inference__conv_xla_"
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
        bypassed: The model's variables that it read otherwise than Keras
            does, so that no other value can take their place.
        unseen: Names of operations that assign to variables, or may, without
            Keras' seeing it. Names have those of the layers in them.
        foreign: Names of TensorFlow variables that it read and that are no
            weights of the model.
        created: Variables that it made.
        random: Names of operations that draw random numbers by themselves.
        opaque: Names of operations that run Python code.
        nodes: All operations, as TensorFlow's `NodeDef`.
    """

    assigned: list[keras.Variable]
    bypassed: list[keras.Variable]
    unseen: list[str]
    foreign: list[str]
    created: list[keras.Variable]
    random: list[str]
    opaque: list[str]
    nodes: list[Any]


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
        # With other values in the place of all variables, whatever variable
        # the trace still reads is read behind Keras' back.
        values = {
            id(variable): tf.compat.v1.placeholder(
                variable.dtype, variable.shape
            )
            for variable in model.variables
        }
        with keras.StatelessScope(
            [(variable, values[id(variable)]) for variable in model.variables]
        ) as scope:
            model(inputs, training=training)
        for variable in model.variables:
            value = scope.get_current_value(variable)
            if value is not None and value is not values.get(id(variable)):
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
        id(part): variable
        for variable in model.variables
        for part in _parts(variable.value)
    }
    bypassed: dict[int, keras.Variable] = {}
    foreign = []
    for read in traced.graph.variables:
        variable = next(
            (known[id(part)] for part in _parts(read) if id(part) in known),
            None,
        )
        if variable is None:
            foreign.append(read.name)
        else:
            bypassed[id(variable)] = variable
    nodes = _nodes(traced.graph)
    return Observation(
        assigned=[v for key, v in assigned.items() if key in before],
        bypassed=list(bypassed.values()),
        unseen=[
            node.name
            for node in nodes
            if node.op.startswith(_WRITING)
            or (
                node.op in _CALLS
                and not node.attr["f"].func.name.startswith(_HARMLESS_CALL)
            )
        ],
        foreign=sorted(foreign),
        created=[v for v in model.variables if id(v) not in before],
        random=[node.name for node in nodes if node.op.startswith(_RANDOM)],
        opaque=[node.name for node in nodes if node.op in _OPAQUE],
        nodes=nodes,
    )


def difference(
    model: keras.Model, copy: keras.Model, seen: Observation | None = None
) -> list[str]:
    """Tells what a network computes at inference and its copy does not.

    Args:
        model: A built Functional model.
        copy: A model that should compute the same if its variables had the
            same values.
        seen: What `model` does where `training` is `None`, if it was
            observed already.

    Returns:
        Names of operations, which have those of the layers in them; empty if
        both make the same ones with the same constants.

    Raises:
        UnsupportedLayerError: If one of them cannot be traced.
    """
    made = collections.Counter(
        _signature(node) for node in observe(copy, training=None).nodes
    )
    missing = []
    for node in (seen or observe(model, training=None)).nodes:
        signature = _signature(node)
        made[signature] -= 1
        if made[signature] < 0:
            missing.append(node.name)
    return missing


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


def _nodes(graph: tf.Graph) -> list[Any]:
    """Lists the operations of a graph and of the functions in it."""
    definition = graph.as_graph_def()
    nodes = list(definition.node)
    for function in definition.library.function:
        nodes.extend(function.node_def)
    return nodes


def _signature(node: Any) -> bytes:
    """Returns all of an operation but the names in it."""
    unnamed = type(node)(op=node.op)
    for key, value in node.attr.items():
        is_of_functions = value.HasField("func") or value.list.func
        is_name = key.startswith("_") or key in ("container", "shared_name")
        if not is_of_functions and not is_name:
            unnamed.attr[key].CopyFrom(value)
    return unnamed.SerializeToString(deterministic=True)
