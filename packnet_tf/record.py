"""What is on record of a frozen task, and what a check of it covers."""

import dataclasses
from typing import Any
from typing import NamedTuple

from packnet_tf.difference import Sketch
from packnet_tf.errors import ArgumentError

PARTS = ("backbone", "per_task", "head")


class Proof(NamedTuple):
    """What was checked of a frozen task: all that its outputs depend on.

    Attributes:
        fingerprint: The task's fingerprint, SHA-256 in hexadecimal.
        variables: How many variables of the backbone and of its head.
        entries: How many of their entries; of a packed weight those that the
            task computes with, its own and those of earlier tasks.
    """

    fingerprint: str
    variables: int
    entries: int


@dataclasses.dataclass(frozen=True)
class Record:
    """The digests of one task.

    Attributes:
        backbone: SHA-256 per backbone variable, of what this task owns in it.
        per_task: SHA-256 per backbone variable of which each task has its own.
        head: SHA-256 per variable of the task's head.
        base: SHA-256 of the backbone as this task sees it.
        fingerprint: SHA-256 of `base`, the per-task variables and the head.
        sketches: Of each of `PARTS`, a sketch per variable. Empty until the
            task is frozen; in files some or all may be missing.
    """

    backbone: dict[str, str]
    per_task: dict[str, str]
    head: dict[str, str]
    base: str
    fingerprint: str
    sketches: dict[str, dict[str, Sketch]] = dataclasses.field(
        default_factory=dict
    )

    def to_config(self, least: int = 0) -> dict[str, Any]:
        """Returns the record as a dict that JSON can hold.

        Args:
            least: Sketches of fewer entries are left out.
        """
        return {
            **{part: dict(getattr(self, part)) for part in PARTS},
            "base": self.base,
            "fingerprint": self.fingerprint,
            "sketches": {
                part: {
                    key: each.to_config()
                    for key, each in of_part.items()
                    if each.entries >= least
                }
                for part, of_part in self.sketches.items()
            },
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Record":
        """Makes a record from what `to_config` returned.

        Args:
            config: A dict, which may come from a file that is not trusted.
                Sketches may be missing.

        Returns:
            The record.

        Raises:
            ArgumentError: If it is anything else than a record.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(config, dict) or set(config) | {"sketches"} != set(
            names
        ):
            raise ArgumentError(
                f"A task's record is a dict of {names}. Go back to a file "
                f"that is whole. Received: {_brief(config)}"
            )
        texts = [config["base"], config["fingerprint"]]
        for part in PARTS:
            if not isinstance(config[part], dict):
                raise ArgumentError(
                    "The digests of a task are a dict. Go back to a file that "
                    f"is whole. Received: {part}={_brief(config[part])}"
                )
            texts += [*config[part], *config[part].values()]
        wrong = [text for text in texts if not isinstance(text, str)]
        if wrong:
            raise ArgumentError(
                "The digests of a task are text. Go back to a file that is "
                f"whole. Received: {_brief(wrong[0])}"
            )
        sketches = config.get("sketches", {})
        _check_sketches(config, sketches)
        sketches = {
            part: {
                key: Sketch.from_config(each) for key, each in of_part.items()
            }
            for part, of_part in sketches.items()
        }
        return cls(**{**config, "sketches": sketches})


def _check_sketches(config: dict[str, Any], sketches: Any) -> None:
    """Checks that sketches are of what has a digest, or raises."""
    if isinstance(sketches, dict) and all(
        part in PARTS
        and isinstance(of_part, dict)
        and set(of_part) <= set(config[part])
        for part, of_part in sketches.items()
    ):
        return
    raise ArgumentError(
        "The sketches in a task's record are of variables that have a digest. "
        "Go back to a file that is whole. "
        f"Received: sketches={_brief(sketches)}"
    )


def _brief(value: Any) -> str:
    return repr(value)[:80]
