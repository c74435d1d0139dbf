"""What an optimizer is made of: itself and the optimizers it wraps."""

import keras


def parts(
    optimizer: keras.optimizers.Optimizer | None,
) -> list[keras.optimizers.Optimizer]:
    """Lists an optimizer and all that it hands variables on to.

    Args:
        optimizer: The optimizer, or `None`.

    Returns:
        The optimizer first, then those inside of a `LossScaleOptimizer` or a
        `MultiOptimizer`, in their order; empty for `None`.
    """
    if optimizer is None:
        return []
    inner = [
        getattr(optimizer, "inner_optimizer", None),
        *getattr(optimizer, "optimizers", ()),
    ]
    return [optimizer, *(part for each in inner for part in parts(each))]
