"""How a network is trained: the optimizer and its learning rate."""

import dataclasses
from typing import Any

import keras

OPTIMIZERS = ("adam", "adamw", "lion", "rmsprop", "sgd")
SCHEDULES = ("cosine", "step", "constant")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The optimizer of each phase of a task.

    Attributes:
        name: One of `OPTIMIZERS`.
        learning_rate: At the start of training.
        retrain_learning_rate: At the start of retraining.
        schedule: One of `SCHEDULES`.
        decay_epochs: Epochs between two steps, for `"step"`.
        decay_rate: Factor of each step, for `"step"`.
        momentum: Of SGD.
        weight_decay: Decoupled, per step.
    """

    name: str = "sgd"
    learning_rate: float = 1e-3
    retrain_learning_rate: float = 1e-4
    schedule: str = "step"
    decay_epochs: int = 10
    decay_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0

    @classmethod
    def from_flags(cls, flags: Any) -> "Recipe":
        """Makes the recipe that flags of these names describe."""
        return cls(
            flags.optimizer,
            flags.learning_rate,
            flags.retrain_learning_rate,
            flags.schedule,
            flags.decay_epochs,
            flags.decay_rate,
            flags.momentum,
            flags.weight_decay,
        )

    def rate(self, retraining: bool, epochs: int, steps: int) -> Any:
        """Returns the learning rate of a phase.

        Args:
            retraining: Whether it is the one after pruning.
            epochs: Epochs of the phase.
            steps: Steps of an epoch.

        Returns:
            A float or a Keras schedule.
        """
        first = self.retrain_learning_rate if retraining else self.learning_rate
        if self.schedule == "constant":
            return first
        if self.schedule == "cosine":
            return keras.optimizers.schedules.CosineDecay(
                first, decay_steps=max(epochs * steps, 1)
            )
        return keras.optimizers.schedules.ExponentialDecay(
            first, self.decay_epochs * steps, self.decay_rate, staircase=True
        )

    def optimizer(
        self, retraining: bool, epochs: int, steps: int
    ) -> keras.optimizers.Optimizer:
        """Returns a new optimizer for a phase; arguments as for `rate`."""
        config: dict[str, Any] = {
            "learning_rate": self.rate(retraining, epochs, steps)
        }
        if self.weight_decay:
            config["weight_decay"] = self.weight_decay
        if self.name == "sgd":
            config["momentum"] = self.momentum
        makers = {
            "adam": keras.optimizers.Adam,
            "adamw": keras.optimizers.AdamW,
            "lion": keras.optimizers.Lion,
            "rmsprop": keras.optimizers.RMSprop,
            "sgd": keras.optimizers.SGD,
        }
        return makers[self.name](**config)
