"""Which variables may train: the flags that Keras and optimizers go by.

They are set again before each training, so that `model.trainable = True` is no
way into a frozen task.
"""

from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Sequence

import keras

from packnet_tf import graphs
from packnet_tf import inventory
from packnet_tf import layers
from packnet_tf import planning
from packnet_tf import registry


def freeze_left_out(
    entries: Iterable[inventory.Entry], empty_pools: Collection[str]
) -> None:
    """Makes untrainable what no task trains, or the newest has nothing of.

    A packed weight stays trainable as long as the newest task owns some of
    it; there the owner map decides. What was not trainable before `wrap`
    never is.

    Args:
        entries: The backbone's variables, as `inventory.take` lists them.
        empty_pools: Keys of the packed weights of which the newest task owns
            nothing, as none of their entries was free when it began.
    """
    for entry in entries:
        if entry.key in empty_pools:
            entry.variable.trainable = False
        if entry.reason != planning.NOT_TRAINABLE:
            continue
        if entry.kind is registry.Kind.NORMALIZATION:
            entry.holder.trainable = False
        else:
            entry.variable.trainable = False


def freeze_heads(heads: Iterable[keras.Model]) -> None:
    """Makes the heads of frozen tasks untrainable.

    Args:
        heads: The heads.
    """
    for head in heads:
        # Setting it walks the head, too much for all in every step.
        if head.trainable:
            head.trainable = False


def freeze_shared(
    backbone: keras.Model, entries: Sequence[inventory.Entry]
) -> None:
    """Makes untrainable what is frozen with task 1.

    A frozen normalization layer also stops updating its statistics.

    Args:
        backbone: A model as `cloning.pack` makes it.
        entries: Its variables, as `inventory.take` lists them.
    """
    for _, layer in graphs.walk_layers(backbone):
        if isinstance(layer, layers.PackedLayer):
            layer.guarding = layer.guarded
        else:
            layer.trainable = False
    training = {
        id(entry.variable)
        for entry in entries
        if entry.protection in (inventory.PACKED, inventory.PER_TASK)
    }
    for entry in entries:
        if id(entry.variable) not in training:
            entry.variable.trainable = False
            held = {id(variable) for variable in entry.holder.variables}
            if not held & training:
                entry.holder.trainable = False


def set_own(entries: Iterable[inventory.Entry], trainable: bool) -> None:
    """Lets the variables train of which each task has its own, or not.

    A normalization layer that may not train does not update its statistics
    either.

    Args:
        entries: The backbone's variables, as `inventory.take` lists them.
        trainable: Whether they may.
    """
    for entry in entries:
        if entry.protection != inventory.PER_TASK:
            continue
        if entry.kind is registry.Kind.NORMALIZATION:
            entry.holder.trainable = trainable
        else:
            entry.variable.trainable = trainable
