"""How each layer of a network will be protected, before it is copied."""

import dataclasses
import re
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import keras

from packnet_tf import graphs
from packnet_tf import probing
from packnet_tf import registry
from packnet_tf import variables
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import UnsupportedLayerError
from packnet_tf.layers import PackedLayer
from packnet_tf.registry import Kind

Filters = "str | Callable[[keras.layers.Layer], bool] | None"

NOT_TRAINABLE = "it is not trainable"
"""Why a variable is frozen that is left as it was before `wrap`."""

_CHOICES = ("frozen", "per_task")


@dataclasses.dataclass(frozen=True)
class LayerPlan:
    """How one layer will be protected.

    Attributes:
        packed: Names of the variables to pack.
        per_task: Names of the variables of which each task has its own.
        guarded: Whether it may assign to frozen variables while it trains.
    """

    packed: tuple[str, ...]
    per_task: tuple[str, ...]
    guarded: bool

    @property
    def is_wrapped(self) -> bool:
        """Whether a `PackedLayer` goes around the layer."""
        return bool(self.packed or self.per_task or self.guarded)


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a network will be protected.

    Attributes:
        layers: The plan of each layer, by its `id`.
        left_out: Why a weight is not packed, by the key of the variable.
        seen: What the network does when it is called.
    """

    layers: dict[int, LayerPlan]
    left_out: dict[str, str]
    seen: probing.Observation


def make(
    model: keras.Model,
    filters: Filters = None,
    biases: str = "frozen",
    normalization: str = "frozen",
) -> Plan:
    """Decides how each variable of a network will be protected.

    Args:
        model: A built Functional or Sequential model.
        filters: Which layers may be packed: a regular expression, or a
            callable that takes a layer; `None` for all.
        biases: `"frozen"` after task 1, or `"per_task"`.
        normalization: The same for normalization layers.

    Returns:
        The plan.

    Raises:
        ArgumentError: If an argument is none of these.
        UnsupportedLayerError: If a layer cannot be protected; names it.
    """
    should_pack = _resolve_filters(filters)
    _check_choice("biases", biases)
    _check_choice("normalization", normalization)
    per_task = {
        Kind.BIAS: biases == "per_task",
        Kind.NORMALIZATION: normalization == "per_task",
    }
    _refuse_sharing_between_models(model, {})
    classified = _classify(model)
    seen = check_inference(model)
    assigned = assigned_in_training(model)
    layers: dict[int, LayerPlan] = {}
    left_out: dict[str, str] = {}
    for key, (layer, parts) in classified.items():
        packed, own = [], []
        for part in parts:
            reason = _reason_to_leave_out(
                layer.name, part, assigned, should_pack
            )
            if reason is not None:
                left_out[f"{key}/{part.name}"] = reason
            elif part.kind is Kind.WEIGHT:
                packed.append(part.name)
            elif per_task.get(part.kind):
                own.append(part.name)
        # One without variables may assign to those of others.
        guarded = _may_assign(layer) and (
            bool(assigned) or any(part.kind is not Kind.SEED for part in parts)
        )
        layers[id(layer)] = LayerPlan(tuple(packed), tuple(own), guarded)
    return Plan(layers, left_out, seen)


def _classify(
    model: keras.Model,
) -> dict[str, tuple[keras.layers.Layer, list[registry.Part]]]:
    """Classifies all variables; refuses what two layers hold at once."""
    classified = {}
    holders: dict[int, str] = {}
    for key, layer in graphs.walk_layers(model):
        if isinstance(layer, PackedLayer):
            raise UnsupportedLayerError(
                "The network is wrapped already. Wrap the plain Keras model, "
                "or call `export_task()` and wrap what it exports. "
                f"Received: model={model.name!r} with packed layer "
                f"{layer.name!r}"
            )
        parts = registry.classify(layer)
        classified[key] = layer, parts
        for part in parts:
            if part.kind is Kind.SEED:
                continue
            holder = holders.setdefault(id(part.variable), key)
            if holder != key:
                raise UnsupportedLayerError(
                    f"Layer '{layer.name}' cannot be protected: it shares "
                    f"the variable {part.name!r} with layer '{holder}', and a "
                    "copy of the network would not. Share the layer instead. "
                    f"Received: layers {holder!r} and {key!r}"
                )
    return classified


def check_inference(model: keras.Model) -> probing.Observation:
    """Checks that what a network computes depends on its variables alone.

    Args:
        model: A built Functional or Sequential model.

    Returns:
        What it does when it is called with `training=None`.

    Raises:
        UnsupportedLayerError: If its outputs cannot stay the same, because
            a layer draws random numbers or assigns to variables at
            inference, or computes with variables that are none of its own.
    """
    seen = probing.observe(graphs.as_graph(model), training=None)
    _check_observed(model, seen)
    # `predict` says False. `model(x)` leaves it to the layers, some of which
    # may have been told to compute as in training whatever the rest does.
    if not all(is_all_of_keras(of) for _, of in graphs.walk_layers(model)):
        _check_observed(
            model, probing.observe(graphs.as_graph(model), training=False)
        )
    return seen


def _check_observed(model: keras.Model, seen: probing.Observation) -> None:
    """Refuses what would let the outputs at inference change."""
    if seen.foreign:
        raise UnsupportedLayerError(
            "The network cannot be protected: it computes with variables that "
            "are no weights of its layers. Make them with `add_weight()` in a "
            f"layer's `build()`. Received: variables {seen.foreign}"
        )
    _refuse_unseen(model, seen)
    for reason, operations in (
        ("draws random numbers at inference", seen.random),
        ("runs Python code, which cannot be seen into", seen.opaque),
    ):
        if operations:
            raise UnsupportedLayerError(
                f"The network cannot be protected: it {reason}, so its "
                "outputs cannot stay the same. Take that out. Received: "
                f"model={model.name!r} with operations "
                f"{operations}"
            )
    for layer, name, _ in _held(model, seen.bypassed):
        raise UnsupportedLayerError(
            f"Layer '{layer.name}' cannot be protected: it reads the value of "
            f"its variable {name!r} at another time than its call, and then "
            "computes every task with it. Use the variable itself in `call()`. "
            f"Received: layer={layer.name!r} of type {type(layer).__name__}"
        )
    for layer, name, variable in _held(model, seen.assigned):
        raise UnsupportedLayerError(
            f"Layer '{layer.name}' cannot be protected: it "
            + (
                "draws random numbers"
                if variables.is_seed(variable)
                else f"assigns to its variable {name!r}"
            )
            + " at inference, so its outputs cannot stay the same. "
            "Let it do that only when `training` is true. "
            f"Received: layer={layer.name!r} of type "
            f"{type(layer).__name__}"
        )


def _held(
    model: keras.Model, among: list[keras.Variable]
) -> Iterator[tuple[keras.layers.Layer, str, keras.Variable]]:
    """Yields which layer holds a variable, and under which name."""
    ids = {id(variable) for variable in among}
    for _, layer in graphs.walk_layers(model):
        for name, variable in variables.walk(layer):
            if id(variable) in ids:
                yield layer, name, variable


def _refuse_unseen(model: keras.Model, seen: probing.Observation) -> None:
    """Refuses variables that appear, or change, unseen by Keras."""
    if seen.created:
        raise UnsupportedLayerError(
            "The network cannot be protected: it makes variables when it is "
            "called. Make them in `build()`. Received: new variables "
            f"{[variable.path for variable in seen.created]}"
        )
    if seen.unseen:
        raise UnsupportedLayerError(
            "The network cannot be protected: a layer calls a `tf.function` "
            "of its own or assigns to TensorFlow variables, which Keras does "
            "not see. Take off `@tf.function`, as Keras compiles the whole "
            "network, and assign to Keras variables. Received: "
            f"model={model.name!r} with operations {seen.unseen}"
        )


def assigned_in_training(model: keras.Model) -> set[int]:
    """Finds the variables that users' layers assign to in training.

    Args:
        model: A built Functional or Sequential model.

    Returns:
        The `id` of each such variable; none where all layers are Keras' own.

    Raises:
        UnsupportedLayerError: If some are made or assigned to unseen.
    """
    if not any(_may_assign(layer) for _, layer in graphs.walk_layers(model)):
        return set()
    seen = probing.observe(graphs.as_graph(model), training=True)
    _refuse_unseen(model, seen)
    return {id(v) for v in seen.assigned if not variables.is_seed(v)}


def _reason_to_leave_out(
    name: str,
    part: registry.Part,
    assigned: set[int],
    should_pack: Callable[[str, keras.layers.Layer], bool],
) -> str | None:
    """Tells why a variable is frozen although its kind need not be."""
    if part.kind not in (Kind.WEIGHT, Kind.BIAS, Kind.NORMALIZATION):
        return None
    if not part.layer.trainable or (
        part.kind is not Kind.NORMALIZATION and not part.variable.trainable
    ):
        return NOT_TRAINABLE
    if part.kind is not Kind.WEIGHT:
        return None
    if id(part.variable) in assigned:
        return "its layer assigns to it while it trains"
    inside = part.name.rpartition("/")[0]
    if not should_pack(f"{name}/{inside}" if inside else name, part.layer):
        return "left out by `filters`"
    return None


def _may_assign(layer: keras.layers.Layer) -> bool:
    """Tells whether a layer may assign to frozen variables in training.

    Layers of Keras leave what is not trainable alone.
    """
    return not is_all_of_keras(layer) or any(
        isinstance(
            part, (keras.layers.Lambda, keras.layers.SpectralNormalization)
        )
        for part in layer._flatten_layers()
    )


def is_all_of_keras(layer: keras.layers.Layer) -> bool:
    """Tells whether the classes of a layer and its sublayers are Keras' own.

    Args:
        layer: A layer.

    Returns:
        `True` if all of them come with Keras.
    """
    return all(
        type(sublayer).__module__.split(".")[0] == "keras"
        for sublayer in layer._flatten_layers()
    )


def _resolve_filters(
    filters: Any,
) -> Callable[[str, keras.layers.Layer], bool]:
    if filters is None:
        return lambda name, layer: True
    if isinstance(filters, str):
        try:
            pattern = re.compile(filters)
        except re.error as error:
            raise ArgumentError(
                "`filters` is not a regular expression: "
                f"{error}. Received: filters={filters!r}"
            ) from error
        return lambda name, layer: pattern.search(name) is not None
    if callable(filters):
        return lambda name, layer: bool(filters(layer))
    raise ArgumentError(
        "`filters` is a regular expression or a callable that takes a layer. "
        f"Received: filters={filters!r}"
    )


def _check_choice(name: str, value: Any) -> None:
    if value not in _CHOICES:
        raise ArgumentError(
            f"`{name}` is one of {_CHOICES}: frozen after task 1 as in the "
            "paper, or each task's own. "
            f"Received: {name}={value!r}"
        )


def _refuse_sharing_between_models(
    model: keras.Model, users: dict[int, keras.Model]
) -> None:
    """Refuses a layer that several of the nested models use.

    Keras loses the wiring of such a layer when it saves and loads the model,
    in some cases without an error.
    """
    for layer in model.layers:
        if not isinstance(layer, keras.layers.Layer) or not layer.variables:
            continue
        if users.setdefault(id(layer), model) is not model:
            raise UnsupportedLayerError(
                f"Layer '{layer.name}' cannot be protected: it is used in "
                f"'{users[id(layer)].name}' and in '{model.name}', and Keras "
                "does not save and load a layer that models share across "
                "their nesting. Use it within one of them. "
                f"Received: layer={layer.name!r} of type "
                f"{type(layer).__name__}"
            )
        if graphs.is_graph(layer):
            _refuse_sharing_between_models(layer, users)
