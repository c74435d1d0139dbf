"""Keras callbacks: pruning on a schedule."""

from typing import Any

import keras

from packnet_tf import criteria
from packnet_tf import gradients
from packnet_tf import schedules
from packnet_tf import selection
from packnet_tf.errors import ArgumentError
from packnet_tf.model import PackNetModel


class PruneOnSchedule(keras.callbacks.Callback):
    """Prunes the current task while it trains, when its schedule says so.

    The schedule is asked after every step, with the number of steps since
    the task began, and once before the first. A sparsity of 0 is ignored, as
    in TF-MOT. The sparsity reached is added to the logs of each epoch as
    `"sparsity"`.

    Args:
        schedule: Any TF-MOT `PruningSchedule`, a callable of the same
            contract, `schedule(step) -> (should_prune, sparsity)`, or the
            config of a TF-MOT schedule. Sparsities are fractions of the
            task's pool.
        criterion: How weights are ranked, as `packnet_tf.criteria.get` takes
            it.
        scope: `"layer"` or `"global"`, as for `PackNetModel.prune`.
        data: What a criterion such as `"taylor"` computes gradients on, as
            for `PackNetModel.prune`; anew each time it prunes.

    Raises:
        ArgumentError: If there is no such schedule, criterion or scope, or
            if the criterion needs other data; when training begins, if the
            model is not packed.
        StageError: While training, if the schedule asks for a lower sparsity
            than is reached already.

    Example:
    ```python
    from tensorflow_model_optimization.sparsity.keras import PolynomialDecay

    schedule = PolynomialDecay(0.0, 0.75, begin_step=0, end_step=2000)
    model.fit(data, callbacks=[packnet_tf.PruneOnSchedule(schedule)])
    ```
    """

    def __init__(
        self,
        schedule: "dict[str, Any] | schedules.Schedule",
        criterion: "str | dict[str, Any] | criteria.Criterion" = "magnitude",
        scope: str = "layer",
        data: Any = None,
    ) -> None:
        super().__init__()
        self.schedule = schedules.get(schedule)
        self.criterion = criteria.get(criterion)
        self.scope = selection.check_scope(scope)
        if self.criterion.gradient is not None:
            gradients.check_data(data)
        self.data = data
        self._asked = 0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if not isinstance(self.model, PackNetModel):
            raise ArgumentError(
                "`PruneOnSchedule` prunes packed models. Wrap the model with "
                "`packnet_tf.wrap()` first. "
                f"Received: model of type {type(self.model).__name__}"
            )
        self._asked = int(self.model.steps.numpy())
        if self._asked == 0:
            self._ask(0, 0)

    def on_train_batch_end(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        made = 1
        if self.model.steps_per_execution > 1:
            # This comes once for several steps, and Keras' versions differ in
            # which of them `batch` is.
            made = int(self.model.steps.numpy()) - self._asked
        self._ask(self._asked + 1, self._asked + made)
        self._asked += made

    def on_epoch_end(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        if logs is not None:
            logs["sparsity"] = self.model.sparsity

    def _ask(self, first: int, last: int) -> None:
        """Follows the schedule over the steps `first` to `last`."""
        wanted = 0.0
        for step in range(first, last + 1):
            should_prune, sparsity = schedules.evaluate(self.schedule, step)
            if should_prune and sparsity > 0.0:
                wanted = sparsity
        if wanted > 0.0 and wanted != self.model.sparsity:
            self.model.prune(wanted, self.criterion, self.scope, self.data)
