"""How weights are scored before pruning: one method per criterion.

A higher score means keep. To add a criterion, subclass `Criterion`, register
the class with Keras, and list it in `_CRITERIA`.
"""

from typing import Any

import keras
import numpy as np

from packnet_tf.errors import ArgumentError


class Criterion:
    """Base class of pruning criteria."""

    def score(self, kernel: np.ndarray) -> np.ndarray:
        """Scores one packed weight.

        Args:
            kernel: Float array of any shape.

        Returns:
            Float array of the same shape. Higher means keep.
        """
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """Returns what `from_config` needs to make an equal criterion."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Criterion":
        """Makes a criterion from what `get_config` returned."""
        return cls(**config)


@keras.saving.register_keras_serializable(package="packnet_tf")
class Magnitude(Criterion):
    """Keeps the weights of largest absolute value, as in the paper.

    Reference:
        - [Mallya and Lazebnik, 2018](https://arxiv.org/abs/1711.05769),
          section 3
    """

    def score(self, kernel: np.ndarray) -> np.ndarray:
        return np.abs(kernel)


_CRITERIA = {"magnitude": Magnitude}


def get(identifier: "str | dict[str, Any] | Criterion") -> Criterion:
    """Retrieves a criterion from its name, config or instance.

    Args:
        identifier: A name (`"magnitude"`), a dict as
            `keras.saving.serialize_keras_object` makes it, or a `Criterion`.

    Returns:
        A `Criterion`.

    Raises:
        ArgumentError: If there is no such criterion.
    """
    if isinstance(identifier, Criterion):
        return identifier
    if isinstance(identifier, dict):
        try:
            found = keras.saving.deserialize_keras_object(identifier)
        except (TypeError, ValueError, KeyError):
            found = None
        if isinstance(found, Criterion):
            return found
    if isinstance(identifier, str) and identifier in _CRITERIA:
        return _CRITERIA[identifier]()
    raise ArgumentError(
        f"A criterion is one of {sorted(_CRITERIA)}, a config of one, or a "
        f"`packnet_tf.criteria.Criterion`. Received: {identifier!r}"
    )
