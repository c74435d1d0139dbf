"""Every variable of a packed backbone, and how it is protected."""

import dataclasses
import math
from collections.abc import Iterable
from collections.abc import Mapping

import keras
import tensorflow as tf

from packnet_tf import graphs
from packnet_tf import registry
from packnet_tf.layers import PackedLayer

PACKED = "packed"
PER_TASK = "per task"
FROZEN = "frozen after task 1"
SEED = "random state"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One variable of the backbone.

    Attributes:
        key: Its name, unique in the backbone and the same after loading:
            the names of nested models and of the layer, then of the variable.
        layer: The key of its layer.
        holder: The layer that holds it, which may be a sublayer.
        variable: The variable.
        kind: What it is for.
        protection: `PACKED`, `PER_TASK`, `FROZEN` or `SEED`.
        reason: Why it is protected in that way.
        owner: The owner map if it is packed, else `None`.
        wrapper: The packed layer that keeps its copies if it is per task,
            else `None`.
    """

    key: str
    layer: str
    holder: keras.layers.Layer
    variable: keras.Variable
    kind: registry.Kind
    protection: str
    reason: str
    owner: keras.Variable | None = None
    wrapper: PackedLayer | None = None

    def of_task(self, task: int) -> keras.Variable:
        """Returns the variable that holds a task's own value.

        Args:
            task: Number of a task.

        Returns:
            A copy for an older task if it is per task, else the variable.
        """
        if self.wrapper is None:
            return self.variable
        names = [id(v) for v in self.wrapper.per_task_variables()]
        return self.wrapper.copies_of(task)[names.index(id(self.variable))]


def take(
    backbone: keras.Model, left_out: Mapping[str, str] | None = None
) -> list[Entry]:
    """Lists every variable of a packed backbone.

    Args:
        backbone: A model as `cloning.pack` makes it.
        left_out: Why a weight is not packed, by its key, where the layer
            alone does not tell.

    Returns:
        One entry per variable, in the order of the layers. Owner maps and
        copies are not listed on their own.
    """
    left_out = left_out or {}
    entries = []
    for name, layer in graphs.walk_layers(backbone):
        wrapper = layer if isinstance(layer, PackedLayer) else None
        inner = wrapper.layer if wrapper else layer
        owners, own = {}, set()
        if wrapper:
            owners = {
                id(variable): owner
                for variable, owner in zip(
                    wrapper.packed_variables(), wrapper.owners
                )
            }
            own = {id(v) for v in wrapper.per_task_variables()}
        for part in registry.classify(inner):
            key = f"{name}/{part.name}"
            owner = owners.get(id(part.variable))
            protection = FROZEN if owner is None else PACKED
            if part.kind is registry.Kind.SEED:
                protection = SEED
            elif id(part.variable) in own:
                protection = PER_TASK
            entries.append(
                Entry(
                    key,
                    name,
                    part.layer,
                    part.variable,
                    part.kind,
                    protection,
                    left_out.get(key, part.reason),
                    owner,
                    wrapper if protection == PER_TASK else None,
                )
            )
    return entries


def to_text(entries: Iterable[Entry]) -> str:
    """Lists entries as a table, with the totals that Keras users know.

    Args:
        entries: What to list.

    Returns:
        One line per variable: its key, the layer's type, its shape, the
        number of parameters, how it is protected and why; and the
        parameters and bytes of each protection.
    """
    entries = list(entries)
    rows = [("Variable", "Layer type", "Shape", "Param #", "Treated", "Why")]
    rows += [
        (
            entry.key,
            type(entry.holder).__name__,
            str(tuple(entry.variable.shape)),
            f"{math.prod(entry.variable.shape):,}",
            entry.protection,
            entry.reason,
        )
        for entry in entries
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(6)]
    lines = [
        "  ".join(
            cell.rjust(width) if i == 3 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]
    rule = "-" * max(len(line) for line in lines)
    return "\n".join([lines[0], rule, *lines[1:], rule, totals(entries)])


def totals(entries: Iterable[Entry]) -> str:
    """Sums up the parameters of each protection, as Keras' summary does.

    Args:
        entries: What to sum up.

    Returns:
        A line for each protection there is: its parameters and their bytes.
    """
    counts: dict[str, tuple[int, int]] = {}
    for entry in entries:
        count, size = counts.get(entry.protection, (0, 0))
        more = math.prod(entry.variable.shape)
        width = tf.as_dtype(entry.variable.dtype).size
        counts[entry.protection] = count + more, size + more * width
    return "\n".join(
        f" {protection[0].upper()}{protection[1:]} params: {count:,} "
        f"({_human(size)})"
        for protection, (count, size) in counts.items()
    )


def _human(size: int) -> str:
    """Writes a number of bytes as Keras' summary does."""
    units = ("B", "KB", "MB", "GB", "TB")
    value, unit = float(size), 0
    while value >= 1024 and unit < len(units) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.2f} {units[unit]}"
