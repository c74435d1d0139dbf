"""What to say when the loss cannot take a head's outputs and the labels."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from packnet_tf.distribute import ReplicatedModel
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import PackNetError

# What Keras, TensorFlow and losses of a user's own raise on a misfit.
_MISFITS = (
    IndexError,
    KeyError,
    TypeError,
    ValueError,
    tf.errors.InvalidArgumentError,
)


@contextlib.contextmanager
def explained(task: str | None, y: Any, y_pred: Any) -> Iterator[None]:
    """Names task and shapes when computing a loss or metrics fails.

    Args:
        task: Name of the task, `None` for a backbone without tasks.
        y: The labels: a structure of tensors, or `None`.
        y_pred: The outputs: a structure of tensors.

    Yields:
        Once; the loss is computed in the body.

    Raises:
        ArgumentError: If the body fails as it does on shapes that do not fit.
    """
    try:
        yield
    except PackNetError:
        raise
    except _MISFITS as error:
        of = f"task {task!r}" if task else "a backbone without tasks"
        raise ArgumentError(
            f"The loss or a metric cannot take the outputs of {of} with these "
            "labels. Give labels that fit its head, or call `compile()` with "
            f"a loss and metrics that do. {_first_line(error)} Received: "
            f"outputs of shape {_shapes(y_pred)}, labels of shape {_shapes(y)}"
        ) from error


class ExplainedModel(ReplicatedModel):
    """A model whose loss and metrics tell of the task when they fail."""

    def _task_of_loss(self) -> str | None:
        """Returns the name of the task that the loss is computed of."""
        raise NotImplementedError

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        with explained(self._task_of_loss(), y, y_pred):
            return super().compute_loss(
                x=x,
                y=y,
                y_pred=y_pred,
                sample_weight=sample_weight,
                training=training,
            )

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        with explained(self._task_of_loss(), y, y_pred):
            return super().compute_metrics(
                x, y, y_pred, sample_weight=sample_weight
            )

    @contextlib.contextmanager
    def _forgetting(self, *functions: str) -> Iterator[None]:
        """Drops compiled functions if the body raises.

        A function that failed while it was traced for the first time cannot
        be used again.

        Args:
            *functions: Names of attributes, such as `"test_function"`.

        Yields:
            Once.
        """
        try:
            yield
        except Exception:
            for name in functions:
                setattr(self, name, None)
            raise


def _first_line(error: BaseException) -> str:
    text = getattr(error, "message", "") or (error.args or [""])[0]
    lines = str(text).strip().splitlines()
    return f"It says: {lines[0]}" if lines else f"It is: {error!r}"


def _shapes(structure: Any) -> str:
    def describe(x: Any) -> Any:
        shape = getattr(x, "shape", None)
        if shape is None:
            return None if x is None else type(x).__name__
        known = getattr(shape, "rank", 0) is not None
        return tuple(shape) if known else "unknown"

    return str(keras.tree.map_structure(describe, structure))
