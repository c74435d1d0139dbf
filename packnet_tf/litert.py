"""LiteRT files (TensorFlow Lite): made, quantized, with class names."""

import itertools
import os
import pathlib
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from packnet_tf import endpoints
from packnet_tf import saved_models
from packnet_tf.errors import ArgumentError

KINDS = ("float16", "int8")
LABELS_FILE = "labels.txt"


def check_quantize(quantize: str | None, data: Any) -> None:
    """Checks how a file is to be quantized.

    Args:
        quantize: `"float16"`, `"int8"` or `None`.
        data: What is given to calibrate with, `None` if nothing is.

    Raises:
        ArgumentError: If there is no such kind, or if it needs data or takes
            none.
    """
    if quantize is not None and quantize not in KINDS:
        raise ArgumentError(
            "A LiteRT file is quantized to 'float16' or 'int8', or not at "
            f"all with `None`. Received: quantize={quantize!r}"
        )
    if quantize == "int8" and data is None:
        raise ArgumentError(
            "Quantizing to 'int8' measures the range of each activation. "
            "Give `representative_data=`, some hundred examples of what the "
            "exported task will take. Received: quantize='int8', "
            "representative_data=None"
        )
    if quantize != "int8" and data is not None:
        raise ArgumentError(
            "`representative_data` is used by `quantize='int8'` alone. Leave "
            f"it out, or quantize so. Received: quantize={quantize!r} and "
            f"data of type {type(data).__name__}"
        )


def check_data(data: Any, inputs: Any) -> Callable[[], Iterator[Any]]:
    """Checks data to calibrate with.

    Args:
        data: Arrays of examples in the structure of `inputs`, or a
            `tf.data.Dataset` or `keras.utils.PyDataset` of batches of such,
            with or without labels.
        inputs: The symbolic inputs that they are for.

    Returns:
        A function that yields batches: a list of arrays each, in the order
        of the flat inputs.

    Raises:
        ArgumentError: If it is endless or empty, or does not fit the inputs.
    """
    flat = keras.tree.flatten(inputs)
    if isinstance(data, tf.data.Dataset):
        if data.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise ArgumentError(
                "All of `representative_data` is read. Give some hundred "
                "examples: `data.take(n)`. Received: an endless dataset"
            )
        source = data
    elif isinstance(data, keras.utils.PyDataset):
        if data.num_batches is None:
            raise ArgumentError(
                "All of `representative_data` is read. Give a dataset that "
                "says how many batches it has. Received: an endless dataset"
            )
        source = [data[n] for n in range(data.num_batches)]
    else:
        source = _examples(data, inputs)

    def batches() -> Iterator[list[np.ndarray]]:
        for batch in source:
            if isinstance(batch, tuple):
                batch, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
            yield _match(batch, inputs, flat)

    if next(batches(), None) is None:
        raise ArgumentError(
            "`representative_data` has at least one example. Received: none"
        )
    return batches


def write(
    model: keras.Model,
    endpoint: endpoints.Endpoint,
    path: "str | os.PathLike[str]",
    quantize: str | None,
    batches: Callable[[], Iterator[Any]] | None,
) -> None:
    """Writes a LiteRT file.

    With class names it returns `scores` and `labels`. The names are also in
    `labels.txt`, a file inside of the file, as a ZIP archive at its end.

    Args:
        model: A plain Functional model of a task, preprocessing included.
        endpoint: What is around it.
        path: The file to write.
        quantize: As `check_quantize` takes it.
        batches: As `check_data` returns it, to calibrate with.

    Raises:
        ArgumentError: If LiteRT cannot compute the model.
    """
    with tempfile.TemporaryDirectory() as folder:
        saved_models.write_task(model, endpoint, folder, verbose=False)
        content = _convert(model, folder, quantize, batches)
    path = pathlib.Path(path)
    path.write_bytes(content)
    if endpoint.class_names is not None:
        with zipfile.ZipFile(path, "a") as archive:
            # At a fixed time, so that the same model is the same file.
            archive.writestr(
                zipfile.ZipInfo(LABELS_FILE),
                "\n".join(endpoint.class_names) + "\n",
            )


def _convert(
    model: keras.Model,
    folder: str,
    quantize: str | None,
    batches: Callable[[], Iterator[Any]] | None,
) -> bytes:
    """Converts a SavedModel, by LiteRT's own operations if they do."""
    own = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if quantize == "int8":
        own.insert(0, tf.lite.OpsSet.TFLITE_BUILTINS_INT8)
    names = saved_models.input_names(model.input)

    def named() -> Iterator[dict[str, np.ndarray]]:
        for batch in batches():
            yield dict(zip(names, batch))

    for operations in (own, [*own, tf.lite.OpsSet.SELECT_TF_OPS]):
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.target_spec.supported_ops = operations
        if quantize is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if quantize == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if quantize == "int8":
            converter.representative_dataset = named
        try:
            with warnings.catch_warnings():
                # Its own interpreter, which calibrates, is deprecated.
                warnings.filterwarnings("ignore", "(?s).*ai_edge_litert")
                content = converter.convert()
        except Exception as error:  # Of many classes, not all of them public.
            reason = error
            continue
        if operations is not own:
            warnings.warn(
                "LiteRT has no operations of its own for all of the network, "
                "so the file needs TensorFlow's as well: an interpreter with "
                "the Flex delegate.",
                stacklevel=5,
            )
        return content
    lines = (line.strip() for line in str(reason).splitlines())
    summary = " ".join(itertools.islice(filter(None, lines), 3))
    raise ArgumentError(
        "LiteRT cannot compute this network. Export it as a SavedModel or a "
        f"Keras file. {summary} Received: model={model.name!r}, "
        f"quantize={quantize!r}"
    ) from reason


def _examples(data: Any, inputs: Any) -> list[Any]:
    """Cuts arrays into batches that the inputs take."""
    flat = keras.tree.flatten(inputs)
    arrays = _match(data, inputs, flat, whole=True)
    size = next((x.shape[0] for x in flat if x.shape[0]), 1)
    count = min(len(array) for array in arrays) // size
    return [
        keras.tree.pack_sequence_as(
            inputs, [array[n * size : (n + 1) * size] for array in arrays]
        )
        for n in range(count)
    ]


def _match(
    data: Any, inputs: Any, flat: list[Any], whole: bool = False
) -> list[np.ndarray]:
    """Returns a batch as arrays in the order of the inputs, if it fits."""
    reason, arrays = None, []
    try:
        keras.tree.assert_same_structure(inputs, data)
        arrays = [np.asarray(part) for part in keras.tree.flatten(data)]
        fitting = all(_fits(a, x, whole) for a, x in zip(arrays, flat))
    except (TypeError, ValueError) as error:
        fitting, reason = False, error
    if not fitting:
        received = [f"{a.dtype} {a.shape}" for a in arrays]
        raise ArgumentError(
            "`representative_data` are arrays of what the exported task "
            f"takes, {endpoints.describe(inputs)}, or a `tf.data.Dataset` or "
            "`keras.utils.PyDataset` of batches of such. Received: "
            f"{received or type(data).__name__}"
        ) from reason
    return [
        array.astype(tf.as_dtype(x.dtype).as_numpy_dtype)
        for array, x in zip(arrays, flat)
    ]


def _fits(array: np.ndarray, expected: keras.KerasTensor, whole: bool) -> bool:
    shape = expected.shape
    return (
        array.ndim == len(shape)
        and (whole or shape[0] in (None, array.shape[0]))
        and all(
            there in (None, here)
            for here, there in zip(array.shape[1:], shape[1:])
        )
        and endpoints.can_cast(
            tf.as_dtype(array.dtype), tf.as_dtype(expected.dtype)
        )
    )
