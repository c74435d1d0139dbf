"""Every variable of a packed backbone, and how it is protected."""

import dataclasses
from collections.abc import Iterable
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from packnet_tf import graphs
from packnet_tf import registry
from packnet_tf.layers import PackedLayer

PACKED = "packed"
PER_TASK = "per task"
FROZEN = "frozen after task 1"
SEED = "random state, no output at inference depends on it"


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
    rows = [("variable", "layer type", "shape", "param #", "how", "why")]
    totals: dict[str, list[int]] = {}
    for entry in entries:
        size = int(np.prod(entry.variable.shape))
        how = entry.protection.split(",")[0]
        rows.append(
            (
                entry.key,
                type(entry.holder).__name__,
                str(tuple(entry.variable.shape)),
                f"{size:,}",
                how,
                entry.reason,
            )
        )
        total = totals.setdefault(how, [0, 0])
        total[0] += size
        total[1] += size * tf.as_dtype(entry.variable.dtype).size
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = [
        "  ".join(
            [
                cell.rjust(width) if i == 3 else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths))
            ]
            + [row[5]]
        ).rstrip()
        for row in rows
    ]
    rule = "-" * max(len(line) for line in lines)
    sums = [
        f"{how}: {count:,} params ({size:,} bytes)"
        for how, (count, size) in totals.items()
    ]
    return "\n".join([lines[0], rule, *lines[1:], rule, *sums])
