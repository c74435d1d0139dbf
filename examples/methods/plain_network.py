"""A plain Keras network with a classifier per task, for the baselines."""

from collections.abc import Sequence

import keras
import numpy as np
from methods import networks


class PlainNetwork:
    """A network, and on top of it a classifier per task.

    Args:
        network: Makes the network.
        keep: Name for the classifier that it came with; `None` to leave that
            out.

    Attributes:
        trunk: What all tasks share.
        heads: The classifier of each task by its name, in order.
    """

    def __init__(
        self, network: networks.Network, keep: str | None = None
    ) -> None:
        self.heads: dict[str, keras.layers.Layer] = {}
        if keep is None:
            self.trunk = network.build()
        else:
            self.trunk, self.heads[keep] = network.build_parts()
        self._trunk_flags = _flags(self.trunk)
        self._head_flags = {
            task: _flags(head) for task, head in self.heads.items()
        }

    def add_head(self, task: str, units: int) -> None:
        """Adds a classifier with new random weights."""
        taken = {layer.name for layer in self.trunk.layers}
        taken |= {head.name for head in self.heads.values()}
        name = task
        while name in taken:
            name += "_classifier"
        self.heads[task] = keras.layers.Dense(
            units, activation="softmax", dtype="float32", name=name
        )
        self.heads[task].build(self.trunk.output_shape)
        self._head_flags[task] = _flags(self.heads[task])

    def model(self, tasks: Sequence[str]) -> keras.Model:
        """Makes the model that has these tasks' outputs, on shared weights.

        Args:
            tasks: Names of one task or more.

        Returns:
            A Functional model; of one task its output is no list.
        """
        features = self.trunk.outputs[0]
        outputs = [self.heads[task](features) for task in tasks]
        return keras.Model(
            self.trunk.inputs[0],
            outputs[0] if len(outputs) == 1 else outputs,
            name="_".join(tasks),
        )

    def let_learn(self, learns: bool, tasks: Sequence[str] = ()) -> None:
        """Says what learns, and what stands still.

        Args:
            learns: Whether the shared part learns, and with it the
                classifiers of all tasks.
            tasks: Names of tasks whose classifiers learn in any case.
        """
        for layer, flag in self._trunk_flags:
            layer.trainable = flag and learns
        for task, flags in self._head_flags.items():
            for layer, flag in flags:
                layer.trainable = flag and (learns or task in tasks)

    def copy(self) -> "PlainNetwork":
        """Returns a network with weights of its own that are equal."""
        made = PlainNetwork.__new__(PlainNetwork)
        made.trunk = keras.models.clone_model(self.trunk)
        made.trunk.set_weights(self.trunk.get_weights())
        made.heads = {}
        for task, head in self.heads.items():
            made.heads[task] = (
                keras.models.clone_model(head)
                if isinstance(head, keras.Model)
                else type(head).from_config(head.get_config())
            )
            made.heads[task].build(self.trunk.output_shape)
            made.heads[task].set_weights(head.get_weights())
        made._trunk_flags, made._head_flags = [], {}
        return made

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Returns all weights and random states by name."""
        return {
            f"{part}/{index}": variable.numpy()
            for part, variables in self._variables().items()
            for index, variable in enumerate(variables)
        }

    def assign(self, arrays: dict[str, np.ndarray]) -> None:
        """Takes what `to_arrays` gave; the classifiers are there already."""
        for part, variables in self._variables().items():
            for index, variable in enumerate(variables):
                variable.assign(arrays[f"{part}/{index}"])

    def _variables(self) -> dict[str, list[keras.Variable]]:
        found = {"trunk": list(self.trunk.variables)}
        for index, head in enumerate(self.heads.values()):
            found[f"head{index}"] = list(head.variables)
        return found


def _flags(layer: keras.layers.Layer) -> list[tuple[keras.layers.Layer, bool]]:
    """Lists a layer and those in it, outer ones first, and which may learn."""
    return [
        (each, each.trainable)
        for each in layer._flatten_layers(include_self=True)
    ]
