"""Loading a packed model, and checking it at once."""

import os

import keras
import tensorflow as tf

from packnet_tf import allocation
from packnet_tf import distribute
from packnet_tf import keras_file
from packnet_tf.errors import FileError
from packnet_tf.errors import FingerprintError
from packnet_tf.errors import WorkerError
from packnet_tf.model import PackNetModel

_SPARE = 2**26  # For what is not saved, such as metrics.


def load_model(
    filepath: "str | os.PathLike[str]",
    max_bytes: int | None = None,
    safe_mode: bool = True,
) -> PackNetModel:
    """Loads a packed model and checks the fingerprint of every task.

    The file may come from anyone. It is looked at before Keras reads it: it
    must be what `model.save()` writes, and name only classes of Keras,
    without those that bring code, of packnet_tf, and those that are
    registered with Keras, and make no more of them than a file of its size
    may. A model that `keras.saving.load_model` loads is checked at its first
    use.

    Args:
        filepath: A `.keras` file that `model.save()` wrote, or the folder
            that it wrote with `zipped=False`.
        max_bytes: The most bytes that the arrays in it may have. Defaults to
            whatever the file holds; the model never gets more than that.
        safe_mode: `False` for a file that you trust: its configuration may
            then hold anything, such as a `Lambda`, and can run any code.

    Returns:
        The packed model, in the stage it was saved in, with its optimizer.

    Raises:
        FileError: If it cannot be read, or holds no packed model.
        FingerprintError: If a frozen task is not what it was.
        ArgumentError: If `max_bytes` is no positive integer.
        WorkerError: If another worker of the same training is gone.
    """
    model = load_any(filepath, max_bytes, safe_mode)
    if not isinstance(model, PackNetModel):
        raise FileError(
            "The file holds a plain Keras model; load it with "
            "`keras.saving.load_model` and wrap it. Received: "
            f"filepath={str(filepath)!r} with {type(model).__name__}"
        )
    return model


def load_any(
    filepath: "str | os.PathLike[str]",
    max_bytes: int | None = None,
    safe_mode: bool = True,
) -> keras.Model:
    """Loads a model, packed or plain, from a file that is not trusted.

    Args:
        filepath: As for `load_model`.
        max_bytes: As for `load_model`.
        safe_mode: As for `load_model`.

    Returns:
        The model. If it is packed, its fingerprints are checked.

    Raises:
        FileError: If it cannot be read, or holds no model.
        FingerprintError: If a frozen task is not what it was.
        ArgumentError: If `max_bytes` is no positive integer.
        WorkerError: If another worker of the same training is gone.
    """
    allocation.check_max_bytes(max_bytes)
    size = keras_file.check(filepath, safe_mode)
    if max_bytes is not None and size > max_bytes:
        raise FileError(
            "The model is larger than `max_bytes`. If you trust it, allow "
            f"more. Received: filepath={str(filepath)!r} with arrays of "
            f"{size} bytes, max_bytes={max_bytes}"
        )
    try:
        with (
            distribute.watched(tf.distribute.get_strategy()),
            allocation.bounded(size + _SPARE),
        ):
            model = keras.saving.load_model(filepath, safe_mode=safe_mode)
        if isinstance(model, PackNetModel):
            model.verify()
        return model
    except (FingerprintError, WorkerError):
        raise
    # Whatever a configuration makes Keras, TensorFlow or HDF5 raise.
    except Exception as error:
        raise FileError(
            "Cannot load a model from there; it must be a `.keras` "
            f"file that `model.save()` wrote: {error} "
            f"Received: filepath={str(filepath)!r}"
        ) from error
