"""Layer class -> the names of its variables that are packed.

What is not packed in a registered layer (biases, statistics, scales) trains
with task 1 and is frozen with it.
"""

from collections.abc import Collection

import keras
from keras import layers

from packnet_tf.errors import ArgumentError
from packnet_tf.errors import UnsupportedLayerError

SEED_NAME = "seed_generator_state"
"""What Keras calls the state of a random seed generator."""

_LOOKUPS = (
    layers.IntegerLookup,
    layers.StringLookup,
    layers.TextVectorization,
)
_PACKED: dict[type, tuple[str, ...]] = {
    layers.Dense: ("kernel",),
    layers.EinsumDense: ("kernel",),
    layers.Embedding: ("embeddings",),
    layers.Conv1D: ("kernel",),
    layers.Conv2D: ("kernel",),
    layers.Conv3D: ("kernel",),
    layers.Conv2DTranspose: ("kernel",),
    layers.DepthwiseConv2D: ("kernel",),
    layers.SeparableConv2D: ("depthwise_kernel", "pointwise_kernel"),
    layers.BatchNormalization: (),
    layers.LayerNormalization: (),
    layers.Normalization: (),
    layers.PReLU: (),
}


def register_layer(cls: type, packed: Collection[str]) -> None:
    """Says which variables of a layer class are packed.

    Args:
        cls: A `keras.layers.Layer` subclass. Its subclasses are covered too,
            unless they are registered themselves.
        packed: Names of the attributes that hold the packed variables, such
            as `("kernel",)`. All other variables of the layer train with
            task 1 and are frozen with it, those included that the layer
            assigns to while it trains. Empty means that nothing is packed.

    Raises:
        ArgumentError: If `cls` is no layer class or is registered already.

    Example:
    >>> import keras, packnet_tf
    >>> class Scaled(keras.layers.Layer):
    ...     def build(self, input_shape):
    ...         self.table = self.add_weight(shape=(8, input_shape[-1]))
    ...     def call(self, inputs):
    ...         return inputs @ keras.ops.transpose(self.table)
    >>> packnet_tf.register_layer(Scaled, packed=("table",))
    """
    if not (isinstance(cls, type) and issubclass(cls, layers.Layer)):
        raise ArgumentError(
            "`register_layer` takes a `keras.layers.Layer` subclass. "
            f"Received: cls={cls!r}"
        )
    try:
        are_names = not isinstance(packed, str) and all(
            isinstance(name, str) for name in packed
        )
    except TypeError:
        are_names = False
    if not are_names:
        raise ArgumentError(
            "`packed` is a tuple of attribute names, such as ('kernel',). "
            f"Received: packed={packed!r}"
        )
    if cls in _PACKED:
        raise ArgumentError(
            "A layer class is registered once. Subclass the layer to treat "
            f"it differently. Received: cls={cls.__name__}, which is "
            f"registered with packed={_PACKED[cls]}"
        )
    _PACKED[cls] = tuple(packed)


def packed_names(layer: keras.layers.Layer) -> tuple[str, ...]:
    """Names the attributes of a layer that hold packed variables.

    Args:
        layer: A built layer that is no model.

    Returns:
        Attribute names; empty when nothing in the layer is packed.

    Raises:
        UnsupportedLayerError: If the layer cannot be protected.
    """
    _refuse_altered(layer)
    for cls in type(layer).__mro__:
        if cls in _PACKED:
            _check_attributes(layer, _PACKED[cls])
            return _PACKED[cls]
    ranks = [len(v.shape) for v in layer.trainable_variables]
    has_state = any(v.name != SEED_NAME for v in layer.non_trainable_variables)
    if has_state or _has_sublayers(layer) or any(rank > 1 for rank in ranks):
        raise UnsupportedLayerError(
            f"Layer '{layer.name}' cannot be protected: packnet_tf does not "
            f"know which variables of {type(layer).__name__} to pack. Tell "
            f"it with `packnet_tf.register_layer({type(layer).__name__}, "
            f"packed=(...))`. Received: layer={layer.name!r} with variables "
            f"{[v.name for v in layer.variables]}"
        )
    return ()


def _check_attributes(
    layer: keras.layers.Layer, names: tuple[str, ...]
) -> None:
    for name in names if layer.built else ():
        if not isinstance(getattr(layer, name, None), keras.Variable):
            raise UnsupportedLayerError(
                f"Layer '{layer.name}' cannot be protected: its class is "
                f"registered with the packed variable {name!r}, which it does "
                f"not have. Received: layer={layer.name!r} with variables "
                f"{[variable.name for variable in layer.variables]}"
            )


def _has_sublayers(layer: keras.layers.Layer) -> bool:
    return any(
        sublayer.variables
        for sublayer in layer._flatten_layers(include_self=False)
    )


def _refuse_altered(layer: keras.layers.Layer) -> None:
    """Refuses layers whose kernel is no longer the one variable it was."""
    reason = None
    if getattr(layer, "lora_enabled", False):
        reason = "LoRA is enabled on it; merge or remove the adapter first"
    elif isinstance(layer, _LOOKUPS) and not layer.get_config()["vocabulary"]:
        reason = "its vocabulary was adapted; give it as `vocabulary=` instead"
    elif layer.quantization_mode is not None:
        reason = "it is quantized; wrap the float model instead"
    if reason:
        raise UnsupportedLayerError(
            f"Layer '{layer.name}' cannot be protected: {reason}. "
            f"Received: layer={layer.name!r} of type {type(layer).__name__}"
        )
