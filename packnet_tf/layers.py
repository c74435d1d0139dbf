"""The layer wrapper that carries owner maps, and the task being computed."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from packnet_tf import ownership
from packnet_tf import registry

# The task whose weights are visible, known when a call is traced. `None` is
# the newest task, whose visible weights are the raw ones.
_VISIBLE_TASK: contextvars.ContextVar[int | None] = contextvars.ContextVar(
    "packnet_tf_visible_task", default=None
)


@contextlib.contextmanager
def visible_task(task: int | None) -> Iterator[None]:
    """Makes packed layers compute with the weights of one task.

    Args:
        task: Number of an older task, or `None` for the raw weights, which
            are those of the newest task.

    Yields:
        Nothing; the choice holds inside of the `with` block.
    """
    token = _VISIBLE_TASK.set(task)
    try:
        yield
    finally:
        _VISIBLE_TASK.reset(token)


@keras.saving.register_keras_serializable(package="packnet_tf")
class PackedLayer(keras.layers.Wrapper):
    """Wraps a layer and carries an owner map for each packed weight.

    The wrapper bears the name of the layer. For the newest task its call is
    the layer's own call. For an older task the layer computes with
    `where(visible, kernel, 0)` instead of its kernel; no variable changes.

    Args:
        layer: The layer to wrap, of a registered class.
        packed: Names of the layer's attributes that hold packed variables.
            Defaults to what the registry says of the layer's class.
        **kwargs: As for `keras.layers.Layer`, without `dtype`.

    Attributes:
        layer: The wrapped layer.
        owners: The owner maps, `uint8` non-trainable variables in the order
            of `packed`, each of its weight's shape.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        packed: tuple[str, ...] | None = None,
        **kwargs: Any,
    ) -> None:
        # The wrapped layer casts its inputs and variables; the wrapper must
        # not, so it has the plain dtype of the variables and no autocast.
        kwargs.pop("dtype", None)
        kwargs.setdefault("name", layer.name)
        super().__init__(
            layer, dtype=layer.variable_dtype, autocast=False, **kwargs
        )
        if packed is None:
            packed = registry.packed_names(layer)
        self.packed = tuple(packed)
        self.supports_masking = layer.supports_masking
        self.owners: list[keras.Variable] = []

    def build(self, input_shape: Any = None) -> None:
        super().build(input_shape)
        self.owners = [
            self.add_weight(
                shape=variable.shape,
                dtype="uint8",
                initializer="zeros",
                trainable=False,
                autocast=False,
                aggregation="only_first_replica",
                name=f"{variable.name}_owner",
            )
            for variable in self.packed_variables()
        ]

    def packed_variables(self) -> list[keras.Variable]:
        """Returns the packed weights of the layer, in the order of `packed`."""
        return [getattr(self.layer, name) for name in self.packed]

    def call(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        task = _VISIBLE_TASK.get()
        if task is None:
            return self.layer(inputs, *args, **kwargs)
        # Select, never multiply: a later task that diverged to NaN must not
        # reach an older one.
        visible = [
            (
                variable,
                tf.where(
                    ownership.visible_mask(owner.value, task),
                    variable.value,
                    tf.zeros((), variable.dtype),
                ),
            )
            for variable, owner in zip(self.packed_variables(), self.owners)
        ]
        with keras.StatelessScope(visible, collect_losses=True) as scope:
            outputs = self.layer(inputs, *args, **kwargs)
        for loss in scope.losses:
            self.add_loss(loss)
        return outputs

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        return self.layer.compute_mask(inputs, previous_mask)

    def get_build_config(self) -> dict[str, Any]:
        return {"layer": self.layer.get_build_config()}

    def build_from_config(self, config: dict[str, Any]) -> None:
        if config.get("layer") and not self.layer.built:
            self.layer.build_from_config(config["layer"])
        if self.layer.built and not self.built:
            self.build()

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["dtype"]
        return {**config, "packed": list(self.packed)}
