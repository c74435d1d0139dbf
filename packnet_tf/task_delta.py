"""Task deltas: what one task adds to a model that has those before it."""

import os
from typing import Any

import keras
import numpy as np

from packnet_tf import allocation
from packnet_tf import configurations
from packnet_tf import declarations
from packnet_tf import graphs
from packnet_tf import initial_values
from packnet_tf import ownership
from packnet_tf import pack_format
from packnet_tf import pack_reader
from packnet_tf import pack_writer
from packnet_tf import pruning
from packnet_tf import value_streams
from packnet_tf import variables
from packnet_tf.archive import check_model
from packnet_tf.declarations import Spec
from packnet_tf.errors import FileError
from packnet_tf.errors import StageError
from packnet_tf.errors import TaskError
from packnet_tf.heads import check_protectable
from packnet_tf.model import PackNetModel
from packnet_tf.pack_format import damaged
from packnet_tf.tasks import Stage
from packnet_tf.tasks import Task

_LETTERS = 2  # Of an owner map in a delta: still free, or the task's.


def save_task(
    model: PackNetModel, name: str, path: "str | os.PathLike[str]"
) -> None:
    """Saves what one frozen task adds to those before it.

    Its weights and where they are, what it has of its own, its head and its
    record. A model that has exactly the tasks before it takes it over with
    `load_task`, and computes it bit for bit then. Later tasks that the model
    may have do not matter.

    Args:
        model: The packed model.
        name: Name of the task, the second or a later one.
        path: The file to write, by custom `*.packtask`. What is there already
            stays until the new file is complete.

    Raises:
        ArgumentError: If it is no packed model, or no path.
        TaskError: If there is no such task, or it is the first.
        StageError: If it is not frozen.
        FingerprintError: If a frozen task has changed.
        UnsupportedLayerError: If a layer keeps more than its variables.
        FileError: If the file cannot be written.

    Example:
    >>> packnet_tf.save_task(model, "cars", "cars.packtask")  # doctest: +SKIP
    >>> packnet_tf.load_task(device, "cars.packtask")  # doctest: +SKIP
    """
    check_model(model)
    task = model._tasks.find(name)
    if task.number == 1:
        raise TaskError(
            "Task 1 is the base that deltas add to. Save the whole model with "
            f"`packnet_tf.save_pack(model, path)`. Received: task={name!r}"
        )
    if task.stage is not Stage.FROZEN:
        raise StageError(
            "A delta holds a frozen task. Call `freeze_task()` first. "
            f"Received: task={name!r}, stage={model.stage}"
        )
    model.verify()
    model._parts()
    head = model.heads[name]
    parts = model._parts_of(task.number, head)
    specs = [Spec.of(part, False) for part in parts]
    description = {
        "keras": keras.__version__,
        "base": _base(list(model._tasks)[: task.number - 1]),
        "task": declarations.to_config(task),
        "head": keras.saving.serialize_keras_object(head),
        "variables": specs,
    }
    count = 1 + sum(spec.packed for spec in specs) + len(specs)

    def to_letters(owner: np.ndarray) -> np.ndarray:
        pool = owner[(owner == ownership.FREE) | (owner >= task.number)]
        return (pool == task.number).view(np.uint8)

    with pack_writer.writing(path, pack_format.DELTA, count) as writer:
        writer.describe(description)
        for part, spec in zip(parts, specs):
            owner = None
            if spec.packed:
                owner = variables.view(part.owner)
                section = writer.section(pack_format.OWNERS)
                value_streams.write_owners(section, owner, _LETTERS, to_letters)
            value_streams.write_values(
                writer.section(pack_format.VALUES),
                variables.view(part.variable),
                spec.stored,
                owner,
                lambda owner: owner == task.number,
            )


def load_task(
    model: PackNetModel,
    path: "str | os.PathLike[str]",
    max_bytes: int | None = None,
    safe_mode: bool = True,
) -> None:
    """Adds a task from a file that `save_task` wrote, trained and frozen.

    The model ends as the one that trained it: outputs and fingerprint are
    the same, bit for bit. The task becomes the active one. A compiled model
    is compiled again, as by `add_task`. If anything is refused, nothing has
    changed. The file need not be trusted, as for `load_pack`.

    Args:
        model: A packed model that has exactly the tasks before this one, all
            of them frozen.
        path: The file.
        max_bytes: The most memory that what the task has of its own may take:
            its head, and its copies of variables that are per task. Its
            weights take none, as the model has them. Defaults to twice the
            size of the file and 256 MB.
        safe_mode: As for `load_pack`.

    Raises:
        ArgumentError: If it is no packed model, or `max_bytes` is no positive
            integer.
        StageError: If the newest task is not frozen, or inside of `fit`.
        FileError: If the file cannot be read, is damaged or no task delta, or
            adds to other tasks than the model has.
        FingerprintError: If the task is not what it was when it was frozen,
            or one of the model has changed.
    """
    check_model(model)
    model._refuse_while_training("load_task()")
    model._check_loaded()
    newest = model._newest("load_task()")
    if newest.stage is not Stage.FROZEN:
        raise StageError(
            "A delta adds to frozen tasks. Call `freeze_task()` first, or load "
            "the model anew. Received: "
            f"task={newest.name!r}, stage={newest.stage}"
        )
    with pack_reader.reading(path, pack_format.DELTA, ahead=True) as reader:
        description = reader.description()
        task = declarations.read_task(description.get("task"))
        _check_base(model, task, description.get("base"))
        model.verify()
        pruning.check_released(model._packed())
        specs = declarations.read(description.get("variables"))
        declarations.check_sections(reader, specs, True)
        own = [spec for spec in specs if not spec.packed]
        limit = declarations.check_bytes(own, reader.size, max_bytes)
        head = _make_head(
            model, task, description.get("head"), limit, safe_mode
        )
        parts = model._parts_of(task.number, head)
        declarations.check_same(specs, parts)
        if safe_mode:  # A head that is trusted was checked by `add_task`.
            with declarations.refusing("the configuration of its head"):
                check_protectable(head)

        def fill() -> None:
            for part, spec in zip(parts, specs):
                if spec.packed:
                    value_streams.read_owners(
                        reader.section(pack_format.OWNERS),
                        part.owner,
                        _LETTERS,
                        task.number,
                    )
                value_streams.read_values(
                    reader.section(pack_format.VALUES),
                    part.variable,
                    spec.stored,
                    part.owner,
                    lambda owner: owner == task.number,
                    others=True,
                )

        model._adopt(task, head, fill)


def _base(tasks: list[Task]) -> list[list[str]]:
    """Returns what tells the tasks apart that a delta adds to."""
    return [[task.name, task.record.fingerprint] for task in tasks]


def _check_base(model: PackNetModel, task: Task, base: Any) -> None:
    """Checks that a delta adds to the tasks that a model has."""
    own = _base(list(model._tasks))
    if task.number != len(own) + 1:
        raise FileError(
            f"This is task {task.number} of a model; it adds to one with "
            f"{task.number - 1} tasks. Load the tasks in their order, each "
            f"once. Received: task {task.name!r} for a model with "
            f"{len(own)} tasks, {model.task_names}"
        )
    if base != own:
        raise FileError(
            "The task was trained on top of other tasks. Load it into a copy "
            "of the model that it comes from. Received: a task on top of "
            f"{str(base)[:500]}, expected {own}"
        )
    if task.stage is not Stage.FROZEN:
        raise damaged("its task is not frozen", f"stage={task.stage}")
    with declarations.refusing("the name of its task"):
        model._tasks.check_new(task.name)


def _make_head(
    model: PackNetModel, task: Task, config: Any, limit: int, safe_mode: bool
) -> keras.Model:
    """Makes the head that a file describes, without its weights."""
    if safe_mode:
        configurations.check(config)
    with (
        declarations.refusing("the configuration of its head"),
        model.distribute_strategy.scope(),
        initial_values.unset(),
        allocation.bounded(limit),  # Sees them first, as they were asked.
    ):
        head = keras.saving.deserialize_keras_object(
            config, safe_mode=safe_mode
        )
        if not graphs.is_graph(head) or head.name != task.name:
            raise damaged("its head is no Functional model", repr(head)[:200])
        # Keras 3.10 makes a list of what was one input.
        features, taken = (
            [(tuple(x.shape), x.dtype) for x in keras.tree.flatten(tensors)]
            for tensors in (model.backbone.output, head.input)
        )
        if features != taken:
            raise damaged(
                "its head takes other features", f"{taken}, expected {features}"
            )
    return head
