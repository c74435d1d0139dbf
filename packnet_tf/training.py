"""How a packed model computes, trains and is evaluated."""

import contextlib
from collections.abc import Iterable
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from packnet_tf import compilation
from packnet_tf import inventory
from packnet_tf import layers
from packnet_tf import update
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import StageError
from packnet_tf.task_view import TaskViews
from packnet_tf.tasks import Stage
from packnet_tf.tasks import Task
from packnet_tf.tasks import TaskList


class PackedTrainer(keras.Model):
    """The part of the packed model that computes, trains and evaluates.

    Args:
        backbone: The shared packed network.
        heads: The head of each task, by the task's name.
        tasks: The tasks, in order.
        left_out: Why a weight is not packed, by the variable's key.
        **kwargs: As for `keras.Model`.

    Attributes:
        backbone: The shared packed network.
        heads: The head of each task, by the task's name.
        recipe: How the model was compiled, `None` before.
        steps: `int64` variable, optimizer steps since the task began.
        pruned: `float64` variable, the newest task's sparsity, -1 before it
            is pruned.
    """

    def __init__(
        self,
        backbone: keras.Model,
        heads: dict[str, keras.Model],
        tasks: TaskList,
        left_out: dict[str, str],
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        self.backbone = backbone
        self.heads = dict(heads)
        self._tasks = tasks
        self._active = tasks.names[-1] if len(tasks) else None
        self._entries = tuple(inventory.take(backbone, left_out))
        self._left_out = dict(left_out)
        self.recipe: compilation.Recipe | None = None
        self.steps = self.add_weight(
            name="steps",
            shape=(),
            dtype="int64",
            initializer="zeros",
            trainable=False,
            aggregation="only_first_replica",
        )
        # How far the newest task is pruned, negative before. A variable, so
        # that callbacks which put weights back put it back with them.
        self.pruned = self.add_weight(
            name="pruned",
            shape=(),
            dtype="float64",
            initializer=keras.initializers.Constant(-1.0),
            trainable=False,
            aggregation="only_first_replica",
        )
        self._views = TaskViews()
        self._in_own_step = False

    # Computing.

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._check_loaded()
        return super().__call__(*args, **kwargs)

    def call(
        self,
        inputs: Any,
        training: bool | None = None,
        task: str | None = None,
    ) -> Any:
        """Computes one task.

        Args:
            inputs: As the backbone takes them.
            training: Whether to compute as in training; the newest task only.
            task: Name of a task. Defaults to the active one.

        Returns:
            The outputs of the task's head, or the backbone's features before
            the first task is added.

        Raises:
            TaskError: If there is no such task.
            StageError: If an older task is computed as in training.
        """
        if training:
            self._freeze_finished()  # In case someone made it trainable.
        if task is None and self._active is None:
            return self.backbone(inputs, training=training)
        if task is None and self._in_own_step:
            chosen = self._tasks.current("call")
        else:
            chosen = self._tasks.find(self._active if task is None else task)
        newest = chosen.number == len(self._tasks)
        if training is True and not newest:
            raise StageError(
                f"Task '{chosen.name}' is frozen and computes for inference "
                "only. Train the newest task. Received: training=True, "
                f"task={chosen.name!r}"
            )
        # The raw weights are those of the newest task. A graph that outlives
        # its being the newest must not read them once it is frozen; the
        # model's own functions are dropped when the next task begins.
        raw = newest and (
            chosen.stage is not Stage.FROZEN
            or self._in_own_step
            or tf.executing_eagerly()
        )
        with layers.visible_task(None if raw else chosen.number):
            features = self.backbone(inputs, training=training)
        return self.heads[chosen.name](features, training=training)

    @property
    def losses(self) -> list[Any]:
        if self._active is None:
            return self.backbone.losses
        return self.losses_of(self._active)

    def losses_of(self, task: str) -> list[Any]:
        """Returns the added and regularization losses of one task.

        Weight regularizers count while a task trains. Those of a frozen task
        do not, as in Keras: it cannot act on them.

        Args:
            task: Name of a task.

        Returns:
            Scalars.
        """
        parts = [self.backbone, self.heads[task]]
        if self._tasks.find(task).stage is not Stage.FROZEN:
            return [loss for part in parts for loss in part.losses]
        losses = []
        for part in parts:
            regularized = sum(
                variable.regularizer is not None
                for variable in part.trainable_variables
            )
            added = len(part.losses) - regularized
            losses.extend(part.losses[:added])
        return losses

    # Training.

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        loss_weights: Any = None,
        metrics: Any = None,
        weighted_metrics: Any = None,
        **kwargs: Any,
    ) -> None:
        """Configures the model for training, as in Keras.

        Args:
            optimizer: Name, or an optimizer that has made no step.
            loss: As in Keras.
            loss_weights: As in Keras. A list of names in this third place is
                taken for `metrics`, which stood there before Keras 3; a name
                is never a weight.
            metrics: As in Keras.
            weighted_metrics: As in Keras.
            **kwargs: As in Keras.

        Raises:
            ArgumentError: If no fresh optimizer can be made from this one.
            ValueError: If Keras refuses an argument.
            TypeError: If Keras has no such argument.
        """
        if metrics is None and _are_names(loss_weights):
            loss_weights, metrics = None, loss_weights
        optimizer = keras.optimizers.get(optimizer)
        arguments = {
            "loss": loss,
            "loss_weights": loss_weights,
            "metrics": metrics,
            "weighted_metrics": weighted_metrics,
            **kwargs,
        }
        recipe = compilation.Recipe.take(optimizer, arguments)
        # Keras sets one thing after the other and checks in between. What it
        # refuses must not leave this model half compiled.
        keras.Sequential(name="trial").compile(optimizer=None, **arguments)
        super().compile(optimizer=optimizer, **arguments)
        self.recipe = recipe
        self._views.clear()

    def get_compile_config(self) -> dict[str, Any] | None:
        config = super().get_compile_config()
        if not config:
            return config
        # Keras keeps the optimizer as it is now. The next task starts with
        # the one that `compile` was given.
        return {
            **config,
            "next_optimizer": self.recipe.optimizer_config(),
            "optimizer_built": bool(self.optimizer and self.optimizer.built),
        }

    def compile_from_config(self, config: dict[str, Any]) -> None:
        config = dict(config)
        next_optimizer = config.pop("next_optimizer")
        optimizer_built = config.pop("optimizer_built")
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.recipe.optimizer = compilation.Recipe.take(
            keras.saving.deserialize_keras_object(next_optimizer), {}
        ).optimizer
        if optimizer_built:
            self.optimizer.build(self.trainable_variables)

    def fit(self, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        self._begin_training("fit()")
        return super().fit(*args, **kwargs)

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        self._begin_training("train_on_batch()")
        return super().train_on_batch(*args, **kwargs)

    def train_step(self, data: Any) -> dict[str, Any]:
        """Makes one step on what the current task owns.

        Args:
            data: What the data set yields: `x`, `(x, y)` or
                `(x, y, sample_weight)`.

        Returns:
            The metrics, by name.
        """
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        task = self._tasks.unfrozen("train_step()")
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True, task=task.name)
            loss = self.compute_loss(
                x=x,
                y=y,
                y_pred=y_pred,
                sample_weight=sample_weight,
                training=True,
            )
            batch_size = tf.shape(keras.tree.flatten(x)[0])[0]
            self.metrics[0].update_state(
                loss * replicas, sample_weight=batch_size
            )
            loss = self.optimizer.scale_loss(loss)
        variables = self.trainable_variables
        self.apply_gradients(zip(tape.gradient(loss, variables), variables))
        return self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    def apply_gradients(
        self, grads_and_vars: Iterable[tuple[Any, keras.Variable]]
    ) -> None:
        """Makes one optimizer step that keeps all frozen tasks exact.

        To be called instead of `optimizer.apply_gradients` in a training
        loop of one's own. Make a new `tf.function` for each task.

        Args:
            grads_and_vars: Gradients and variables, as for
                `optimizer.apply_gradients`; the variables from
                `model.trainable_variables`.

        Raises:
            ArgumentError: If a variable is frozen or not the model's, or if
                the optimizer was built for other variables.
            StageError: If there is no task, or it is frozen.
        """
        task = self._tasks.unfrozen("apply_gradients()")
        pairs = list(grads_and_vars)
        targets = self._targets()
        known = {id(target.variable) for target in targets}
        for _, variable in pairs:
            if id(variable) not in known:
                raise ArgumentError(
                    "Gradients are applied to `model.trainable_variables` "
                    "only; all else is frozen. "
                    f"Received: variable {variable.path!r}"
                )
        update.check_optimizer(self.optimizer, targets)
        update.apply_gradients(self.optimizer, pairs, targets, task.number)
        self.steps.assign_add(1)

    def test_step(self, data: Any) -> dict[str, Any]:
        with self._own_step():
            return super().test_step(data)

    def predict_step(self, data: Any) -> Any:
        with self._own_step():
            return super().predict_step(data)

    # Evaluating and predicting. Every task has compiled functions of its own.

    def evaluate(
        self, *args: Any, task: str | None = None, **kwargs: Any
    ) -> Any:
        if kwargs.get("_use_cached_eval_dataset"):
            return super().evaluate(*args, **kwargs)  # Validation in `fit`.
        view = self._view(task)
        if view is not None:
            return view.evaluate(*args, **kwargs)
        return super().evaluate(*args, **kwargs)

    def predict(
        self, *args: Any, task: str | None = None, **kwargs: Any
    ) -> Any:
        view = self._view(task)
        if view is not None:
            return view.predict(*args, **kwargs)
        return super().predict(*args, **kwargs)

    def test_on_batch(
        self, *args: Any, task: str | None = None, **kwargs: Any
    ) -> Any:
        view = self._view(task)
        if view is not None:
            return view.test_on_batch(*args, **kwargs)
        return super().test_on_batch(*args, **kwargs)

    def predict_on_batch(
        self, *args: Any, task: str | None = None, **kwargs: Any
    ) -> Any:
        view = self._view(task)
        if view is not None:
            return view.predict_on_batch(*args, **kwargs)
        return super().predict_on_batch(*args, **kwargs)

    # Helpers.

    def _newest(self, action: str) -> Task:
        """Returns the newest task, its record brought up to date."""
        task = self._tasks.current(action)
        if task.stage is not Stage.FROZEN:
            pruned = float(self.pruned.numpy())
            task.stage = Stage.TRAIN if pruned < 0.0 else Stage.RETRAIN
            task.sparsity = max(pruned, 0.0)
        return task

    def _packed(self) -> list[inventory.Entry]:
        return [entry for entry in self._entries if entry.owner is not None]

    def _check_loaded(self) -> None:
        """Verifies a model that was just loaded, before its first use."""
        raise NotImplementedError

    def _freeze_finished(self) -> None:
        """Makes untrainable whatever a frozen task computes with."""
        raise NotImplementedError

    def _compile_afresh(self) -> None:
        """Compiles again as before, with an optimizer that has no state."""
        self._views.clear()
        # What was traced has the tasks of then in it.
        self.train_function = None
        self.test_function = None
        self.predict_function = None
        if self.recipe is None:
            return
        with self.distribute_strategy.scope():
            super().compile(
                optimizer=self.recipe.fresh_optimizer(),
                **self.recipe.fresh_arguments(),
            )

    @contextlib.contextmanager
    def _own_step(self) -> Iterator[None]:
        """Marks a step of the model's own functions: the newest task's."""
        self._in_own_step = True
        try:
            yield
        finally:
            self._in_own_step = False

    def _begin_training(self, action: str) -> None:
        """Checks that the current task may train, and prepares for it."""
        self._check_loaded()
        task = self._tasks.unfrozen(action)
        if self._active != task.name:
            raise StageError(
                f"`{action}` trains the newest task. Call "
                f"`set_task({task.name!r})` first. Received: "
                f"task={self._active!r}, which is frozen"
            )
        self._freeze_finished()
        optimizer = getattr(self, "optimizer", None)
        if optimizer is None:
            return
        if not self.trainable_variables:
            raise StageError(
                "Nothing of the model trains, as all of it was made "
                "untrainable by hand. Set `model.trainable = True`; what is "
                "frozen stays frozen. Received: no trainable variable"
            )
        with self.distribute_strategy.scope():
            if not optimizer.built:
                optimizer.build(self.trainable_variables)
                update.seed_averages(optimizer)
            update.check_optimizer(optimizer, self._targets())
            update.align_averages(optimizer, self._targets(), task.number)

    def _targets(self) -> list[update.Target]:
        owners = {id(entry.variable): entry.owner for entry in self._entries}
        return [
            update.Target(variable, owners.get(id(variable)))
            for variable in self.trainable_variables
        ]

    def _view(self, task: str | None) -> "keras.Model | None":
        """Returns the view of a task, `None` for the newest."""
        self._check_loaded()
        if task is None and self._active is None:
            return None
        chosen = self._tasks.find(self._active if task is None else task)
        if chosen.number == len(self._tasks):
            return None
        return self._views.get(self, chosen.name)


def _are_names(values: Any) -> bool:
    return (
        isinstance(values, (list, tuple))
        and len(values) > 0
        and all(isinstance(value, str) for value in values)
    )
