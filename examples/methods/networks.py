"""The networks that the examples pack, without a classifier."""

import dataclasses
import functools
import inspect
import pathlib
import types
from collections.abc import Callable
from typing import Any

import keras

from packnet_tf.errors import ArgumentError

OWN = ("convnet", "lenet", "mlp", "resnet9", "vgg16_bn")
_VGG16 = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


@dataclasses.dataclass(frozen=True)
class Network:
    """What makes a network, and what its inputs are.

    Attributes:
        build: Returns a new network, with outputs of shape
            `(batch, features)`. Each call draws new random weights.
        build_whole: The same with the classifier that it came with, `None`
            if it came with none.
        preprocess: Takes float images in [0, 1] to what the network takes;
            `None` if that is the same.
        channels: 3 for RGB, 1 for gray; `None` if it takes either.
    """

    build: Callable[[], keras.Model]
    build_whole: Callable[[], keras.Model] | None = None
    preprocess: Callable[[Any], Any] | None = None
    channels: int | None = None

    def build_parts(self) -> tuple[keras.Model, keras.Model]:
        """Returns a new network and the classifier that it came with.

        The classifier takes the network's outputs. Both hold the weights of
        `build_whole`, which is not `None`.
        """
        whole = self.build_whole()
        features, taken = _find_features(whole)
        trunk = keras.Model(whole.inputs[0], features, name=whole.name)
        classifier = keras.Model(taken, whole.outputs[0], name="classifier")
        if features is not taken:
            inputs = keras.Input(features.shape[1:])
            x = keras.layers.Reshape(taken.shape[1:])(inputs)
            classifier = keras.Model(inputs, classifier(x), name="classifier")
        return trunk, classifier


def names() -> list[str]:
    """Lists the names that `get` knows."""
    return [*OWN, *sorted(_applications())]


def get(
    name: str,
    image_size: int,
    channels: int,
    width: int | None = None,
    weights: str = "none",
    train_normalization: str = "true",
) -> Network:
    """Retrieves a network by its name.

    Args:
        name: One of `names()`, or the path of a `.keras` file, of a network
            with or without a classifier. Those of
            `keras.applications` go by their names in lower case.
        image_size: Height and width of the images, in pixels.
        channels: 3 for RGB, 1 for gray.
        width: How wide one of `OWN` is: filters of its first convolution, or
            units of a hidden layer. Defaults to what is usual.
        weights: `"none"`, `"imagenet"`, or the path of a `.weights.h5` file
            of the network, with its classifier.
        train_normalization: `"true"`: batch normalization learns and takes its
            statistics from the batch. `"affine"`: its scale and offset learn,
            its statistics stay as they were loaded. `"false"`: all of it
            stays.

    Returns:
        The network.

    Raises:
        ArgumentError: If there is no such network, or if it cannot be had
            with these weights or this size.
    """
    name = name if name.endswith(".keras") else name.lower()
    shape = (image_size, image_size, channels)
    if name.endswith(".keras"):
        return _from_file(
            pathlib.Path(name), shape, weights, train_normalization
        )
    if name in OWN:
        if weights != "none":
            raise ArgumentError(
                f"--weights is for networks of keras.applications. Received: "
                f"--weights={weights} for {name!r}, which starts at random"
            )
        makers = {
            "convnet": small_convnet,
            "lenet": lenet,
            "mlp": mlp,
            "resnet9": resnet9,
            "vgg16_bn": vgg16_bn,
        }
        more = {} if width is None else {"width": width}
        return Network(lambda: makers[name](shape, **more))
    return _application(name, shape, weights, train_normalization)


def small_convnet(
    input_shape: tuple[int, int, int], width: int = 16
) -> keras.Model:
    """Builds a small convolutional network with batch normalization.

    Three convolutions of `width`, `2 * width` and `4 * width` filters, the
    first with stride 2, the others followed by pooling, then a dense layer of
    `8 * width`, all with batch normalization.
    The moving averages settle within a short run (momentum 0.9).

    Args:
        input_shape: Height, width and channels of the images.
        width: Number of filters of the first convolution.

    Returns:
        A Sequential model.
    """
    layers = [keras.Input(input_shape)]
    for filters, stride in ((width, 2), (2 * width, 1), (4 * width, 1)):
        layers += [
            keras.layers.Conv2D(
                filters, 3, strides=stride, padding="same", use_bias=False
            ),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.ReLU(),
        ]
        if stride == 1:
            layers.append(keras.layers.MaxPooling2D())
    layers += [
        keras.layers.Flatten(),
        keras.layers.Dense(8 * width, use_bias=False),
        keras.layers.BatchNormalization(momentum=0.9),
        keras.layers.ReLU(),
        keras.layers.Dropout(0.3),
    ]
    return keras.Sequential(layers, name="convnet")


def lenet(input_shape: tuple[int, int, int], width: int = 20) -> keras.Model:
    """Builds LeNet as this line of work has it: 20-50-800-500.

    Two convolutions of 5x5 with pooling, then two dense layers.

    Args:
        input_shape: Height, width and channels of the images.
        width: Number of filters of the first convolution; the others follow
            in proportion.

    Returns:
        A Sequential model.
    """
    layers = [keras.Input(input_shape)]
    for filters in (width, 5 * width // 2):
        layers += [
            keras.layers.Conv2D(filters, 5, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
        ]
    layers += [
        keras.layers.Flatten(),
        keras.layers.Dense(40 * width, activation="relu"),
        keras.layers.Dense(25 * width, activation="relu"),
    ]
    return keras.Sequential(layers, name="lenet")


def mlp(input_shape: tuple[int, int, int], width: int = 100) -> keras.Model:
    """Builds a network of two dense layers.

    Args:
        input_shape: Height, width and channels of the images.
        width: Units of each layer.

    Returns:
        A Sequential model.
    """
    return keras.Sequential(
        [
            keras.Input(input_shape),
            keras.layers.Flatten(),
            keras.layers.Dense(width, activation="relu"),
            keras.layers.Dense(width, activation="relu"),
        ],
        name="mlp",
    )


def resnet9(input_shape: tuple[int, int, int], width: int = 64) -> keras.Model:
    """Builds a residual network of eight convolutions, for small images.

    A convolution of `width` filters; three of `2 * width`, `4 * width` and
    `8 * width`, each followed by pooling, the first and the last of them by a
    residual block of two more; then the maximum over the image. All
    convolutions have batch normalization. A classifier makes nine layers.

    Args:
        input_shape: Height, width and channels of the images, of at least 8
            pixels.
        width: Number of filters of the first convolution.

    Returns:
        A Functional model.

    Reference:
        - [He et al., 2016](https://arxiv.org/abs/1512.03385), for residual
          blocks; the layout is that of the DAWNBench entries for CIFAR-10
    """

    def convolve(x: Any, filters: int) -> Any:
        x = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = keras.layers.BatchNormalization(momentum=0.9)(x)
        return keras.layers.ReLU()(x)

    inputs = keras.Input(input_shape)
    x = convolve(inputs, width)
    for factor, residual in ((2, True), (4, False), (8, True)):
        x = convolve(x, factor * width)
        x = keras.layers.MaxPooling2D()(x)
        if residual:
            block = convolve(convolve(x, factor * width), factor * width)
            x = keras.layers.Add()([x, block])
    x = keras.layers.GlobalMaxPooling2D()(x)
    return keras.Model(inputs, x, name="resnet9")


def vgg16_bn(input_shape: tuple[int, int, int], width: int = 64) -> keras.Model:
    """Builds VGG-16 with batch normalization after each convolution.

    Images under 128 pixels get one dense layer of `8 * width` units in place
    of the two of `64 * width`.

    Args:
        input_shape: Height, width and channels of the images, of at least 32
            pixels.
        width: Number of filters of the first convolution.

    Returns:
        A Sequential model.

    Raises:
        ArgumentError: If the images are too small.

    Reference:
        - [Simonyan and Zisserman, 2015](https://arxiv.org/abs/1409.1556)
    """
    if input_shape[0] < 32:
        raise ArgumentError(
            "VGG-16 halves images five times and takes 32 pixels or more. "
            f"Received: --image_size={input_shape[0]}"
        )
    layers = [keras.Input(input_shape)]
    for filters, count in _VGG16:
        for _ in range(count):
            layers += [
                keras.layers.Conv2D(
                    filters * width // 64, 3, padding="same", use_bias=False
                ),
                keras.layers.BatchNormalization(momentum=0.9),
                keras.layers.ReLU(),
            ]
        layers.append(keras.layers.MaxPooling2D())
    layers.append(keras.layers.Flatten())
    units = [64 * width] * 2 if input_shape[0] >= 128 else [8 * width]
    for count in units:
        layers += [
            keras.layers.Dense(count, activation="relu"),
            keras.layers.Dropout(0.5),
        ]
    return keras.Sequential(layers, name="vgg16_bn")


def _applications() -> dict[str, Callable[..., keras.Model]]:
    """Returns the functions of `keras.applications` by name."""
    return {
        name.lower(): function
        for name, function in vars(keras.applications).items()
        if inspect.isfunction(function)
    }


def _application(
    name: str,
    shape: tuple[int, int, int],
    weights: str,
    train_normalization: str,
) -> Network:
    function = _applications().get(name)
    if function is None:
        raise ArgumentError(
            "A network is one of these, or the path of a .keras file: "
            f"{', '.join(names())}. Received: --network={name}"
        )
    loaded = None if weights == "none" else weights
    if loaded not in (None, "imagenet") and not pathlib.Path(loaded).is_file():
        raise ArgumentError(
            '--weights takes "none", "imagenet" or the path of a '
            f".weights.h5 file. Received: --weights={weights}"
        )

    def build(whole: bool = False) -> keras.Model:
        try:
            model = _build(function, shape, loaded, whole)
        except Exception as error:  # Keras, h5py and the network raise.
            hint = (
                "The download failed, or they do not fit; without a network "
                "name a file that you have. "
                if loaded == "imagenet"
                else ""
            )
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ArgumentError(
                f"{function.__name__} cannot be built with these weights at "
                f"this size. {hint}Received: --weights={weights}, images of "
                f"shape {shape} ({lines[0]})"
            ) from error
        return _with_normalization(model, train_normalization)

    return Network(
        build,
        None if loaded is None else functools.partial(build, whole=True),
        _preprocessing(function),
        3,
    )


@keras.saving.register_keras_serializable("packnet_tf_examples")
class AffineNormalization(keras.layers.BatchNormalization):
    """Batch normalization that keeps its statistics, and learns the rest."""

    def call(
        self, inputs: Any, training: bool = False, mask: Any = None
    ) -> Any:
        return super().call(inputs, training=False, mask=mask)


def _with_normalization(model: keras.Model, train: str) -> keras.Model:
    """Lets the batch normalization of a network learn, all or in part."""
    if train == "false":
        freeze_normalization(model)
    if train != "affine":
        return model

    def copy(layer: keras.layers.Layer) -> keras.layers.Layer:
        kind = type(layer)
        if kind is keras.layers.BatchNormalization:
            kind = AffineNormalization
        return kind.from_config(layer.get_config())

    copied = keras.models.clone_model(model, clone_function=copy)
    copied.set_weights(model.get_weights())
    return copied


def freeze_normalization(model: keras.Model) -> None:
    """Lets batch normalization stay as it is, and compute as in inference.

    Args:
        model: The model; all in it is looked at.
    """
    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False


def _build(
    function: Callable[..., keras.Model],
    shape: tuple[int, int, int],
    weights: str | None,
    whole: bool,
) -> keras.Model:
    """Builds a network, whole or up to what its classifier takes."""
    if whole:
        return function(weights=weights, input_shape=shape)
    try:
        model = function(weights=weights, input_shape=shape)
    except ValueError:
        # With its classifier, as VGG's dense layers, it takes one size.
        return function(
            include_top=False, weights=weights, input_shape=shape, pooling="avg"
        )
    features, _ = _find_features(model)
    return keras.Model(model.inputs[0], features, name=model.name)


def _find_features(whole: keras.Model) -> tuple[Any, Any]:
    """Returns a network's features, and what its classifier takes.

    These are the same, or of other shapes where a convolution classifies.
    """
    last = whole.layers[-1]
    if isinstance(last, keras.layers.Dense):
        return last.input, last.input
    pooling = [
        layer
        for layer in whole.layers
        if isinstance(layer, keras.layers.GlobalAveragePooling2D)
    ]
    if not pooling:
        raise ArgumentError(
            "The classifier of a network is its last dense layer, or what "
            "comes after its global average pooling. "
            f"Received: {whole.name!r}, whose last layer is {last.name!r}"
        )
    taken = pooling[-1].output
    if len(taken.shape) == 2:
        return taken, taken
    return keras.layers.Flatten()(taken), taken


def _preprocessing(
    function: Callable[..., keras.Model],
) -> Callable[[Any], Any]:
    name = function.__module__.rpartition(".")[2]
    module: types.ModuleType = getattr(keras.applications, name)

    def preprocess(images: Any) -> Any:
        return module.preprocess_input(images * 255.0)

    return preprocess


def _from_file(
    path: pathlib.Path,
    shape: tuple[int, int, int],
    weights: str,
    train_normalization: str,
) -> Network:
    if weights != "none":
        raise ArgumentError(
            "A .keras file has its weights in it. "
            f"Received: --weights={weights} for {path}"
        )

    def build_whole() -> keras.Model:
        try:
            # Never code from a file.
            model = keras.saving.load_model(path, compile=False, safe_mode=True)
        except Exception as error:  # Of any kind, for any kind of damage.
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ArgumentError(
                "--network names a .keras file that Keras can load without "
                f"running code of it. Received: {path} ({lines[0]})"
            ) from error
        found = tuple(model.input_shape[1:])
        fits = len(found) == 3 and all(
            size in (None, wanted) for size, wanted in zip(found, shape)
        )
        if not fits or len(model.output_shape) != 2:
            raise ArgumentError(
                "--network names a file of a network that takes the images "
                "and gives one vector for each. "
                f"Received: {path}, from {model.input_shape} to "
                f"{model.output_shape}, for images of shape {shape}"
            )
        return _with_normalization(model, train_normalization)

    def build() -> keras.Model:
        model = build_whole()
        last = model.layers[-1]
        if getattr(last, "activation", None) is keras.activations.softmax:
            features, _ = _find_features(model)
            return keras.Model(model.inputs[0], features, name=model.name)
        return model

    return Network(build, build_whole)
