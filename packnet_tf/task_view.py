"""An older task of a packed model as a Keras model of its own."""

from typing import Any

import keras

from packnet_tf import visibility
from packnet_tf.labels import ExplainedModel


class TaskView(ExplainedModel):
    """Computes one task of a packed model; shares all of its variables.

    Has its own compiled functions, loss and metrics, so that evaluating one
    task neither disturbs nor retraces another.

    Args:
        packed: The packed model.
        task: Name of the task.
    """

    def __init__(self, packed: keras.Model, task: str) -> None:
        super().__init__(name=f"{packed.name}_{task}", autocast=False)
        self.packed = packed
        self.task = task
        self.built = True

    def call(self, inputs: Any, training: bool = False) -> Any:
        return self.packed(inputs, training=training, task=self.task)

    def test_step(self, data: Any) -> Any:
        with visibility.compiled_selection(self._compiles()):
            return super().test_step(data)

    def predict_step(self, data: Any) -> Any:
        with visibility.compiled_selection(self._compiles()):
            return super().predict_step(data)

    def _compiles(self) -> bool:
        """Tells whether to compile more than Keras does, if it does not."""
        recipe = self.packed.recipe
        return recipe is None or recipe.jit_compile == "auto"

    def _task_of_loss(self) -> str:
        return self.task

    @property
    def losses(self) -> list[Any]:
        return self.packed.losses_of(self.task)


class TaskViews:
    """The views of a model, made when they are first asked for.

    A plain object, so that Keras does not track the views as layers.
    """

    def __init__(self) -> None:
        self._views: dict[str, TaskView] = {}

    def clear(self) -> None:
        """Forgets all views, as after a change of tasks or of compilation."""
        self._views.clear()

    def get(self, packed: keras.Model, task: str) -> TaskView:
        """Returns the view of a task, compiled as the packed model is.

        Args:
            packed: The packed model.
            task: Name of one of its tasks.

        Returns:
            The view.
        """
        if task not in self._views:
            with packed.distribute_strategy.scope():
                view = TaskView(packed, task)
                if packed.compiled:
                    view.compile(
                        optimizer=None, **packed.recipe.fresh_arguments()
                    )
            self._views[task] = view
        return self._views[task]
