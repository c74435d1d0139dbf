"""How a packed model trains."""

import contextlib
from collections.abc import Iterable
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from packnet_tf import carrying
from packnet_tf import compilation
from packnet_tf import distribute
from packnet_tf import update
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import StageError
from packnet_tf.fused_update import FusedUpdate
from packnet_tf.reporting import PackedReporter


class PackedTrainer(PackedReporter):
    """The part of the packed model that trains."""

    @property
    def head_only(self) -> bool:
        """Whether the newest task's head trains alone, as to warm it up.

        The backbone then computes as at inference and stands still, every
        bit of it: weights of all tasks, moving statistics, random state. Its
        own dropout does not act. `steps` does not count such steps.

        A change compiles a compiled model again with the same configuration
        and a fresh optimizer. Adding or freezing a task ends it.
        """
        return self._head_only

    @head_only.setter
    def head_only(self, value: bool) -> None:
        value = bool(value)
        if value == self._head_only:
            return
        self._check_loaded()
        self._refuse_while_training("head_only = ...")
        if value:
            self._tasks.unfrozen("head_only = True")
        self._head_only = value
        self._compile_afresh()

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

        An optimizer that was built for the task before is carried over: it
        stays the same object, `model.optimizer`, and keeps its step count,
        scales and the slots of all variables that both tasks train; those of
        the new head start afresh. Without that, each task starts with a fresh
        optimizer of the same configuration. To carry over the one that Keras
        wrapped in a `LossScaleOptimizer`, take `model.optimizer` before
        `freeze_task()`.

        Args:
            optimizer: Name, or an optimizer: a new one, or one that trained
                an earlier task of this model.
            loss: As in Keras.
            loss_weights: As in Keras. A list of names in this third place is
                taken for `metrics`, which stood there before Keras 3; a name
                is never a weight.
            metrics: As in Keras.
            weighted_metrics: As in Keras.
            **kwargs: As in Keras. With `jit_compile="auto"`, the default, the
                update of the weights is compiled with XLA even where the
                rest of the step is not; with `False` nothing is.

        Raises:
            ArgumentError: If no fresh optimizer can be made from this one, or
                if it cannot be carried over.
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
        with self._carrying(optimizer):
            super().compile(optimizer=optimizer, **arguments)
        self.recipe = recipe
        self._views.clear()

    def get_compile_config(self) -> dict[str, Any] | None:
        config = super().get_compile_config()
        if not config:
            return config
        # Keras keeps the optimizer as it is now, but for what does not decay.
        # The next task starts with the one that `compile` was given. Whether
        # "auto" compiles is for the machine to say that loads it.
        keys = compilation.variable_keys(self.optimizer, self.variables)
        undecayed = [
            compilation.undecayed_to_config(kept, keys)
            for kept in (
                compilation.get_undecayed(self.optimizer),
                self.recipe.undecayed,
            )
        ]
        return {
            **config,
            "auto_scale_loss": self.recipe.arguments.get(
                "auto_scale_loss", True
            ),
            "jit_compile": self.recipe.jit_compile,
            "next_optimizer": self.recipe.optimizer_config(),
            "optimizer_built": bool(self.optimizer and self.optimizer.built),
            "undecayed": undecayed,
        }

    def compile_from_config(self, config: dict[str, Any]) -> None:
        config = dict(config)
        next_optimizer = config.pop("next_optimizer")
        optimizer_built = config.pop("optimizer_built")
        undecayed = config.pop("undecayed", ((), ()))
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.recipe.optimizer = compilation.Recipe.take(
            keras.saving.deserialize_keras_object(next_optimizer), {}
        ).optimizer
        keys = compilation.variable_keys(self.optimizer, self.variables)
        now, later = (
            compilation.undecayed_from_config(kept, keys) for kept in undecayed
        )
        self.recipe.undecayed = later
        compilation.set_undecayed(self.optimizer, now)
        if optimizer_built:
            self.optimizer.build(self.trainable_variables)

    def make_train_function(self, force: bool = False) -> Any:
        if force or self.train_function is None:
            self._fused = FusedUpdate()
        return super().make_train_function(force)

    @distribute.watching
    def fit(self, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        with self._training("fit()"):
            return super().fit(*args, **kwargs)

    @distribute.watching
    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        with self._training("train_on_batch()"):
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
        with self._undone_on_error():
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
            gradients = tape.gradient(loss, variables)
            logs = self.compute_metrics(x, y, y_pred, sample_weight)
            # What may fail comes before the first weight moves.
            computed = filter(tf.is_tensor, keras.tree.flatten(logs))
            with tf.control_dependencies(list(computed)):
                self._apply(zip(gradients, variables), self._fused)
        return logs

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
        self._apply(grads_and_vars, FusedUpdate())

    # Helpers.

    def _apply(
        self,
        grads_and_vars: Iterable[tuple[Any, keras.Variable]],
        fused: FusedUpdate,
    ) -> None:
        task = self._tasks.unfrozen("apply_gradients()")
        pairs = list(grads_and_vars)
        self._freeze_finished()  # In case someone made it trainable.
        self._build_optimizer()
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
        apply_masked = fused.apply_gradients
        if self.recipe and self.recipe.jit_compile != "auto":
            # All of the step is compiled, or nothing is to be.
            apply_masked = update.apply_gradients
        if task.number == 1 and update.may_branch(targets):
            # The first task owns all until it is pruned, in this very graph.
            update.apply_unmasked_if(
                self.pruned.value < 0.0,
                self.optimizer,
                pairs,
                lambda pairs: apply_masked(
                    self.optimizer, pairs, targets, task.number
                ),
            )
        else:
            apply_masked(self.optimizer, pairs, targets, task.number)
        if not self._head_only:
            self.steps.assign_add(1)

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
                "Nothing of the model trains: all of it was made untrainable "
                "by hand, or the head is to train alone and has nothing that "
                "trains. Set `model.trainable = True`, or `model.head_only = "
                "False`; what is frozen stays frozen. Received: no trainable "
                f"variable, head_only={self._head_only}"
            )
        self._build_optimizer()
        if distribute.is_multi_worker(self.distribute_strategy):
            # Each process may have made or loaded another network.
            distribute.align(
                [*self.variables, *optimizer.variables],
                self.distribute_strategy,
            )
        with self.distribute_strategy.scope():
            update.check_optimizer(optimizer, self._targets())
            update.align_averages(optimizer, self._targets(), task.number)

    @contextlib.contextmanager
    def _training(self, action: str) -> Iterator[None]:
        """Prepares for training; drops functions that fail to be traced."""
        self._begin_training(action)
        self._is_training = True
        try:
            with self._forgetting("train_function", "test_function"):
                yield
        finally:
            self._is_training = False

    def _refuse_while_training(self, action: str) -> None:
        if self._is_training:
            raise StageError(
                f"`{action}` waits for the end of `fit()`, which may still "
                "move weights. Call it afterwards, not in a callback. "
                "Received: a model in training"
            )

    @contextlib.contextmanager
    def _undone_on_error(self) -> Iterator[None]:
        """Undoes an eager step that fails; a graph fails before it runs."""
        if not tf.executing_eagerly():
            yield
            return
        # What else a step may assign to: no head of a frozen task.
        newest = self.heads[self._tasks.current("training").name]
        variables = [
            self.steps,
            *(e.variable for e in self._entries if e.owner is None),
            *newest.variables,
        ]
        values = [tf.identity(variable.value) for variable in variables]
        try:
            yield
        except BaseException:
            update.assign(variables, values)
            raise

    @contextlib.contextmanager
    def _carrying(self, optimizer: Any) -> Iterator[None]:
        """Carries an optimizer of an earlier task over; undone on error."""
        variables: list[keras.Variable] = []
        if len(self._tasks) and self._tasks.current("compile()").record is None:
            self._freeze_finished()
            variables = self.trainable_variables
        if not carrying.is_of_others(optimizer, variables):
            yield
            return
        with self.distribute_strategy.scope():
            with carrying.carried(optimizer, variables):
                yield

    def _build_optimizer(self) -> None:
        """Builds the optimizer, or what Keras has put around a built one."""
        optimizer = getattr(self, "optimizer", None)
        if optimizer is None or optimizer.built:
            return
        if tf.distribute.has_strategy() and (
            not tf.distribute.in_cross_replica_context()
        ):
            return
        variables = self.trainable_variables
        with tf.init_scope(), self.distribute_strategy.scope():
            if carrying.is_of_others(optimizer, variables):
                with carrying.carried(optimizer, variables):
                    return
            optimizer.build(variables)
            update.seed_averages(optimizer)

    def _targets(self) -> list[update.Target]:
        owners = {id(entry.variable): entry.owner for entry in self._entries}
        return [
            update.Target(variable, owners.get(id(variable)))
            for variable in self.trainable_variables
        ]


def _are_names(values: Any) -> bool:
    return (
        isinstance(values, (list, tuple))
        and len(values) > 0
        and all(isinstance(value, str) for value in values)
    )
