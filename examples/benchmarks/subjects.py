"""What the benchmarks measure on: networks, data, packed models with tasks.

Images and tokens are random: how long a step takes does not depend on what is
in them.
"""

import math
import pathlib
import sys
import warnings
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

import packnet_tf

# The examples' own networks are one folder up.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

from methods import networks

CLASSES = 10
LENGTH, WIDTH, VOCABULARY = 64, 128, 8000  # Of the transformer.
BATCHES = 4  # How many different ones there are.

_APPLICATIONS = {
    "vgg16": keras.applications.VGG16,
    "resnet50": keras.applications.ResNet50,
    "mobilenetv2": keras.applications.MobileNetV2,
}


def build(name: str, size: int) -> keras.Model:
    """Builds a network with random weights and a classifier.

    Args:
        name: `"cnn"`, `"transformer"`, `"vgg16"`, `"resnet50"` or
            `"mobilenetv2"`.
        size: Height and width of the images in pixels; the length of the
            transformer's sequences.

    Returns:
        A Keras model with softmax outputs of shape `(batch, CLASSES)`.
    """
    if name == "cnn":
        network = networks.small_convnet((size, size, 1))
        network.add(keras.layers.Dense(CLASSES, activation="softmax"))
        return network
    if name == "transformer":
        return _transformer(size)
    return _APPLICATIONS[name](
        weights=None, classes=CLASSES, input_shape=(size, size, 3)
    )


def examples(
    network: keras.Model, batch_size: int, count: int = BATCHES
) -> tuple[np.ndarray, np.ndarray]:
    """Makes random examples that a network takes.

    Args:
        network: One that `build` made.
        batch_size: Examples in a batch.
        count: How many batches.

    Returns:
        Inputs and `int64` labels, `count * batch_size` of them.
    """
    generator = np.random.default_rng(0)
    shape = (count * batch_size, *network.input_shape[1:])
    if len(shape) == 2:
        x = generator.integers(VOCABULARY, size=shape, dtype="int32")
    else:
        x = generator.normal(size=shape).astype("float32")
    return x, generator.integers(CLASSES, size=count * batch_size)


def batches(network: keras.Model, batch_size: int) -> tf.data.Dataset:
    """Returns endless batches from memory that a network takes.

    Args:
        network: One that `build` made.
        batch_size: Examples in a batch.

    Returns:
        Pairs of inputs and labels.
    """
    data = tf.data.Dataset.from_tensor_slices(examples(network, batch_size))
    data = data.batch(batch_size, drop_remainder=True).cache()
    # With autotuning a call of `fit` ends only when the tuner wakes up, 0.31,
    # 0.63, 1.27 s after its beginning, and that would be what is timed.
    options = tf.data.Options()
    options.autotune.enabled = False
    return data.repeat().prefetch(2).with_options(options)


def pack(
    network: keras.Model,
    tasks: int,
    sparsity: Callable[[int], float] = lambda task: 0.5,
) -> packnet_tf.PackNetModel:
    """Packs a network and brings it to a task, without training.

    Each task before the last is pruned and frozen as it is; what it has
    learned makes no difference to how long anything takes.

    Args:
        network: One that `build` made, which stays as it is.
        tasks: How many tasks the model has in the end, the last in training.
        sparsity: Of a task's number, the fraction of its pool it releases.

    Returns:
        The packed model, not compiled.
    """
    model = packnet_tf.wrap(network, task=task_name(1))
    for task in range(1, tasks):
        model.prune(sparsity(task))
        model.freeze_task()
        model.add_task(task_name(task + 1), units=CLASSES)
    return model


def pack_at(network: keras.Model, task: str) -> packnet_tf.PackNetModel:
    """Packs a network and brings it to where a benchmark trains it.

    Args:
        network: One that `build` made, which stays as it is.
        task: `"first"`, task 1; `"middle"`, the third task, not pruned yet;
            `"last"`, the fourth task, pruned by half.

    Returns:
        The packed model, not compiled.
    """
    model = pack(network, {"first": 1, "middle": 3, "last": 4}[task])
    if task == "last":
        model.prune(0.5)
    return model


def pack_full(
    network: keras.Model, everywhere: bool
) -> packnet_tf.PackNetModel:
    """Packs a network and brings it to a task that finds no room somewhere.

    Args:
        network: One that `build` made, which stays as it is.
        everywhere: Whether the first task keeps all, so that the second owns
            nothing but its head. Otherwise it keeps the largest weight whole,
            and releases about half of the others.

    Returns:
        The packed model, in its second task, not compiled.
    """
    model = packnet_tf.wrap(network, task=task_name(1))
    if not everywhere:
        entries = model.summary_protection(print_fn=lambda _: None)
        packed = [e.variable for e in entries if e.owner is not None]
        sizes = [math.prod(variable.shape) for variable in packed]
        largest = packed[sizes.index(max(sizes))]
        values = largest.numpy()
        # The smallest weights are released, and for now none of these is.
        largest.assign(np.full_like(values, 1e6))
        model.prune((1 - max(sizes) / sum(sizes)) / 2, scope="global")
        largest.assign(values)
    model.freeze_task()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # It owns nothing.
        model.add_task(task_name(2), units=CLASSES)
    return model


def task_name(task: int) -> str:
    """Returns the name of task 1, 2, and so on."""
    return f"task_{task}"


def optimizer(name: str) -> keras.optimizers.Optimizer:
    """Makes an optimizer, with a small step so that nothing overflows.

    Args:
        name: `"sgd"` (with momentum), `"adam"` or `"adamw"`.

    Returns:
        A new optimizer.
    """
    if name == "sgd":
        return keras.optimizers.SGD(1e-4, momentum=0.9)
    kinds = {"adam": keras.optimizers.Adam, "adamw": keras.optimizers.AdamW}
    return kinds[name](1e-5)


def compile_model(
    model: keras.Model, optimizer_name: str, jit_compile: "bool | str" = "auto"
) -> None:
    """Compiles a model as a classifier.

    Args:
        model: Plain or packed.
        optimizer_name: As `optimizer` takes it.
        jit_compile: As Keras takes it.
    """
    model.compile(
        optimizer=optimizer(optimizer_name),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=jit_compile,
    )


def _transformer(length: int) -> keras.Model:
    """Builds a text classifier of two blocks."""
    inputs = keras.Input((length,), dtype="int32")
    x = keras.layers.Embedding(VOCABULARY, WIDTH)(inputs)
    for _ in range(2):
        attended = keras.layers.MultiHeadAttention(4, WIDTH // 4)(x, x)
        x = keras.layers.LayerNormalization()(keras.layers.Add()([x, attended]))
        inner = keras.layers.Dense(2 * WIDTH, activation="relu")(x)
        inner = keras.layers.Dense(WIDTH)(inner)
        x = keras.layers.LayerNormalization()(keras.layers.Add()([x, inner]))
    x = keras.layers.GlobalAveragePooling1D()(x)
    outputs = keras.layers.Dense(CLASSES, activation="softmax")(x)
    return keras.Model(inputs, outputs, name="transformer")
