"""The layer wrapper that carries owner maps."""

import inspect
from collections.abc import Collection
from typing import Any

import keras

from packnet_tf import distribute
from packnet_tf import ownership
from packnet_tf import registry
from packnet_tf import variables
from packnet_tf import visibility
from packnet_tf.errors import ArgumentError


class _Resolved:
    """The wrapped layer's variables by name.

    A plain object, so that Keras does not track them a second time.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        packed: Collection[str],
        per_task: Collection[str],
    ) -> None:
        named = dict(variables.walk(layer))
        self.packed = [named[name] for name in packed]
        self.per_task = [named[name] for name in per_task]


@keras.saving.register_keras_serializable(package="packnet_tf")
class PackedLayer(keras.layers.Wrapper):
    """Wraps a layer and carries an owner map for each packed weight.

    The wrapper bears the name of the layer. For the newest task its call is
    the layer's own call. For an older task the layer computes with
    `where(visible, kernel, 0)` instead of its kernel, and with the copies
    that the task keeps of its per-task variables; no variable changes.

    Args:
        layer: The layer to wrap: any layer, or a subclassed model.
        packed: Names of the layer's packed weights, as
            `packnet_tf.registry.classify` gives them. Defaults to all that
            are weights.
        per_task: Names of the variables of which each task keeps a copy.
        guarded: Whether the layer may assign to frozen variables while it
            trains. Once task 1 is frozen, such assignments are dropped.
        tasks: How many tasks keep copies already, 255 at most.
        **kwargs: As for `keras.layers.Layer`, without `dtype`.

    Raises:
        ArgumentError: If there cannot be so many tasks, or a variable is
            named twice.

    Attributes:
        layer: The wrapped layer.
        owners: The owner maps, `uint8` non-trainable variables in the order
            of `packed`, each of its weight's shape.
        copies: For each frozen task in order, a non-trainable copy of each
            per-task variable.
        guarding: Whether assignments are dropped now.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        packed: Collection[str] | None = None,
        per_task: Collection[str] = (),
        guarded: bool = False,
        tasks: int = 0,
        **kwargs: Any,
    ) -> None:
        # The wrapped layer casts its inputs and variables; the wrapper must
        # not, so it has the plain dtype of the variables and no autocast.
        kwargs.pop("dtype", None)
        kwargs.setdefault("name", layer.name)
        super().__init__(
            layer, dtype=layer.variable_dtype, autocast=False, **kwargs
        )
        # These may come from a file, and say how many variables are made.
        if type(tasks) is not int or not 0 <= tasks <= ownership.MAX_TASKS:
            raise ArgumentError(
                f"From 0 to {ownership.MAX_TASKS} tasks can keep copies. "
                f"Received: tasks={tasks!r:.80}"
            )
        self.packed = None if packed is None else tuple(packed)
        self.per_task = tuple(per_task)
        for names in (self.packed or (), self.per_task):
            if len(set(names)) < len(names):
                raise ArgumentError(
                    "A variable is packed or kept for each task once. "
                    f"Received: {names!s:.200}"
                )
        self.guarded = guarded
        self.guarding = False
        self.supports_masking = True
        self.owners: list[keras.Variable] = []
        self.copies: list[keras.Variable] = []
        self._kept = tasks
        self._resolved: _Resolved | None = None
        # What may be passed is the wrapped layer's concern.
        self._allow_non_tensor_positional_args = True
        self._call_signature = inspect.signature(layer.call)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not args:
            # What comes first is the input; here it was given by its name.
            first = next(iter(self._call_signature.parameters))
            args = (kwargs.pop(first),)
        # Not `built`, which Keras sets after loading whatever is missing.
        if self._resolved is None:
            # Whatever way the layer makes its variables: a call does it.
            self.layer(*args, **kwargs)
            self.build()
        return super().__call__(*args, **kwargs)

    def build(self, input_shape: Any = None) -> None:
        super().build(input_shape)
        if self.packed is None:
            self.packed = tuple(
                part.name
                for part in registry.classify(self.layer)
                if part.kind is registry.Kind.WEIGHT
            )
        self._resolved = _Resolved(self.layer, self.packed, self.per_task)
        self.owners = [
            self._add_state(f"{variable.name}_owner", variable.shape, "uint8")
            for variable in self._resolved.packed
        ]
        for task in range(1, self._kept + 1):
            self._add_copies(task)

    def packed_variables(self) -> list[keras.Variable]:
        """Returns the packed weights of the layer, in the order of `packed`."""
        return self._resolved.packed

    def per_task_variables(self) -> list[keras.Variable]:
        """Returns the newest task's own variables, as `per_task` has them."""
        return self._resolved.per_task

    def copies_of(self, task: int) -> list[keras.Variable]:
        """Returns the per-task variables of a task.

        Args:
            task: Number of a task, 1 and up.

        Returns:
            The copies that it keeps if it is frozen, else the layer's own
            variables; in the order of `per_task`.
        """
        size = len(self.per_task)
        if task > self._kept:
            return self.per_task_variables()
        return list(self.copies[size * (task - 1) : size * task])

    def keep_copies(self) -> None:
        """Keeps the per-task variables as they are now for the newest task."""
        if not self.per_task:
            return
        # Keras locks a built layer against new state; its own `enable_lora`
        # opens it in the same way.
        self._tracker.unlock()
        try:
            self._kept += 1
            self._add_copies(self._kept)
        finally:
            self._tracker.lock()
        for copy, variable in zip(
            self.copies_of(self._kept), self.per_task_variables()
        ):
            copy.assign(variable)

    def return_to(self, task: int) -> None:
        """Makes an older task the newest again, as far as this layer goes.

        The layer's own variables get the values that the task keeps, and the
        copies of all later tasks are dropped.

        Args:
            task: Number of a frozen task.
        """
        if not self.per_task:
            return
        for variable, copy in zip(
            self.per_task_variables(), self.copies_of(task)
        ):
            variable.assign(copy.numpy())
        while len(self.copies) > len(self.per_task) * task:
            self.copies.pop()  # Which Keras notices; not of a slice.
        self._kept = task

    def call(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        task = visibility.current()
        if task is None and not self.guarding:
            return self.layer(inputs, *args, **kwargs)
        visible = [] if task is None else self._visible(task)
        with keras.StatelessScope(visible, collect_losses=True) as scope:
            outputs = self.layer(inputs, *args, **kwargs)
        for loss in scope.losses:
            self.add_loss(loss)
        if task is None:
            self._take_over(scope)
        return outputs

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        # Keras would trace the call, which takes `TimeDistributed` a loop over
        # as many steps as a file says there are.
        is_of_keras = type(self.layer).__module__.split(".")[0] == "keras"
        if is_of_keras and not isinstance(self.layer, keras.layers.EinsumDense):
            return self.layer.compute_output_spec(*args, **kwargs)
        # A trace knows sides that were left open, as `EinsumDense` allows.
        return super().compute_output_spec(*args, **kwargs)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        if not self.layer.supports_masking:
            return None
        return self.layer.compute_mask(inputs, previous_mask)

    def get_build_config(self) -> dict[str, Any]:
        return {
            "layer": self.layer.get_build_config(),
            "variables": [name for name, _ in variables.walk(self.layer)],
        }

    def build_from_config(self, config: dict[str, Any]) -> None:
        if config.get("layer") and not self.layer.built:
            self.layer.build_from_config(config["layer"])
        names = [name for name, _ in variables.walk(self.layer)]
        if self.layer.built and names == list(config["variables"]):
            self.build()

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["dtype"]
        return {
            **config,
            "packed": None if self.packed is None else list(self.packed),
            "per_task": list(self.per_task),
            "guarded": self.guarded,
            "tasks": self._kept,
        }

    # Helpers.

    def _visible(self, task: int) -> list[tuple[keras.Variable, Any]]:
        """Pairs each variable with its value for an older task."""
        pairs = [
            (variable, visibility.select(variable, owner, task))
            for variable, owner in zip(self.packed_variables(), self.owners)
        ]
        pairs += [
            (variable, copy.value)
            for variable, copy in zip(
                self.per_task_variables(), self.copies_of(task)
            )
        ]
        return pairs

    def _take_over(self, scope: keras.StatelessScope) -> None:
        """Makes the assignments of a guarded call that harm no task."""
        own = {id(variable) for variable in self.per_task_variables()}
        for _, variable in variables.walk(self.layer):
            value = scope.get_current_value(variable)
            if value is not None and (
                id(variable) in own or variables.is_seed(variable)
            ):
                variable.assign(value)

    def _add_copies(self, task: int) -> None:
        for name, variable in zip(self.per_task, self._resolved.per_task):
            self.copies.append(
                self._add_state(
                    f"{name.replace('/', '_')}_{task}",
                    variable.shape,
                    variable.dtype,
                )
            )

    def _add_state(self, name: str, shape: Any, dtype: str) -> keras.Variable:
        with distribute.made_alike():
            return self.add_weight(
                shape=shape,
                dtype=dtype,
                initializer="zeros",
                trainable=False,
                autocast=False,
                aggregation="only_first_replica",
                name=name,
            )
