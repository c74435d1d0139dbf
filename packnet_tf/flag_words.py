"""What the library says in Python, said in flags of the command line."""

import ast
import re
from collections.abc import Mapping
from typing import Any

_PHRASES = (
    (
        "Import what registers it first",
        "Name what registers it with `--import`",
    ),
    ("`safe_mode=False`", "`--trust`"),
    (
        "Load this with `packnet_tf.load_task`",
        "Add this to a model with `packnet apply`",
    ),
    ("Load this with `packnet_tf.load_pack`", "Give this as the model"),
    ("`packnet_tf.save_pack(model, path)`", "`packnet pack`"),
    ("`packnet_tf.load_model`", "its own path"),
)
_LOAD = re.compile(r"`packnet_tf\.load_pack\(path, (max_bytes=\d+)\)`")
_ARGUMENT = re.compile(r"`([a-z_]+)`")
_ASSIGNED = re.compile(
    r"(?<![\w.-])([a-z_]+)="
    r"(\[[^]]*\]|\{[^}]*\}|'[^']*'|\"[^\"]*\"|(?:[^\s,;`).]|\.(?=\w))*)"
)
_NOTHING = ("None", "[]", "{}")
_RECEIVED = " Received: "


def translate(message: str, flags: Mapping[str, Any]) -> str:
    """Says in flags what a message says in arguments.

    Args:
        message: Of an error or a warning.
        flags: The value of each flag that the command has, by its name.
            Those that were not given are empty or `None`.

    Returns:
        The message, in one line if it was.
    """
    for phrase, other in _PHRASES:
        message = message.replace(phrase, other)
    message = _LOAD.sub(r"`\1`", message)
    advice, received, given = message.partition(_RECEIVED)

    def name(match: re.Match[str]) -> str:
        return f"`--{match[1]}`" if match[1] in flags else match[0]

    def assign(match: re.Match[str]) -> str:
        if match[1] not in flags:
            return match[0]
        return f"--{match[1]}={_plain(match[2])}"

    def tell(match: re.Match[str]) -> str:
        if match[1] in flags and match[2] in _NOTHING:
            return f"no --{match[1]}"
        # What was not given is of another argument, or follows from one.
        return assign(match) if flags.get(match[1]) else match[0]

    advice = _ASSIGNED.sub(assign, _ARGUMENT.sub(name, advice))
    return advice + received + _ASSIGNED.sub(tell, given)


def _plain(value: str) -> str:
    """Writes a value of Python as a flag takes it."""
    try:
        found = ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return value
    if isinstance(found, dict):
        found = [f"{name}:{number}" for name, number in found.items()]
    return ",".join(map(str, found)) if isinstance(found, list) else str(found)
