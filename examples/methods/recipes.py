"""How a network is trained: the optimizer, its learning rate, and the rest."""

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
        jit_compile: Whether training is compiled with XLA, as for `compile`.
        lwf_temperature: What learning without forgetting softens by.
        lwf_strength: Weight of its loss for each earlier task.
        ewc_strength: Weight of the penalty of elastic weight consolidation.
        ewc_samples: Images that importance is measured on.
    """

    name: str = "sgd"
    learning_rate: float = 1e-3
    retrain_learning_rate: float = 1e-4
    schedule: str = "step"
    decay_epochs: int = 10
    decay_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0
    jit_compile: "bool | str" = "auto"
    lwf_temperature: float = 2.0
    lwf_strength: float = 1.0
    ewc_strength: float = 1000.0
    ewc_samples: int = 200

    @classmethod
    def from_flags(cls, flags: Any) -> "Recipe":
        """Makes the recipe that flags of these names describe."""
        compiled = {"true": True, "false": False}
        return cls(
            flags.optimizer,
            flags.learning_rate,
            flags.retrain_learning_rate,
            flags.schedule,
            flags.decay_epochs,
            flags.decay_rate,
            flags.momentum,
            flags.weight_decay,
            compiled.get(flags.jit_compile, "auto"),
            flags.lwf_temperature,
            flags.lwf_strength,
            flags.ewc_strength,
            flags.ewc_samples,
        )

    def rate(self, phase: str, epochs: int, steps: int) -> Any:
        """Returns the learning rate of a phase.

        Args:
            phase: `"warmup"`, at a constant rate; `"train"` or `"retrain"`.
            epochs: Epochs of the phase.
            steps: Steps of an epoch.

        Returns:
            A float or a Keras schedule.
        """
        first = self.learning_rate
        if phase == "retrain":
            first = self.retrain_learning_rate
        if self.schedule == "constant" or phase == "warmup":
            return first
        if self.schedule == "cosine":
            return keras.optimizers.schedules.CosineDecay(
                first, decay_steps=max(epochs * steps, 1)
            )
        return keras.optimizers.schedules.ExponentialDecay(
            first, self.decay_epochs * steps, self.decay_rate, staircase=True
        )

    def optimizer(
        self, phase: str, epochs: int, steps: int
    ) -> keras.optimizers.Optimizer:
        """Returns a new optimizer for a phase; arguments as for `rate`."""
        config: dict[str, Any] = {
            "learning_rate": self.rate(phase, epochs, steps)
        }
        # AdamW has some of its own unless it is told.
        if self.weight_decay or self.name == "adamw":
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
