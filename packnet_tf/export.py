"""Exporting: one task as a plain Keras model, or all as one SavedModel."""

import os
import pathlib

import keras
import tensorflow as tf

from packnet_tf import files
from packnet_tf.errors import ArgumentError


def export_plain(
    model: keras.Model, path: "str | os.PathLike[str]", verbose: bool = True
) -> None:
    """Writes a plain Keras model as a `.keras` file or a SavedModel.

    Args:
        model: A plain Keras model.
        path: Ends in `.keras` for a Keras file; without a suffix that names
            a format it is the folder of a SavedModel.
        verbose: Whether Keras reports the SavedModel's signature.

    Raises:
        ArgumentError: If the suffix is one of another format, or if it is no
            path.
        FileError: If it cannot be written there.
    """
    path = _check_path(path)
    if path.suffix in (".h5", ".hdf5", ".tflite", ".onnx", ".pb", ".zip"):
        raise ArgumentError(
            "A task is exported as a Keras file (`.keras`) or as the folder "
            f"of a SavedModel (no suffix). Received: path={str(path)!r}"
        )
    with files.replacing(path) as new:
        if path.suffix == ".keras":
            model.save(new)
        else:
            model.export(new, verbose=verbose)


def export_signatures(
    model: keras.Model,
    names: list[str],
    path: "str | os.PathLike[str]",
    verbose: bool = True,
) -> None:
    """Writes one SavedModel with a signature per task, weights once.

    Args:
        model: The packed model.
        names: The tasks to serve; the first is also `serving_default`.
        path: The folder to write.
        verbose: Whether Keras reports the signatures.

    Raises:
        ArgumentError: If it is no path.
        FileError: If it cannot be written there.
    """
    path = _check_path(path)
    signature = [
        keras.tree.map_structure(
            lambda x: tf.TensorSpec(x.shape, x.dtype, name=x.name),
            model.backbone.input,
        )
    ]
    archive = keras.export.ExportArchive()
    archive.track(model)
    for name in names:
        archive.add_endpoint(name, _serve(model, name), signature)
    archive.add_endpoint("serving_default", _serve(model, names[0]), signature)
    with files.replacing(path) as new:
        archive.write_out(new, verbose=verbose)


def _check_path(path: "str | os.PathLike[str]") -> pathlib.Path:
    """Checks a target before anything is computed."""
    try:
        path = pathlib.Path(path)
    except TypeError as error:
        raise ArgumentError(
            "A model is exported to a path. "
            f"Received: {path!r} of type {type(path).__name__}"
        ) from error
    files.check_replaceable(path, "saved_model.pb")
    return path


def _serve(model: keras.Model, name: str):
    def serve(inputs):
        return model(inputs, training=False, task=name)

    return serve
