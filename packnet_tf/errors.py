"""What packnet_tf raises: one base class, and kinds that are builtins too.

Every message says what was expected, what to do, and ends with what came
(`Received: ...`).
"""


class PackNetError(Exception):
    """Base class of every error that packnet_tf raises on purpose."""


class BackendError(PackNetError, ImportError):
    """Keras runs on another backend than TensorFlow."""


class PackageError(PackNetError, ImportError):
    """The call needs a package that is not installed."""


class UnsupportedLayerError(PackNetError, TypeError):
    """A layer of the network cannot be protected, or is not understood."""


class ArgumentError(PackNetError, ValueError):
    """An argument is outside of what the call accepts."""


class TaskError(PackNetError, ValueError):
    """A task is unknown, named twice, or one too many."""


class StageError(PackNetError, RuntimeError):
    """The call does not fit the stage that the current task is in."""


class FingerprintError(PackNetError, RuntimeError):
    """A frozen task no longer computes with what it was frozen with."""


class FileError(PackNetError, OSError):
    """A file or folder cannot be read or written as asked."""


class WorkerError(PackNetError, ConnectionError):
    """Another worker of the same training is gone, or differs."""
