"""The networks that the examples train from scratch."""

import keras


def small_convnet(
    image_size: int = 28, width: int = 16, classes: int | None = None
) -> keras.Model:
    """Builds a small convolutional network with batch normalization.

    Three convolutions of `width`, `2 * width` and `4 * width` filters, the
    first with stride 2, the others followed by pooling, then a dense layer of
    `8 * width`, all with batch normalization.
    The moving averages settle within a short run (momentum 0.9).

    Args:
        image_size: Height and width of the gray images, in pixels.
        width: Number of filters of the first convolution.
        classes: Number of classes, or `None` for a network without a
            classifier.

    Returns:
        A Sequential model.
    """
    layers = [keras.Input((image_size, image_size, 1))]
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
    if classes is not None:
        layers.append(keras.layers.Dense(classes, activation="softmax"))
    return keras.Sequential(layers, name="convnet")
