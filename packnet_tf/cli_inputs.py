"""What the command line reads: models, modules, names and arrays."""

import argparse
import contextlib
import difflib
import importlib
import inspect
import os
import pathlib
import sys
import zipfile
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from packnet_tf import archive
from packnet_tf import loading
from packnet_tf import pack_format
from packnet_tf import progress
from packnet_tf.errors import FileError
from packnet_tf.errors import PackageError
from packnet_tf.model import PackNetModel

_IN_RUN = "packed.keras"
_PACKS = (".packnet", ".packtask")


def load(
    path: "str | pathlib.Path",
    max_bytes: int | None = None,
    safe_mode: bool = True,
) -> tuple[PackNetModel, pathlib.Path]:
    """Loads a packed model from any file that holds one.

    Args:
        path: A `.keras` file, a pack file, or a run folder.
        max_bytes: As for `load_pack` and `load_model`.
        safe_mode: As for `load_pack` and `load_model`.

    Returns:
        The model, and the file that it came from.

    Raises:
        FileError: If there is none, or it cannot be loaded.
        FingerprintError: If a frozen task is not what it was.
    """
    file = _find(path)
    load_file = archive.load_pack if is_pack(file) else loading.load_model
    return load_file(file, max_bytes, safe_mode), file


@contextlib.contextmanager
def imported(names: Sequence[str]) -> Iterator[None]:
    """Imports modules, and finds them in the current folder meanwhile.

    Args:
        names: As `import` takes them.

    Yields:
        Once.

    Raises:
        PackageError: If one cannot be imported.
    """
    added = [os.getcwd()] if names else []
    sys.path[:0] = added
    try:
        for name in names:
            _import(name)
        yield
    finally:
        for folder in added:
            with contextlib.suppress(ValueError):  # A module took it out.
                sys.path.remove(folder)


def _import(name: str) -> None:
    try:
        # What it prints is no result.
        with contextlib.redirect_stdout(sys.stderr):
            importlib.import_module(name)
    # Whatever the code of a user raises.
    except (Exception, SystemExit) as error:
        raise PackageError(
            f"Cannot import the module: {type(error).__name__}: {error}. Name "
            "it as `import` does, and install it or be in the folder that it "
            f"is in. Received: --import={name}, in {os.getcwd()!r}"
        ) from error


def _find(path: "str | pathlib.Path") -> pathlib.Path:
    """Returns the file that a path names, or the folder of a Keras model."""
    file = pathlib.Path(path)
    if not file.exists():
        raise FileError(
            "There is no such file or folder. Check the path. "
            f"Received: path={str(path)!r}"
        )
    if not file.is_dir():
        return file
    if (file / _IN_RUN).exists():
        return file / _IN_RUN
    found = progress.read(file)
    if found is not None:
        return file / found.model
    if (file / "config.json").exists():  # Saved with `zipped=False`.
        return file
    raise FileError(
        f"This is no run folder. One holds {_IN_RUN!r}, as of "
        "examples/fine_grained.py once a task is learned, or is the "
        "`checkpoint_dir` of `sequence.run`, with its 'progress.json'. Pass "
        "the path of one, or of a file. "
        f"Received: path={str(path)!r}, a folder without them"
    )


def is_pack(file: pathlib.Path) -> bool:
    """Tells by its first bytes, or else by its name, who can read a file.

    Args:
        file: A file, or the folder of a Keras model.

    Returns:
        `True` if it is a pack file, `False` if it is Keras' own.

    Raises:
        FileError: If it is neither.
    """
    if file.is_dir():
        return False
    begin = b""
    if file.is_file():
        with file.open("rb") as content:
            begin = content.read(len(pack_format.MAGIC))
    if begin == pack_format.MAGIC or file.suffix.lower() in _PACKS:
        return True
    if file.suffix.lower() != ".keras":
        raise FileError(
            "A packed model is in a `.keras` file, or in a pack file, which "
            "begins with other bytes. Pass the path of one. "
            f"Received: path={str(file)!r}, which begins with {begin!r}"
        )
    return False


def refuse_input(args: argparse.Namespace) -> None:
    """Checks that the model that is read would not be overwritten.

    Args:
        args: The command line, with a path and an output.

    Raises:
        FileError: If it would, or there is no such model.
    """
    file = _find(args.path)
    output = pathlib.Path(os.path.realpath(args.output))
    # A model may be a folder, which the output may be within.
    for place in (output, *output.parents):
        if place.exists() and place.samefile(file):
            raise FileError(
                f"What `{args.command}` writes has less in it than the model "
                "that it reads, and would replace that. Choose another "
                f"--output. Received: --output={args.output}, for the model "
                f"{str(file)!r}"
            )


def network(args: argparse.Namespace) -> keras.Model:
    """Returns what is to be planned: a file's model, or one of Keras.

    Args:
        args: The command line, with a path, or a name of keras.applications
            in any case.

    Raises:
        FileError: If there is neither, or the file cannot be loaded.
    """
    if os.path.exists(args.path):
        file = _find(args.path)
        load_file = archive.load_pack if is_pack(file) else loading.load_any
        return load_file(file, args.max_bytes, not args.trust)
    known = {
        name.casefold(): (name, make)
        for name, make in inspect.getmembers(
            keras.applications, inspect.isfunction
        )
    }
    asked = args.path.casefold()
    if asked not in known:
        near = difflib.get_close_matches(asked, known) or ["vgg16", "resnet50"]
        raise FileError(
            "There is no such file or folder, and no such network in "
            "keras.applications. Check the path, or give a name of those, "
            f"such as {' or '.join(known[name][0] for name in near)}. "
            f"Received: path={args.path!r}"
        )
    return known[asked][1](weights=None)


def read_names(path: str) -> list[str]:
    """Reads the names of classes.

    Args:
        path: A text file with a name per line.

    Returns:
        The names.

    Raises:
        FileError: If it cannot be read, or is no text.
    """
    try:
        return pathlib.Path(path).read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FileError(
            "--class_names is a text file in UTF-8, the name of a class per "
            f"line. Pass the path of one. Received: {path!r}: {reason}"
        ) from error


def read_arrays(path: str) -> "np.ndarray | dict[str, np.ndarray]":
    """Reads an array, or several by their names.

    Args:
        path: A `.npy` or `.npz` file.

    Returns:
        The array, or a dict of them.

    Raises:
        FileError: If it cannot be read, or is another file.
    """
    try:
        # Given a path, it leaves files open that are no archive.
        with open(path, "rb") as file:
            found = np.load(file, allow_pickle=False)
            return found if isinstance(found, np.ndarray) else dict(found)
    except (EOFError, OSError, ValueError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or error
        raise FileError(
            "--representative_data is a file of numpy.save (.npy) or, of "
            "arrays by the names of the inputs, of numpy.savez (.npz). "
            f"Received: {path!r}: {reason}"
        ) from error


def arrange(data: Any, inputs: Any) -> Any:
    """Puts arrays into the structure of a network's inputs.

    Args:
        data: What `read_arrays` returned; an array passes as it is.
        inputs: The symbolic inputs.

    Returns:
        The arrays in that structure.

    Raises:
        FileError: If the names are others than those of the inputs.
    """
    if not isinstance(data, dict):
        return data
    names = [x.name for x in keras.tree.flatten(inputs)]
    if sorted(data) != sorted(names):
        raise FileError(
            "--representative_data has an array for each input, by its name: "
            f"{names}. Received: {list(data)}"
        )
    return keras.tree.pack_sequence_as(inputs, [data[name] for name in names])
