"""Pack files: a whole packed model in little more than its owned weights."""

import os
import warnings
from typing import Any

import keras
import numpy as np

from packnet_tf import allocation
from packnet_tf import configurations
from packnet_tf import declarations
from packnet_tf import fingerprint
from packnet_tf import flat_values
from packnet_tf import initial_values
from packnet_tf import ownership
from packnet_tf import pack_format
from packnet_tf import pack_reader
from packnet_tf import pack_writer
from packnet_tf import pruning
from packnet_tf import value_streams
from packnet_tf import variables
from packnet_tf.archiving import Part
from packnet_tf.declarations import Spec
from packnet_tf.errors import ArgumentError
from packnet_tf.heads import check_protectable
from packnet_tf.model import PackNetModel
from packnet_tf.pack_reader import Reader
from packnet_tf.pack_writer import Writer


def save_pack(
    model: PackNetModel,
    path: "str | os.PathLike[str]",
    dtype: str | None = None,
) -> None:
    """Saves a packed model in as few bytes as it needs.

    Every owned weight is in the file once, no free one; the owner maps are
    coded close to their entropy. The stage is kept, and with it the steps,
    the sparsity and the random state. The optimizer and what `compile` was
    given are not: to go on with a training, save the model as `.keras`.

    If so few weights of a large network are owned that `load_pack` has to be
    allowed more memory than by default, a warning says how much. Up to some
    fifty million weights that never happens.

    Args:
        model: The packed model, in any stage.
        path: The file to write, by custom `*.packnet`. What is there already
            stays until the new file is complete.
        dtype: `"bfloat16"` to round what is `float32` or `float64` to it, for
            half of the size; all else stays as it is. That loses what cannot
            be had back: the outputs are others, and so are the fingerprints,
            which in the file are those of the rounded values. The model
            itself does not change.

    Raises:
        ArgumentError: If it is no packed model, or no path, or if there is no
            such `dtype`.
        FingerprintError: If a frozen task has changed.
        StageError: If weights that a task has released are not zero.
        UnsupportedLayerError: If a layer keeps more than its variables.
        FileError: If the file cannot be written.

    Example:
    >>> packnet_tf.save_pack(model, "model.packnet")  # doctest: +SKIP
    >>> model = packnet_tf.load_pack("model.packnet")  # doctest: +SKIP

    Reference:
        - docs/pack_format.md
    """
    check_model(model)
    if dtype not in (None, flat_values.ROUNDED):
        raise ArgumentError(
            f"`dtype` is None, to keep every bit, or {flat_values.ROUNDED!r}, "
            f"to round. Received: dtype={dtype!r}"
        )
    model.verify()
    tasks = len(model.task_names)
    if tasks:
        pruning.check_released(model._packed())
    parts = model._parts()
    specs = [Spec.of(part, dtype is not None) for part in parts]
    description = {
        "keras": keras.__version__,
        "rounded": declarations.is_rounded(specs),
        "model": _config_of(model, dtype is not None),
        "variables": specs,
    }
    maps = sum(spec.packed for spec in specs) if tasks else 0
    count = 1 + maps + len(specs)
    with pack_writer.writing(path, pack_format.PACK, count) as writer:
        writer.describe(description)
        for part, spec in zip(parts, specs):
            _write(writer, part, spec, tasks)
    needed = declarations.more_than_default(specs, writer.size)
    if needed is not None:
        warnings.warn(
            f"The pack file has {writer.size} bytes, as few weights are owned, "
            "and its model takes more memory than is allowed for a file of "
            "that size unless told otherwise. Load it with "
            f"`packnet_tf.load_pack(path, max_bytes={needed})`.",
            stacklevel=2,
        )


def load_pack(
    path: "str | os.PathLike[str]",
    max_bytes: int | None = None,
    safe_mode: bool = True,
) -> PackNetModel:
    """Loads a packed model and checks the fingerprint of every task.

    The file need not be trusted: nothing of it is run, only classes of Keras
    and those that are registered with Keras are made, and memory is taken
    only for what the file can fill.

    Args:
        path: A file that `save_pack` wrote.
        max_bytes: The most memory that the variables may take. Defaults to
            twice the size of the file (four times if values are rounded) and
            256 MB, since a few bytes can claim to be a large network. One of
            which few weights are owned takes more; saving it warns, and the
            error says how much.
        safe_mode: `False` for a file that you trust: its configuration may
            then hold anything, such as a `Lambda`, and can run any code.

    Returns:
        The packed model in the stage it was saved in, not compiled. If values
        were rounded, a warning says so. The model does not remember that: to
        it these are its values, and a pack file of it holds every bit.

    Raises:
        FileError: If it cannot be read, is damaged or no pack file, asks for
            classes that are not known, or takes more memory than it may.
        FingerprintError: If a frozen task is not what it was.
        ArgumentError: If `max_bytes` is no positive integer.
    """
    with pack_reader.reading(path, pack_format.PACK) as reader:
        description = reader.description()
        with declarations.refusing("its description"):
            config = dict(description["model"])
            records = [declarations.read_task(t) for t in config["tasks"]]
        tasks = len(records)
        specs = declarations.read(description.get("variables"))
        rounded = declarations.check_rounded(description.get("rounded"), specs)
        declarations.check_sections(reader, specs, tasks > 0)
        limit = declarations.check_bytes(specs, reader.size, max_bytes)
        if safe_mode:
            configurations.check(config)
        with (
            declarations.refusing("the configuration of its model"),
            initial_values.unset(),
            allocation.bounded(limit),  # Sees them first, as they were asked.
        ):
            # Keras hands its safe mode down only to what it makes itself.
            model = keras.saving.deserialize_keras_object(
                {
                    "module": None,
                    "class_name": PackNetModel.__name__,
                    "registered_name": keras.saving.get_registered_name(
                        PackNetModel
                    ),
                    "config": config,
                },
                safe_mode=safe_mode,
            )
            parts = model._parts()
        declarations.check_same(specs, parts)
        if safe_mode:  # A head that is trusted was checked by `add_task`.
            with declarations.refusing("the configuration of a head"):
                for name in model.task_names:
                    check_protectable(model.heads[name])
        with declarations.refusing("what it holds of its variables"):
            for part, spec in zip(parts, specs):
                _read(reader, part, spec, tasks)
            model._filled()
    if rounded:
        warnings.warn(
            "The values in the pack file were rounded to "
            f"{flat_values.ROUNDED} when it was saved; its tasks compute with "
            "those.",
            stacklevel=2,
        )
    return model


def is_rounded(path: "str | os.PathLike[str]") -> bool:
    """Tells whether the values in a pack file are rounded.

    Args:
        path: A file that `save_pack` wrote, which need not be trusted.

    Returns:
        `True` if any are.

    Raises:
        FileError: If it cannot be read, is damaged or no pack file.
    """
    with pack_reader.reading(path, pack_format.PACK) as reader:
        description = reader.description()
        specs = declarations.read(description.get("variables"))
        return declarations.check_rounded(description.get("rounded"), specs)


def check_model(model: Any) -> None:
    """Checks that something is a packed model.

    Args:
        model: Anything.

    Raises:
        ArgumentError: If it is not.
    """
    if not isinstance(model, PackNetModel):
        raise ArgumentError(
            "Only a packed model goes into such a file. Make one with "
            "`packnet_tf.wrap()`, or save a plain one with `model.save()`. "
            f"Received: {model!r} of type {type(model).__name__}"
        )


def _config_of(model: PackNetModel, rounded: bool) -> dict[str, Any]:
    config = model.get_config()
    tasks = list(model._tasks)
    config["tasks"] = [declarations.to_config(task) for task in tasks]
    if rounded and any(task.record for task in tasks):
        heads = [model.heads[task.name] for task in tasks]
        measured = fingerprint.measure(model._entries, heads, _read_rounded)
        for task, (record, _) in zip(config["tasks"], measured):
            if task["record"] is not None:
                task["record"] = record.to_config()
    return keras.saving.serialize_keras_object(config)


def _read_rounded(variable: keras.Variable) -> flat_values.Rounded:
    return flat_values.Rounded(variables.view(variable))


def _write(writer: Writer, part: Part, spec: Spec, tasks: int) -> None:
    owner = None
    if spec.packed and tasks:
        owner = variables.view(part.owner)
        section = writer.section(pack_format.OWNERS)
        value_streams.write_owners(section, owner, tasks + 1)
    value_streams.write_values(
        writer.section(pack_format.VALUES),
        variables.view(part.variable),
        spec.stored,
        owner,
        _owned,
    )


def _read(reader: Reader, part: Part, spec: Spec, tasks: int) -> None:
    owner = None
    if spec.packed and tasks:
        owner = part.owner
        section = reader.section(pack_format.OWNERS)
        value_streams.read_owners(section, owner, tasks + 1)
    section = reader.section(pack_format.VALUES)
    value_streams.read_values(
        section, part.variable, spec.stored, owner, _owned
    )


def _owned(owner: np.ndarray) -> np.ndarray:
    return owner != ownership.FREE
