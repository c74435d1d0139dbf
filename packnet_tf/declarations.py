"""The variables that a file declares, held against the file and the model."""

import contextlib
import math
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

from packnet_tf import allocation
from packnet_tf import flat_values
from packnet_tf import ownership
from packnet_tf import pack_format
from packnet_tf.archiving import Part
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import FileError
from packnet_tf.errors import FingerprintError
from packnet_tf.pack_format import damaged
from packnet_tf.pack_reader import Reader
from packnet_tf.tasks import Stage
from packnet_tf.tasks import Task

_MAX_SIDE = 1 << 48
_MAX_RANK = 32
_TIMES = 2
_PLUS = 256 << 20
# What Keras makes besides a model's variables, such as seeds of initializers.
_BESIDES = 1 << 16
_LARGE = 1 << 18  # Entries, of a megabyte; their sketch has a thousandth of it.
_TASK = {"name", "number", "stage", "sparsity", "record"}


class Spec(NamedTuple):
    """A variable as a file declares it.

    Attributes:
        key: Its name.
        dtype: Its dtype.
        stored: The dtype of its values in the file.
        shape: Its shape.
        packed: Whether it has an owner map.
    """

    key: str
    dtype: str
    stored: str
    shape: tuple[int, ...]
    packed: bool

    @property
    def size(self) -> int:
        """How many entries it has."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """How many bytes it takes in memory, with its owner map."""
        return self.size * (flat_values.itemsize(self.dtype) + self.packed)

    @classmethod
    def of(cls, part: Part, rounded: bool) -> "Spec":
        """Declares a variable.

        Args:
            part: The variable.
            rounded: Whether values are rounded, unless it is exact.

        Returns:
            The declaration.

        Raises:
            ArgumentError: If no file holds its dtype.
        """
        dtype = part.variable.dtype
        if dtype not in flat_values.DTYPES:
            raise ArgumentError(
                f"A file holds variables of {', '.join(flat_values.DTYPES)}. "
                "Save the model as `.keras`. Received: "
                f"variable {part.key!r} of dtype {dtype}"
            )
        return cls(
            part.key,
            dtype,
            flat_values.stored_dtype(dtype, rounded and not part.exact),
            tuple(part.variable.shape),
            part.owner is not None,
        )


def read(configs: Any) -> list[Spec]:
    """Makes declarations from what JSON holds of them.

    Args:
        configs: Of a file that is not trusted.

    Returns:
        The declarations, each sound in itself.

    Raises:
        FileError: If one is not, or a name comes twice.
    """
    if not isinstance(configs, list):
        raise damaged("it declares no list of variables", _brief(configs))
    specs = []
    for config in configs:
        if not (
            isinstance(config, list)
            and len(config) == len(Spec._fields)
            and isinstance(config[0], str)
            and config[1] in flat_values.DTYPES
            and config[2]
            in (config[1], flat_values.stored_dtype(config[1], True))
            and isinstance(config[3], list)
            and len(config[3]) <= _MAX_RANK
            and all(is_count(side, _MAX_SIDE) for side in config[3])
            and math.prod(config[3]) <= _MAX_SIDE
            and isinstance(config[4], bool)
        ):
            raise damaged("it declares no such variable", _brief(config))
        specs.append(Spec(*config[:3], tuple(config[3]), config[4]))
    keys = {spec.key for spec in specs}
    if len(keys) != len(specs):
        raise damaged("it names a variable twice", f"{len(specs)} variables")
    return specs


def check_sections(reader: Reader, specs: Sequence[Spec], mapped: bool) -> None:
    """Checks that there are the sections that the variables need.

    Args:
        reader: The file.
        specs: What it declares.
        mapped: Whether packed weights have a section for their owner map,
            which then decides how many values there are.

    Raises:
        FileError: If there are others.
    """
    kinds = [pack_format.DESCRIPTION]
    for spec in specs:
        if mapped and spec.packed:
            kinds.append(pack_format.OWNERS)
        kinds.append(pack_format.VALUES)
    if [kind for kind, _ in reader.sections] != kinds:
        raise damaged(
            "its sections are not those of its variables",
            f"{len(reader.sections)} sections, expected {len(kinds)}",
        )


def check_bytes(specs: Sequence[Spec], size: int, max_bytes: int | None) -> int:
    """Checks that the variables take no more memory than they may.

    Args:
        specs: What the file declares.
        size: The size of the file in bytes.
        max_bytes: The most that is allowed, `None` for twice the size of the
            file and 256 MB; for four times it if values are rounded, which
            take half of their size there.

    Returns:
        How many bytes may be allocated for them.

    Raises:
        ArgumentError: If `max_bytes` is no positive integer.
        FileError: If they take more.
    """
    allocation.check_max_bytes(max_bytes)
    total = sum(spec.bytes for spec in specs)
    limit = _default_limit(specs, size) if max_bytes is None else int(max_bytes)
    if total > limit:
        raise FileError(
            "The variables would take more memory than a file of this size "
            "should need. If you trust the file, allow for it with "
            f"`max_bytes={total}`. Received: {total} bytes for a file of "
            f"{size}, expected {limit} at most"
        )
    return total + _BESIDES


def is_rounded(specs: Sequence[Spec]) -> bool:
    """Tells whether values are rounded in a file.

    Args:
        specs: What it declares.

    Returns:
        `True` if any are.
    """
    return any(spec.stored != spec.dtype for spec in specs)


def check_rounded(declared: Any, specs: Sequence[Spec]) -> bool:
    """Checks that a file tells truly whether its values are rounded.

    Args:
        declared: What it tells.
        specs: The variables that it declares.

    Returns:
        Whether they are.

    Raises:
        FileError: If it tells otherwise.
    """
    rounded = is_rounded(specs)
    if declared is not rounded:
        raise damaged(
            "whether its values are rounded is told otherwise by its variables",
            f"rounded={_brief(declared)}, expected {rounded}",
        )
    return rounded


def more_than_default(specs: Sequence[Spec], size: int) -> int | None:
    """Tells whether a file can be loaded only if more memory is allowed.

    Args:
        specs: What it declares.
        size: Its size in bytes.

    Returns:
        The least `max_bytes` that it takes, or `None` if the default will do.
    """
    total = sum(spec.bytes for spec in specs)
    return total if total > _default_limit(specs, size) else None


def check_same(specs: Sequence[Spec], parts: Sequence[Part]) -> None:
    """Checks that the variables declared are those that a model has.

    Args:
        specs: What the file declares.
        parts: What the model has.

    Raises:
        FileError: If they are others, or in another order.
    """
    if len(specs) != len(parts):
        raise damaged(
            "its variables are not those of its model",
            f"{len(specs)} variables, expected {len(parts)}",
        )
    for spec, part in zip(specs, parts):
        own = Spec.of(part, False)
        if spec._replace(stored=own.stored) != own or (
            part.exact and spec.stored != spec.dtype
        ):
            raise damaged(
                "its variables are not those of its model",
                f"{_brief(list(spec))}, expected {_brief(list(own))}",
            )


def read_task(config: Any) -> Task:
    """Makes a task from what JSON holds of it.

    Args:
        config: Of a file that is not trusted.

    Returns:
        The task, sound in itself.

    Raises:
        FileError: If it is not.
    """
    with refusing("what it has on record of a task"):
        sparsity = config["sparsity"]
        if not (
            set(config) == _TASK
            and isinstance(config["name"], str)
            and is_count(config["number"], ownership.MAX_TASKS)
            and type(sparsity) in (int, float)
            and 0 <= sparsity < 1
        ):
            raise damaged("it has no such task on record", _brief(config))
        task = Task.from_config(config)
        if (task.stage is Stage.FROZEN) != (task.record is not None):
            raise damaged("a task is frozen without a record", _brief(config))
    return task


def to_config(task: Task) -> dict[str, Any]:
    """Returns a task as a file holds it.

    Sketches follow from the values. Only large ones, which take long to make
    and next to nothing of the file, are in it.

    Args:
        task: The task.

    Returns:
        A dict that JSON can hold.
    """
    config = task.to_config()
    if config["record"] is not None:
        config["record"] = task.record.to_config(least=_LARGE)
    return config


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
    """Makes every error a `FileError`, where a file is not trusted.

    Args:
        what: What of the file is being read.

    Yields:
        Once.

    Raises:
        FileError: If anything is raised in the body but a `FileError` or a
            `FingerprintError`, which pass.
    """
    try:
        yield
    except (FileError, FingerprintError):
        raise
    except Exception as error:
        raise damaged(
            f"{what} is not as it should be",
            f"{type(error).__name__}: {str(error)[:500]}",
        ) from error


def is_count(value: Any, most: int) -> bool:
    """Tells whether something is an integer from 0 up to a number.

    Args:
        value: Anything.
        most: The greatest.

    Returns:
        `True` if it is.
    """
    return type(value) is int and 0 <= value <= most


def _default_limit(specs: Sequence[Spec], size: int) -> int:
    return _TIMES * (1 + is_rounded(specs)) * size + _PLUS


def _brief(value: Any) -> str:
    try:
        return repr(value)[:200]
    except (RecursionError, ValueError):  # Deep, or a number too long.
        return f"a value of type {type(value).__name__}"
