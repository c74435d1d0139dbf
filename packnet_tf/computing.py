"""How a packed model computes its tasks."""

import contextlib
from collections.abc import Collection
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from packnet_tf import compilation
from packnet_tf import distribute
from packnet_tf import inventory
from packnet_tf import trainability
from packnet_tf import visibility
from packnet_tf.errors import StageError
from packnet_tf.fused_update import FusedUpdate
from packnet_tf.labels import ExplainedModel
from packnet_tf.task_view import TaskViews
from packnet_tf.tasks import Stage
from packnet_tf.tasks import Task
from packnet_tf.tasks import TaskList


class PackedComputer(ExplainedModel):
    """The part of the packed model that computes and evaluates.

    Args:
        backbone: The shared packed network.
        heads: The head of each task, by the task's name.
        tasks: The tasks, in order.
        left_out: Why a weight is not packed, by the variable's key.
        empty_pools: Keys of the packed weights of which the newest task owns
            nothing.
        **kwargs: As for `keras.Model`.

    Attributes:
        backbone: The shared packed network.
        heads: The head of each task, by the task's name.
        recipe: How the model was compiled, `None` before.
        steps: `int64` variable, optimizer steps since the task began, those
            under `head_only` left out.
        pruned: `float64` variable, the newest task's sparsity, -1 before it
            is pruned.
    """

    def __init__(
        self,
        backbone: keras.Model,
        heads: dict[str, keras.Model],
        tasks: TaskList,
        left_out: dict[str, str],
        empty_pools: Collection[str],
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        self.backbone = backbone
        self.heads = dict(heads)
        self._tasks = tasks
        self._active = tasks.names[-1] if len(tasks) else None
        self._entries = tuple(inventory.take(backbone, left_out))
        # Keras' order of the variables, which a saved optimizer goes by.
        places = {id(e.variable): n for n, e in enumerate(self._entries)}
        self._order = tuple(
            places[id(variable)]
            for variable in backbone.variables
            if id(variable) in places
        )
        self._left_out = dict(left_out)
        self._empty_pools = set(empty_pools)
        # Frozen tasks come with fingerprints, and weights only later.
        self._unverified = any(task.record for task in tasks)
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
        self._is_training = False
        self._head_only = False
        self._fused = FusedUpdate()

    # Variables. Keras would walk all heads, and what all tasks keep, to list
    # those that train, several times in each training step.

    @property
    def trainable_variables(self) -> list[keras.Variable]:
        """What may train: of the backbone, and of the newest task's head.

        Of the backbone nothing does while `head_only` is set.
        """
        if not self.trainable:
            return []
        found = []
        if not self._head_only:
            found = [self._entries[place].variable for place in self._order]
        if len(self._tasks):
            newest = self._tasks.current("training")
            if newest.stage is not Stage.FROZEN:
                found += self.heads[newest.name].variables
        return [variable for variable in found if variable.trainable]

    @property
    def trainable_weights(self) -> list[keras.Variable]:
        return self.trainable_variables

    @property
    def non_trainable_variables(self) -> list[keras.Variable]:
        training = {id(variable) for variable in self.trainable_variables}
        return [v for v in self.variables if id(v) not in training]

    @property
    def non_trainable_weights(self) -> list[keras.Variable]:
        training = {id(variable) for variable in self.trainable_variables}
        return [v for v in self.weights if id(v) not in training]

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
            training: Whether to compute as in training, which a frozen task
                never does.
            task: Name of a task. Defaults to the active one.

        Returns:
            The outputs of the task's head, or the backbone's features before
            the first task is added.

        Raises:
            TaskError: If there is no such task.
            StageError: If a frozen task is computed as in training.
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
        # A layer of a head may assign to its variables when it trains.
        if chosen.stage is Stage.FROZEN and training not in (None, False):
            raise StageError(
                f"Task '{chosen.name}' is frozen and computes for inference "
                "only. Train the newest task, or begin one with `add_task()`. "
                f"Received: training={training}, task={chosen.name!r}"
            )
        # The raw weights are those of the newest task. A graph that outlives
        # its being the newest must not read them once it is frozen; the
        # model's own functions are dropped when the next task begins.
        raw = newest and (
            chosen.stage is not Stage.FROZEN
            or self._in_own_step
            or tf.executing_eagerly()
        )
        # No statistics and no random state move where the head trains alone.
        of_backbone = False if training and self._head_only else training
        with visibility.visible_task(None if raw else chosen.number):
            features = self.backbone(inputs, training=of_backbone)
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

    def test_step(self, data: Any) -> dict[str, Any]:
        with self._own_step():
            return super().test_step(data)

    def predict_step(self, data: Any) -> Any:
        with self._own_step():
            return super().predict_step(data)

    # Evaluating and predicting. Every task has compiled functions of its own.

    @distribute.watching
    def evaluate(
        self, *args: Any, task: str | None = None, **kwargs: Any
    ) -> Any:
        if kwargs.get("_use_cached_eval_dataset"):
            return super().evaluate(*args, **kwargs)  # Validation in `fit`.
        view = self._view(task)
        with (view or self)._forgetting("test_function"):
            if view is not None:
                return view.evaluate(*args, **kwargs)
            return super().evaluate(*args, **kwargs)

    @distribute.watching
    def predict(
        self, *args: Any, task: str | None = None, **kwargs: Any
    ) -> Any:
        view = self._view(task)
        if view is not None:
            return view.predict(*args, **kwargs)
        return super().predict(*args, **kwargs)

    @distribute.watching
    def test_on_batch(
        self, *args: Any, task: str | None = None, **kwargs: Any
    ) -> Any:
        view = self._view(task)
        with (view or self)._forgetting("test_function"):
            if view is not None:
                return view.test_on_batch(*args, **kwargs)
            return super().test_on_batch(*args, **kwargs)

    @distribute.watching
    def predict_on_batch(
        self, *args: Any, task: str | None = None, **kwargs: Any
    ) -> Any:
        view = self._view(task)
        if view is not None:
            return view.predict_on_batch(*args, **kwargs)
        return super().predict_on_batch(*args, **kwargs)

    # Helpers.

    def _task_of_loss(self) -> str | None:
        return self._tasks.names[-1] if len(self._tasks) else None

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
        trainability.freeze_left_out(self._entries, self._empty_pools)
        frozen = [task for task in self._tasks if task.stage is Stage.FROZEN]
        if frozen:
            trainability.freeze_heads(self.heads[t.name] for t in frozen)
            trainability.freeze_shared(self.backbone, self._entries)

    @contextlib.contextmanager
    def _own_step(self) -> Iterator[None]:
        """Marks a step of the model's own functions: the newest task's."""
        self._in_own_step = True
        try:
            yield
        finally:
            self._in_own_step = False

    def _view(self, task: str | None) -> "keras.Model | None":
        """Returns the view of a task, `None` for the newest."""
        self._check_loaded()
        if task is None and self._active is None:
            return None
        chosen = self._tasks.find(self._active if task is None else task)
        if chosen.number == len(self._tasks):
            return None
        return self._views.get(self, chosen.name)
