"""What each variable of a layer is: a weight to pack, or something else.

Keras' own layers are known by class. A layer made of others is what its
sublayers are. For any other layer the default rule holds: trainable variables
of rank 2 and more are packed.
"""

import dataclasses
import enum
from collections.abc import Collection

import keras
from keras import layers

from packnet_tf import variables
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import UnsupportedLayerError


class Kind(enum.Enum):
    """What a variable is for; decides how it may be protected."""

    WEIGHT = "weight"
    BIAS = "bias"
    NORMALIZATION = "normalization"
    STATE = "state"
    SEED = "random state"


@dataclasses.dataclass(frozen=True)
class Part:
    """One variable of a layer, and what it is.

    Attributes:
        name: Unique in the layer and the same in any process, such as
            `"kernel"` or `"cell/kernel"`.
        layer: The layer that holds it: this one or one of its sublayers.
        variable: The variable.
        kind: What it is for.
        reason: Why it is taken for that.
    """

    name: str
    layer: keras.layers.Layer
    variable: keras.Variable
    kind: Kind
    reason: str


def _of_keras(*names: str) -> tuple[type, ...]:
    """Returns layer classes by name, those this Keras has."""
    return tuple(getattr(layers, name) for name in names if name in dir(layers))


_KERNEL = _of_keras(
    "Dense",
    "EinsumDense",
    "Conv1D",
    "Conv2D",
    "Conv3D",
    "Conv1DTranspose",
    "Conv2DTranspose",
    "Conv3DTranspose",
    "DepthwiseConv1D",
    "DepthwiseConv2D",
)
_SEPARABLE = _of_keras("SeparableConv1D", "SeparableConv2D")
_CELLS = _of_keras("SimpleRNNCell", "GRUCell", "LSTMCell")
_PACKED: dict[type, tuple[str, ...]] = {
    **dict.fromkeys(_KERNEL, ("kernel",)),
    **dict.fromkeys(_SEPARABLE, ("depthwise_kernel", "pointwise_kernel")),
    **dict.fromkeys(_CELLS, ("kernel", "recurrent_kernel")),
    **dict.fromkeys(
        _of_keras("ReversibleEmbedding"), ("embeddings", "reverse_embeddings")
    ),
    layers.Embedding: ("embeddings",),
    layers.PReLU: (),
}
_NORMALIZATION = _of_keras(
    "BatchNormalization",
    "GroupNormalization",
    "LayerNormalization",
    "RMSNormalization",
)
_REGISTERED: dict[type, tuple[str, ...]] = {}
_LOOKUPS = (
    layers.IntegerLookup,
    layers.StringLookup,
    layers.TextVectorization,
)


def register_layer(cls: type, packed: Collection[str]) -> None:
    """Says which variables of a layer class are packed.

    Needed only where the default rule (trainable variables of rank 2 and
    more are packed) is not what a layer of your own wants.

    Args:
        cls: A `keras.layers.Layer` subclass. Its subclasses are covered too,
            unless they are registered themselves.
        packed: Names of the variables to pack, as attributes: `("kernel",)`,
            or `("cell/kernel",)` for one of a sublayer, `("blocks/0/kernel",)`
            for one of a list of sublayers. All other variables
            of the layer and its sublayers train with task 1 and are frozen
            with it, those included that the layer assigns to while it
            trains. Empty means that nothing is packed.

    Raises:
        ArgumentError: If `cls` is no layer class or is registered already.

    Example:
    >>> import keras, packnet_tf
    >>> class Scaled(keras.layers.Layer):
    ...     def build(self, input_shape):
    ...         self.table = self.add_weight(shape=(8, input_shape[-1]))
    ...         self.scales = self.add_weight(shape=(8, 1))
    ...     def call(self, inputs):
    ...         return inputs @ keras.ops.transpose(self.table * self.scales)
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
    known = {**_PACKED, **dict.fromkeys(_NORMALIZATION, ()), **_REGISTERED}
    if cls in known:
        raise ArgumentError(
            "A layer class is registered once. Subclass the layer to treat "
            f"it differently. Received: cls={cls.__name__}, which is "
            f"registered with packed={known[cls]}"
        )
    _REGISTERED[cls] = tuple(packed)


def classify(layer: keras.layers.Layer) -> list[Part]:
    """Tells what each variable of a layer is.

    Args:
        layer: A built layer, or a subclassed model.

    Returns:
        One part per variable, those of its sublayers included.

    Raises:
        UnsupportedLayerError: If the layer or one of its sublayers cannot be
            protected; names it.
    """
    for sublayer in layer._flatten_layers():
        _refuse_altered(sublayer)
    parts: dict[int, Part] = {}
    for part in _classify(layer, ""):
        parts.setdefault(id(part.variable), part)
    return list(parts.values())


def _classify(layer: keras.layers.Layer, prefix: str) -> list[Part]:
    for cls in type(layer).__mro__:
        if cls in _REGISTERED:
            return _as_registered(layer, prefix, cls)
        if cls is layers.SpectralNormalization:
            reason = "its layer rescales it in every training step"
            return _all_of(layer, prefix, Kind.STATE, reason)
        if cls in _PACKED or cls in _NORMALIZATION:
            break
    else:
        cls = None
    parts = [
        _part(layer, prefix + name, variable, name, cls)
        for name, variable in variables.own(layer)
    ]
    for name, sublayer in variables.sublayers(layer):
        parts.extend(_classify(sublayer, f"{prefix}{name}/"))
    return parts


def _part(
    layer: keras.layers.Layer,
    path: str,
    variable: keras.Variable,
    name: str,
    cls: type | None,
) -> Part:
    """Classifies a variable that a layer holds itself."""
    # Not `variable.trainable`, which is `False` of what is frozen by now.
    is_state = not any(v is variable for v in layer._trainable_variables)
    if variables.is_seed(variable):
        kind, reason = Kind.SEED, "draws random numbers"
    elif cls in _NORMALIZATION:
        kind, reason = Kind.NORMALIZATION, f"{name} of {cls.__name__}"
    elif is_state:
        kind, reason = Kind.STATE, "state that no gradient trains"
    elif cls is not None:
        packed = name in _PACKED[cls]
        kind = Kind.WEIGHT if packed else Kind.BIAS
        reason = f"{name} of {cls.__name__}"
    elif len(variable.shape) > 1:
        kind, reason = Kind.WEIGHT, "trainable, of rank 2 or more"
    else:
        kind, reason = Kind.BIAS, "trainable, of rank 0 or 1"
    return Part(path, layer, variable, kind, reason)


def _all_of(
    layer: keras.layers.Layer, prefix: str, kind: Kind, reason: str
) -> list[Part]:
    return [
        Part(
            name,
            layer,
            variable,
            Kind.SEED if variables.is_seed(variable) else kind,
            "draws random numbers" if variables.is_seed(variable) else reason,
        )
        for name, variable in variables.walk(layer, prefix)
    ]


def _as_registered(
    layer: keras.layers.Layer, prefix: str, cls: type
) -> list[Part]:
    packed = set()
    of_layer = dict(variables.walk(layer))
    for name in _REGISTERED[cls]:
        found = layer
        for attribute in name.split("/"):
            found = getattr(found, attribute, None)
        found = of_layer.get(name, found)
        if not isinstance(found, keras.Variable):
            raise UnsupportedLayerError(
                f"Layer '{layer.name}' cannot be protected: its class is "
                f"registered with the packed variable {name!r}, which it does "
                f"not have. Received: layer={layer.name!r} with variables "
                f"{list(of_layer)}"
            )
        packed.add(id(found))
    reason = f"not named by `register_layer({cls.__name__}, ...)`"
    named = f"named by `register_layer({cls.__name__}, ...)`"
    return [
        dataclasses.replace(part, kind=Kind.WEIGHT, reason=named)
        if id(part.variable) in packed
        else part
        for part in _all_of(layer, prefix, Kind.STATE, reason)
    ]


def _refuse_altered(layer: keras.layers.Layer) -> None:
    """Refuses layers whose weights are no longer the variables they were."""
    reason = None
    if getattr(layer, "lora_enabled", False):
        reason = "LoRA is enabled on it; merge or remove the adapter first"
    elif isinstance(layer, _LOOKUPS) and not layer.get_config()["vocabulary"]:
        reason = "its vocabulary was adapted; give it as `vocabulary=` instead"
    elif layer.quantization_mode is not None:
        reason = "it is quantized; wrap the float model instead"
    elif getattr(layer, "stateful", False) and isinstance(layer, layers.RNN):
        reason = "its state changes at inference; make it with `stateful=False`"
    elif isinstance(layer, _of_keras("TorchModuleWrapper", "JaxLayer")):
        reason = "its weights belong to another backend than TensorFlow"
    if reason:
        raise UnsupportedLayerError(
            f"Layer '{layer.name}' cannot be protected: {reason}. "
            f"Received: layer={layer.name!r} of type {type(layer).__name__}"
        )
