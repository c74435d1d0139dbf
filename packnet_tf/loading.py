"""Loading a packed model, and checking it at once."""

import os

import keras

from packnet_tf.errors import FileError
from packnet_tf.model import PackNetModel


def load_model(filepath: "str | os.PathLike[str]") -> PackNetModel:
    """Loads a packed model and checks the fingerprint of every task.

    `keras.saving.load_model` loads the same; a model loaded by it is checked
    at its first use.

    Args:
        filepath: A `.keras` file that `model.save()` wrote.

    Returns:
        The packed model, in the stage it was saved in, with its optimizer.

    Raises:
        FileError: If it cannot be read, or holds no packed model.
        FingerprintError: If a frozen task is not what it was.
    """
    try:
        model = keras.saving.load_model(filepath)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise FileError(
            "Cannot load a packed model from there; it must be a `.keras` "
            f"file that `model.save()` wrote: {error} "
            f"Received: filepath={str(filepath)!r}"
        ) from error
    if not isinstance(model, PackNetModel):
        raise FileError(
            "The file holds a plain Keras model; load it with "
            "`keras.saving.load_model` and wrap it. "
            f"Received: filepath={str(filepath)!r} with {type(model).__name__}"
        )
    model.verify()
    return model
