"""How weights are scored before pruning: one method per criterion.

A higher score means keep. To add a criterion, subclass `Criterion` in this
file and write `score`; it is known by its name in lower case from then on.
"""

import dataclasses
from typing import Any

import keras
import numpy as np

from packnet_tf.errors import ArgumentError

_PACKAGE = "packnet_tf"
_CRITERIA: "dict[str, type[Criterion]]" = {}


@dataclasses.dataclass(frozen=True)
class Weight:
    """One packed weight, as a criterion sees it.

    Attributes:
        key: Its name, unique in the model and the same after loading.
        kernel: Float array of any shape, not to be changed.
        gradient: Float array of the same shape, what the criterion's
            `gradient` asks for; `None` if it asks for nothing.
    """

    key: str
    kernel: np.ndarray
    gradient: np.ndarray | None = None


class Criterion:
    """Base class of pruning criteria.

    A subclass in this file is registered under its name in lower case, and
    with Keras. One outside is used as an instance, or registered in the same
    way if it names its package: `class Mine(Criterion, package="mine")`.

    Attributes:
        gradient: What `score` is given of the gradients: `None` for nothing,
            `"mean"` for their mean over the batches, `"rms"` for the root of
            the mean of their squares.

    Raises:
        ArgumentError: When a subclass is defined, if its name is taken or
            its `gradient` is none of these.
    """

    gradient: str | None = None

    def __init_subclass__(
        cls, package: str | None = None, **kwargs: Any
    ) -> None:
        super().__init_subclass__(**kwargs)
        if cls.gradient not in (None, "mean", "rms"):
            raise ArgumentError(
                "A criterion's `gradient` is None, 'mean' or 'rms'. "
                f"Received: {cls.gradient!r} in {cls.__name__}"
            )
        if package is None and cls.__module__ == __name__:
            package = _PACKAGE
        if package is None:
            return
        name = cls.__name__.lower()
        registered = f"{package}>{cls.__name__}"
        if name in _CRITERIA or keras.saving.get_registered_object(registered):
            raise ArgumentError(
                "Every criterion has its own name, in lower case. Choose "
                f"another than {names()}. Received: class {cls.__name__}, "
                f"package={package!r}"
            )
        keras.saving.register_keras_serializable(package)(cls)
        _CRITERIA[name] = cls

    def score(self, weight: Weight) -> np.ndarray:
        """Scores one packed weight.

        Args:
            weight: The weight.

        Returns:
            Float array of the kernel's shape. Higher means keep.
        """
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """Returns what `from_config` needs to make an equal criterion."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Criterion":
        """Makes a criterion from what `get_config` returned."""
        return cls(**config)


class Magnitude(Criterion):
    """Keeps the weights of largest absolute value, as in the paper.

    Reference:
        - [Mallya and Lazebnik, 2018](https://arxiv.org/abs/1711.05769),
          section 3
    """

    def score(self, weight: Weight) -> np.ndarray:
        return np.abs(weight.kernel)


class Random(Criterion):
    """Keeps weights at random: what any other criterion should beat.

    An instance gives the same weight the same scores every time, so that
    pruning in several calls, or after loading, goes on where it stood.

    Args:
        seed: Int from 0. By default drawn from NumPy's global state, which
            `keras.utils.set_random_seed` sets.

    Raises:
        ArgumentError: If the seed is none.
    """

    def __init__(self, seed: int | None = None) -> None:
        if seed is None:
            seed = np.random.randint(2**31)
        if (
            isinstance(seed, bool)
            or not isinstance(seed, (int, np.integer))
            or seed < 0
        ):
            raise ArgumentError(
                f"A seed is an integer from 0. Received: seed={seed!r}"
            )
        self.seed = int(seed)

    def score(self, weight: Weight) -> np.ndarray:
        stream = np.random.SeedSequence(
            self.seed, spawn_key=tuple(weight.key.encode())
        )
        return np.random.default_rng(stream).random(
            weight.kernel.shape, np.float32
        )

    def get_config(self) -> dict[str, Any]:
        return {"seed": self.seed}


class Taylor(Criterion):
    """Keeps the weights without which the loss would change most.

    The change is estimated to first order: the weight times its gradient,
    its square averaged over batches.

    Reference:
        - [Molchanov et al., 2019](https://arxiv.org/abs/1906.10771),
          "Importance Estimation for Neural Network Pruning", section 3
    """

    gradient = "rms"

    def score(self, weight: Weight) -> np.ndarray:
        return np.abs(weight.kernel) * weight.gradient


def names() -> list[str]:
    """Lists the names that `get` knows, in alphabetical order."""
    return sorted(_CRITERIA)


def get(identifier: "str | dict[str, Any] | Criterion") -> Criterion:
    """Retrieves a criterion from its name, config or instance.

    Args:
        identifier: One of `names()`, a dict as
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
        f"A criterion is one of {names()}, a config of one, or a "
        f"`packnet_tf.criteria.Criterion`. Received: {identifier!r}"
    )
