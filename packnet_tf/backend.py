"""Checks, before anything else, that Keras 3 runs on TensorFlow."""

import os
import pathlib
import sys

from packnet_tf.errors import BackendError


def check() -> None:
    """Imports Keras and TensorFlow and checks that they go together.

    Raises:
        BackendError: If Keras is not version 3 or has another backend.
    """
    try:
        import keras
        import tensorflow as tf
    except ImportError as error:
        raise BackendError(
            "packnet_tf needs Keras 3 on TensorFlow: install `tensorflow` and "
            "set `KERAS_BACKEND=tensorflow`. Received: "
            f"KERAS_BACKEND={os.environ.get('KERAS_BACKEND')!r}, {error}"
        ) from error
    version = getattr(keras, "__version__", "")
    if not version.startswith("3."):
        raise BackendError(
            "packnet_tf needs Keras 3: install `keras>=3.10`. "
            f"Received: keras {version or '(no version)'}"
        )
    if keras.config.backend() != "tensorflow":
        raise BackendError(
            "packnet_tf runs on Keras with the TensorFlow backend: set "
            "`KERAS_BACKEND=tensorflow` before Python starts. Received: "
            f"backend={keras.config.backend()!r}"
        )
    # `tf.keras` becomes what it is at its first use. Using it now keeps it
    # Keras 3 when TF-MOT is imported later, which asks for Keras 2.
    tf.keras.__name__  # noqa: B018


def _is_program() -> bool:
    """Tells whether this process is the program `packnet`, about to begin."""
    name = getattr(sys, "argv", [""])[0]
    if name == "-m":  # Until the module is found.
        return "packnet_tf" in sys.orig_argv
    return pathlib.PurePath(name).name in ("packnet", "packnet.exe")


try:
    check()
except BackendError as error:
    if not _is_program():
        raise
    # Nothing of the program can be imported, which could tell.
    raise SystemExit(f"packnet: {error}") from None
