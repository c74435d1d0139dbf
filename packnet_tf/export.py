"""The formats that a task is exported in, and where to."""

import os
import pathlib
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import keras

from packnet_tf import endpoints
from packnet_tf import files
from packnet_tf import litert
from packnet_tf import saved_models
from packnet_tf.errors import ArgumentError

SAVED_MODEL = "tf_saved_model"
KERAS = "keras"
LITERT = "litert"
_SUFFIXES = {KERAS: ".keras", LITERT: ".tflite"}
_FOREIGN = (".h5", ".hdf5", ".onnx", ".pb", ".zip")


def find_format(
    path: "str | os.PathLike[str]", format: str | None = None
) -> str:
    """Tells in which format a task is exported to a path, by its name alone.

    Args:
        path: The file or folder to write.
        format: `"tf_saved_model"`, `"keras"` or `"litert"`, as Keras names
            them. By default the suffix decides, in any case: a file in
            `.keras` or `.tflite` is of that kind, any other path is the
            folder of a SavedModel.

    Returns:
        The format.

    Raises:
        ArgumentError: If there is no such format, if the suffix is that of
            another, or if it is no path.
    """
    suffix = files.as_path(path).suffix.lower()
    if format not in (None, SAVED_MODEL, *_SUFFIXES):
        raise ArgumentError(
            "A task is exported with `format=` 'tf_saved_model', 'keras' or "
            "'litert'; for another take it out: "
            "`model.unwrap(task).export(...)`. "
            f"Received: format={format!r}"
        )
    implied = {own: known for known, own in _SUFFIXES.items()}.get(suffix)
    if suffix in _FOREIGN or (implied and format not in (None, implied)):
        raise ArgumentError(
            "A task is exported as a Keras file (`.keras`), as a LiteRT file "
            "(`.tflite`) or as the folder of a SavedModel. Let the suffix be "
            "that of the format, or one of no format. "
            f"Received: path={str(path)!r}, format={format!r}"
        )
    return format or implied or SAVED_MODEL


def check_path(path: "str | os.PathLike[str]") -> pathlib.Path:
    """Checks a target before anything is computed.

    Args:
        path: The file or folder to write.

    Returns:
        The path.

    Raises:
        ArgumentError: If it is no path.
        FileError: If a folder of other things is there, or it is no local
            path, or none that the system takes.
    """
    checked = files.as_path(path)
    files.check_replaceable(checked, saved_models.FOLDER)
    return checked


def check_quantize(format: str, quantize: str | None, data: Any) -> None:
    """Checks that a format is quantized so, with what is given for it.

    Args:
        format: As `find_format` returns it.
        quantize: `"float16"`, `"int8"` or `None`.
        data: What is given to calibrate with, `None` if nothing is.

    Raises:
        ArgumentError: If it is not.
    """
    if format != LITERT and (quantize is not None or data is not None):
        raise ArgumentError(
            "Only LiteRT files are quantized. Let the path end in `.tflite`, "
            "or leave `quantize` and `representative_data` out. "
            f"Received: format={format!r}, quantize={quantize!r}"
        )
    litert.check_quantize(quantize, data)


def check_options(
    format: str,
    endpoint: endpoints.Endpoint,
    inputs: Any,
    quantize: str | None,
    data: Any,
) -> Callable[[], Iterator[Any]] | None:
    """Checks what a format takes.

    Args:
        format: As `find_format` returns it.
        endpoint: What goes around the task.
        inputs: The backbone's symbolic inputs.
        quantize: `"float16"`, `"int8"` or `None`.
        data: What is given to calibrate with, `None` if nothing is.

    Returns:
        Batches to calibrate with, as `litert.check_data` returns them.

    Raises:
        ArgumentError: If the format does not take them.
        UnsupportedLayerError: If a Keras file cannot hold the preprocessing.
    """
    check_quantize(format, quantize, data)
    if format == KERAS:
        endpoints.check_savable(endpoint)
    if data is None:
        return None
    if endpoint.preprocessing is not None:
        inputs = endpoint.preprocessing.input
    return litert.check_data(data, inputs)


def write_task(
    model: keras.Model,
    path: "str | os.PathLike[str]",
    format: str,
    endpoint: endpoints.Endpoint,
    quantize: str | None = None,
    batches: Callable[[], Iterator[Any]] | None = None,
    verbose: bool = False,
) -> None:
    """Writes one task.

    Args:
        model: A plain Functional model of the task.
        path: As `find_format` takes it.
        format: As `find_format` returns it.
        endpoint: What goes around the task.
        quantize: How a LiteRT file is quantized.
        batches: What to calibrate with.
        verbose: Whether Keras reports a SavedModel's signature.

    Raises:
        ArgumentError: If the format cannot hold the model.
        FileError: If it cannot be written there.
    """
    model = endpoints.surround(model, endpoint)
    with files.replacing(path, saved_models.FOLDER) as new:
        if format == KERAS:
            # Keras writes only what has its suffix.
            named = new.with_name(new.name + _SUFFIXES[KERAS])
            endpoints.add_labels(model, endpoint).save(named)
            named.rename(new)
        elif format == LITERT:
            litert.write(model, endpoint, new, quantize, batches)
        else:
            saved_models.write_task(model, endpoint, new, verbose)
