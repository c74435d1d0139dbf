"""How a model was compiled, kept so that each task can start afresh."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import keras

from packnet_tf import optimizers
from packnet_tf.errors import ArgumentError

_BY_KEY = "_exclude_from_weight_decay"
_BY_NAME = "_exclude_from_weight_decay_pattern"


@dataclasses.dataclass
class Recipe:
    """The arguments of `compile`, with the optimizer as it was then.

    Attributes:
        optimizer: Class and config of the optimizer, `None` if there is none.
        arguments: All other arguments of `compile`.
        undecayed: What `exclude_from_weight_decay` has left in the optimizer
            and in those it wraps, by attribute; no config tells of it.
    """

    optimizer: tuple[type, dict[str, Any]] | None
    arguments: dict[str, Any]
    undecayed: tuple[dict[str, Any], ...] = ()

    @classmethod
    def take(cls, optimizer: Any, arguments: dict[str, Any]) -> "Recipe":
        """Records the arguments of `compile`.

        Args:
            optimizer: An optimizer instance, or `None`. Of its state only
                the learning rate is taken.
            arguments: All other arguments, by name.

        Returns:
            The recipe.

        Raises:
            ArgumentError: If no fresh optimizer can be made from this one.
        """
        if optimizer is None:
            return cls(None, arguments)
        try:
            config = optimizer.get_config()
            if isinstance(config.get("learning_rate"), dict):
                # A schedule has no state; the next optimizer may share it.
                config["learning_rate"] = optimizer._learning_rate
            kept = get_undecayed(optimizer)
            recipe = cls((type(optimizer), config), arguments, kept)
            recipe.fresh_optimizer()
        except (NotImplementedError, TypeError, ValueError) as error:
            raise ArgumentError(
                "Each task starts with a fresh optimizer, which needs one "
                "whose configuration can be read: give it, its schedule and "
                f"its parts a `get_config()`. {error} "
                f"Received: optimizer={optimizer!r}"
            ) from error
        return recipe

    @property
    def jit_compile(self) -> "bool | str":
        """Whether XLA compiles the whole step: a bool, or `"auto"`."""
        return self.arguments.get("jit_compile", "auto")

    def fresh_optimizer(self) -> keras.optimizers.Optimizer | None:
        """Makes an optimizer of the same configuration, with no state."""
        if self.optimizer is None:
            return None
        cls, config = self.optimizer
        optimizer = cls.from_config(dict(config))
        set_undecayed(optimizer, self.undecayed)
        return optimizer

    def fresh_arguments(self) -> dict[str, Any]:
        """Returns the other arguments of `compile`, metrics made anew."""
        return {
            name: _renew_metrics(value) if "metrics" in name else value
            for name, value in self.arguments.items()
        }

    def optimizer_config(self) -> dict[str, Any] | None:
        """Returns the optimizer as a dict that JSON can hold."""
        optimizer = self.fresh_optimizer()
        return optimizer and keras.saving.serialize_keras_object(optimizer)


def get_undecayed(
    optimizer: keras.optimizers.Optimizer | None,
) -> tuple[dict[str, Any], ...]:
    """Returns what `exclude_from_weight_decay` has left in an optimizer.

    Args:
        optimizer: The optimizer, or `None`.

    Returns:
        For it and each that it wraps, some attributes by name.
    """
    return tuple(
        {
            name: vars(part)[name]
            for name in (_BY_KEY, _BY_NAME)
            if hasattr(part, name)
        }
        for part in optimizers.parts(optimizer)
    )


def set_undecayed(
    optimizer: keras.optimizers.Optimizer | None,
    undecayed: Sequence[dict[str, Any]],
) -> None:
    """Excludes from weight decay what was excluded in another optimizer.

    Args:
        optimizer: The optimizer, or `None`.
        undecayed: As `get_undecayed` returns it.
    """
    for part, kept in zip(optimizers.parts(optimizer), undecayed):
        vars(part).update(kept)


def variable_keys(
    optimizer: keras.optimizers.Optimizer | None,
    variables: Sequence[keras.Variable],
) -> list[Any]:
    """Returns what an optimizer knows variables by, in this process.

    Args:
        optimizer: The optimizer, or `None`.
        variables: Variables that it need not train.

    Returns:
        A key for each variable; nothing for no optimizer.
    """
    if optimizer is None:
        return []
    return [optimizer._var_key(variable) for variable in variables]


def undecayed_to_config(
    undecayed: Sequence[dict[str, Any]], keys: Sequence[Any]
) -> list[dict[str, Any]]:
    """Writes what is excluded from weight decay as JSON can hold it.

    Args:
        undecayed: As `get_undecayed` returns it.
        keys: Of the variables of the model, as `variable_keys` returns them.

    Returns:
        For each optimizer, the places of variables and the pattern of names.
    """
    return [
        {
            "places": [
                place
                for place, key in enumerate(keys)
                if key in kept.get(_BY_KEY, ())
            ],
            "pattern": kept[_BY_NAME].pattern if kept.get(_BY_NAME) else None,
        }
        for kept in undecayed
    ]


def undecayed_from_config(
    config: Sequence[dict[str, Any]], keys: Sequence[Any]
) -> tuple[dict[str, Any], ...]:
    """Reads what `undecayed_to_config` wrote.

    Args:
        config: What it returned.
        keys: Of the variables of the model, as `variable_keys` returns them.

    Returns:
        As `get_undecayed` returns it.
    """
    return tuple(
        {
            _BY_KEY: {keys[place] for place in part["places"]},
            _BY_NAME: part["pattern"] and re.compile(part["pattern"]),
        }
        for part in config
    )


def _renew_metrics(metrics: Any) -> Any:
    """Replaces metric instances in a structure by stateless copies."""
    if isinstance(metrics, keras.metrics.Metric):
        try:
            return type(metrics).from_config(metrics.get_config())
        except (NotImplementedError, TypeError, ValueError):
            return metrics  # It cannot be made anew; Keras resets it.
    if isinstance(metrics, (list, tuple)):
        return [_renew_metrics(metric) for metric in metrics]
    if isinstance(metrics, dict):
        return {name: _renew_metrics(m) for name, m in metrics.items()}
    return metrics
