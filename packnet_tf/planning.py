"""How each layer of a network will be protected, before it is copied."""

import dataclasses
import inspect
import re
from collections.abc import Callable
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
    """

    layers: dict[int, LayerPlan]
    left_out: dict[str, str]


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
    check_inference(model)
    assigned = _assigned_in_training(model)
    layers: dict[int, LayerPlan] = {}
    left_out: dict[str, str] = {}
    for key, (layer, parts) in classified.items():
        packed, own, guarded = [], [], False
        may_assign = _may_assign(layer)
        for part in parts:
            reason = _reason_to_leave_out(
                layer.name, part, assigned, should_pack
            )
            if reason is not None:
                left_out[f"{key}/{part.name}"] = reason
            elif part.kind is Kind.WEIGHT:
                packed.append(part.name)
                continue
            elif per_task.get(part.kind):
                own.append(part.name)
                continue
            guarded = guarded or (may_assign and part.kind is not Kind.SEED)
        layers[id(layer)] = LayerPlan(tuple(packed), tuple(own), guarded)
    return Plan(layers, left_out)


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


def check_inference(model: keras.Model) -> None:
    """Checks that what a network computes depends on its variables alone.

    Args:
        model: A built Functional or Sequential model.

    Raises:
        UnsupportedLayerError: If its outputs cannot stay the same, because
            a layer draws random numbers or assigns to variables at
            inference, or computes with variables that are none of its own.
    """
    for training in _inference_modes(model):
        _check_observed(
            model, probing.observe(graphs.as_graph(model), training)
        )


def _inference_modes(model: keras.Model) -> tuple[bool | None, ...]:
    """Lists what `training` is when a network computes for inference."""
    # Without a value, as in `model(x)`, each layer takes its own default.
    for layer in model._flatten_layers():
        parameter = inspect.signature(layer.call).parameters.get("training")
        if parameter is not None and parameter.default not in (
            parameter.empty,
            None,
            False,
        ):
            return False, None
    return (False,)


def _check_observed(model: keras.Model, seen: probing.Observation) -> None:
    """Refuses what would let the outputs at inference change."""
    if seen.foreign:
        raise UnsupportedLayerError(
            "The network cannot be protected: it computes with variables that "
            "are no weights of its layers. Make them with `add_weight()` in a "
            f"layer's `build()`. Received: variables {seen.foreign}"
        )
    if seen.created:
        raise UnsupportedLayerError(
            "The network cannot be protected: it makes variables when it is "
            "called. Make them in `build()`. Received: new variables "
            f"{[variable.path for variable in seen.created]}"
        )
    for reason, types in (
        ("draws random numbers at inference", seen.random),
        ("runs Python code, which cannot be seen into", seen.opaque),
        ("writes to variables or tables at inference", seen.writes),
    ):
        if types:
            raise UnsupportedLayerError(
                f"The network cannot be protected: it {reason}, so its "
                "outputs cannot stay the same. Take that out. Received: "
                f"model={model.name!r} with operations {types}"
            )
    changing = {id(variable) for variable in seen.assigned}
    for _, layer in graphs.walk_layers(model):
        for name, variable in variables.walk(layer):
            if id(variable) in changing:
                raise UnsupportedLayerError(
                    f"Layer '{layer.name}' cannot be protected: it "
                    + (
                        "draws random numbers"
                        if variables.is_seed(variable)
                        else f"assigns to its variable {name!r}"
                    )
                    + " at inference, so its outputs cannot stay the same. "
                    "Let it do that only when `training` is true, and let "
                    "that be false by default. "
                    f"Received: layer={layer.name!r} of type "
                    f"{type(layer).__name__}"
                )


def _assigned_in_training(model: keras.Model) -> set[int]:
    """Finds the variables that layers assign to in training."""
    # All layers, those without variables of their own too: a layer made of
    # others may assign to theirs.
    if not any(_may_assign(layer) for layer in model.layers):
        return set()
    seen = probing.observe(graphs.as_graph(model), training=True)
    if seen.writes:
        raise UnsupportedLayerError(
            "The network cannot be protected: in training it writes to "
            "variables behind the back of Keras, which cannot be kept from "
            "frozen ones. Call `assign()` of the Keras variable, not of its "
            f"`value`. Received: model={model.name!r} with operations "
            f"{seen.writes}"
        )
    return {id(variable) for variable in seen.assigned}


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
        return "it is not trainable"
    if part.kind is not Kind.WEIGHT:
        return None
    if id(part.variable) in assigned:
        return "its layer assigns to it while it trains"
    inside = part.name.rpartition("/")[0]
    if not should_pack(f"{name}/{inside}" if inside else name, part.layer):
        return "left out by `filters`"
    return None


def _may_assign(layer: Any) -> bool:
    """Tells whether a layer may assign to frozen variables in training.

    Layers of Keras leave what is not trainable alone.
    """
    if not isinstance(layer, keras.layers.Layer):
        return False
    return any(
        not is_of_keras(part)
        or isinstance(
            part, (keras.layers.Lambda, keras.layers.SpectralNormalization)
        )
        for part in layer._flatten_layers()
    )


def is_of_keras(layer: keras.layers.Layer) -> bool:
    """Tells whether a layer's class comes with Keras.

    Args:
        layer: A layer.

    Returns:
        `True` if it is Keras' own.
    """
    return type(layer).__module__.split(".")[0] == "keras"


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
