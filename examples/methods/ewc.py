"""Elastic weight consolidation: important weights are held by a spring."""

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from loading import joined
from loading.datasets import Dataset
from methods import baselines


class ElasticWeightConsolidation(baselines.FineTuning):
    """Penalizes what was important for earlier tasks when it moves.

    The importance of a weight is the mean over images of the squared
    derivative of the log probability of a class, drawn from what the network
    predicts: the diagonal of the Fisher information. The penalties of all
    earlier tasks are added up.

    Reference:
        - [Kirkpatrick et al., 2017](https://arxiv.org/abs/1612.00796)
    """

    importance: list[np.ndarray] | None = None
    anchors: list[np.ndarray] | None = None

    def begin(self) -> None:
        if self.keep:
            data = joined.join(self.setting.data, self.keep)
            self._consolidate(self.keep, data)

    def make_model(self, tasks: list[str]) -> keras.Model:
        model = super().make_model(tasks)
        if self.importance is None:
            return model
        held = _Held(model.inputs[0], model.outputs[0], name=model.name)
        held.hold(
            self._held_variables(),
            self.importance,
            self.anchors,
            self.setting.recipe.ewc_strength,
        )
        return held

    def end_group(self, tasks: list[str]) -> None:
        (task,) = tasks
        self._consolidate(task, self.setting.find(task))

    def extra_arrays(self) -> dict[str, np.ndarray]:
        if self.importance is None:
            return {}
        return {
            **{f"importance/{i}": x for i, x in enumerate(self.importance)},
            **{f"anchors/{i}": x for i, x in enumerate(self.anchors)},
        }

    def take_extra_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        if "importance/0" in arrays:
            count = len(self._held_variables())
            self.importance = [arrays[f"importance/{i}"] for i in range(count)]
            self.anchors = [arrays[f"anchors/{i}"] for i in range(count)]

    def _held_variables(self) -> list[keras.Variable]:
        return self.network.trunk.trainable_variables

    def _consolidate(self, task: str, data: Dataset) -> None:
        """Adds the importance of the weights for a task, as they are now."""
        new = self._measure(task, data)
        now = [variable.numpy() for variable in self._held_variables()]
        if self.importance is None:
            self.importance, self.anchors = new, now
            return
        # The sum of two such penalties is another, but for a constant.
        for index, (old, add) in enumerate(zip(self.importance, new)):
            total = old + add
            weight = np.divide(add, total, np.zeros_like(add), where=total > 0)
            anchor = self.anchors[index]
            self.anchors[index] = anchor + weight * (now[index] - anchor)
            self.importance[index] = total

    def _measure(self, task: str, data: Dataset) -> list[np.ndarray]:
        seed, count = self.setting.seed, self.setting.recipe.ewc_samples
        places = np.random.default_rng(seed).permutation(len(data.train))
        part = dataclasses.replace(
            data.train, rows=data.train.rows[np.sort(places[:count])]
        )
        one_by_one = dataclasses.replace(self.setting.pipeline, batch_size=1)
        model = self.network.model([task])
        # Replicas have a copy each; they are equal.
        local = tf.distribute.get_strategy().experimental_local_results
        variables = [local(v.value)[0] for v in self._held_variables()]

        @tf.function
        def square(x: tf.Tensor, index: tf.Tensor) -> list[tf.Tensor]:
            with tf.GradientTape() as tape:
                outputs = tf.cast(model(x, training=False), tf.float32)
                logs = tf.math.log(tf.maximum(outputs, 1e-12))
                drawn = tf.random.stateless_categorical(
                    logs, 1, tf.stack([tf.cast(seed, index.dtype), index])
                )
                chosen = tf.gather(logs, drawn, axis=1, batch_dims=1)
            found = tape.gradient(
                chosen, variables, unconnected_gradients="zero"
            )
            return [tf.square(gradient) for gradient in found]

        total = [np.zeros(v.shape, np.float32) for v in variables]
        batches = one_by_one.evaluation(data, part)
        for index, (x, _) in batches.enumerate():
            for sums, value in zip(total, square(x, index)):
                sums += value.numpy()
        return [sums / max(len(part), 1) for sums in total]


class _Held(keras.Model):
    """A model whose loss has the penalty."""

    def hold(
        self,
        variables: list[keras.Variable],
        importance: list[np.ndarray],
        anchors: list[np.ndarray],
        strength: float,
    ) -> None:
        """Sets what is held, where, how much, and how strongly in all."""
        # As tensors, or they would be part of the graph, which has a limit.
        held = [
            (variable, tf.constant(weights), tf.constant(anchor))
            for variable, weights, anchor in zip(variables, importance, anchors)
        ]
        self._hold = lambda: held
        self._strength = strength

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        if not training:
            return loss
        penalty = keras.ops.zeros((), "float32")
        for variable, importance, anchor in self._hold():
            moved = keras.ops.cast(variable, "float32") - anchor
            penalty += keras.ops.sum(importance * moved * moved)
        # The gradients of all replicas are added up.
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        return loss + 0.5 * self._strength / replicas * penalty
