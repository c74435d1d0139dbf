"""When and how much to prune; the one place that touches TF-MOT.

A schedule is a callable `schedule(step) -> (should_prune, sparsity)`, the
contract of TF-MOT's `PruningSchedule`: `step` counts the steps since the task
began, `sparsity` is a fraction of the task's pool.
"""

import importlib
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import tensorflow as tf

from packnet_tf import selection
from packnet_tf.errors import ArgumentError

Schedule = Callable[[Any], tuple[Any, Any]]

_LEGACY_FLAG = "TF_USE_LEGACY_KERAS"


def tfmot_schedules() -> ModuleType:
    """Imports TF-MOT's sparsity API and puts the environment back.

    TF-MOT sets `TF_USE_LEGACY_KERAS` when it is imported, which would turn
    `tf.keras` of every later process and import into Keras 2.

    Returns:
        The module `tensorflow_model_optimization.sparsity.keras`.
    """
    before = os.environ.get(_LEGACY_FLAG)
    try:
        return importlib.import_module(
            "tensorflow_model_optimization.sparsity.keras"
        )
    finally:
        if before is None:
            os.environ.pop(_LEGACY_FLAG, None)
        else:
            os.environ[_LEGACY_FLAG] = before


def get(identifier: "dict[str, Any] | Schedule") -> Schedule:
    """Retrieves a schedule from a config or an instance.

    Args:
        identifier: A callable `schedule(step) -> (should_prune, sparsity)`,
            such as any TF-MOT `PruningSchedule`, or the dict that a TF-MOT
            schedule's `get_config()` returns.

    Returns:
        The schedule.

    Raises:
        ArgumentError: If it is neither.
    """
    if callable(identifier) and not isinstance(identifier, type):
        return identifier
    if isinstance(identifier, dict) and "class_name" in identifier:
        name = identifier["class_name"]
        module = tfmot_schedules()
        found = getattr(module, name, None) if isinstance(name, str) else None
        if isinstance(found, type) and issubclass(
            found, module.PruningSchedule
        ):
            try:
                return found.from_config(identifier.get("config"))
            except (TypeError, ValueError) as error:
                raise ArgumentError(
                    f"That is not the config of a {name}: {error}. "
                    f"Received: {identifier!r}"
                ) from error
    raise ArgumentError(
        "A schedule is a callable `schedule(step) -> (should_prune, "
        "sparsity)`, such as TF-MOT's `PolynomialDecay`, or the config of a "
        f"TF-MOT schedule. Received: {identifier!r}"
    )


def evaluate(schedule: Schedule, step: int) -> tuple[bool, float]:
    """Asks a schedule what to do at one step.

    Args:
        schedule: A callable as `get` returns it.
        step: Int, steps since the task began.

    Returns:
        Whether to prune now, and the sparsity to reach, 0 if not.

    Raises:
        ArgumentError: If the sparsity is not in `[0, 1)`.
    """
    should_prune, sparsity = schedule(tf.constant(step, tf.int64))
    if not bool(np.asarray(should_prune)):
        return False, 0.0
    return True, selection.check_fraction(np.asarray(sparsity))
