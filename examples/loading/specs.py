"""What a task is given as, `[NAME:]SOURCE`, and how its data is prepared.

SOURCE is

- `bundled:NAME`, or NAME alone: data that comes with the examples;
- `folder:PATH`: one folder of images per class, see `folders.find`;
- `npz:PATH`: arrays, see `npz_files.read`;
- `tfds:NAME`, or any other NAME alone: a set of TensorFlow Datasets;
- `split:FIRST-LAST:SOURCE`: some classes of another source;
- `permuted:SEED:SOURCE`: another source, its pixels in another order.
"""

import dataclasses
import pathlib

from loading import bundled
from loading.bundled import DataError

BUNDLED = bundled.BUNDLED
KINDS = ("bundled", "folder", "npz", "permuted", "split", "tfds")
_MAX_SIDE = 1024


@dataclasses.dataclass(frozen=True)
class Settings:
    """How data is prepared.

    Attributes:
        size: Height and width that images are stored at, in pixels. The
            shorter edge is scaled to it, and the middle square is kept.
        boxed_size: The same, of tasks cut to their bounding boxes. Both edges
            are scaled to it.
        channels: 3 for RGB, 1 for gray.
        boxed: Names of the tasks whose images are cut to bounding boxes.
        val_fraction: Part of each training class that becomes validation
            data, where the source has none.
        test_fraction: Part of each class that becomes test data, where the
            source is not split.
        seed: Of the splits.
        cache_dir: Where decoded images are kept.
        data_dir: Where the bundled data is, `None` for its place.
        tfds_dir: Where TFDS keeps its data, `None` for its default.
        download: Whether TFDS may download.
        max_bad: How many images of a part may fail to be decoded.
        store_gigabytes: How much the decoded images of a source may take
            (1e9 bytes); those of a larger one are decoded while training.
    """

    size: int = 28
    boxed_size: int = 28
    channels: int = 1
    boxed: tuple[str, ...] = ()
    val_fraction: float = 0.1
    test_fraction: float = 0.2
    seed: int = 0
    cache_dir: str = "runs/cache"
    data_dir: str | None = None
    tfds_dir: str | None = None
    download: bool = True
    max_bad: int = 10
    store_gigabytes: float = 20.0


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a task is given as: its name, and the kind and place of its data."""

    name: str
    kind: str
    place: str

    @property
    def base(self) -> "Spec":
        """The source that this one is made of, itself if it is made of none."""
        if self.kind not in ("permuted", "split"):
            return self
        return parse(self.place.partition(":")[2])

    def __str__(self) -> str:
        return f"{self.name}:{self.kind}:{self.place}"


def parse(text: str) -> Spec:
    """Reads `[NAME:]SOURCE`.

    Args:
        text: What the user gave.

    Returns:
        The parts. A task without a name has that of its source.

    Raises:
        DataError: If a part is empty.
    """
    name, source = "", text
    head, colon, rest = text.partition(":")
    if colon and head not in KINDS and not _is_version(rest):
        name, source = head, rest
    kind, colon, place = source.partition(":")
    if not (colon and kind in KINDS):
        kind = "bundled" if source in BUNDLED else "tfds"
        place = source
    if not name and head:
        name = place.partition(":")[0]
        if kind in ("folder", "npz"):
            name = pathlib.PurePath(place).stem
        elif kind in ("permuted", "split"):
            number, _, rest = place.partition(":")
            name = f"{parse(rest).name}_{number}"
        elif kind == "tfds":
            name = name.partition("/")[0]
    if not name or not place:
        raise DataError(
            "A task is given as NAME:SOURCE or SOURCE, where SOURCE is "
            "`folder:PATH`, `npz:PATH`, `bundled:NAME`, "
            "`split:FIRST-LAST:SOURCE`, `permuted:SEED:SOURCE` or a name of "
            f"TensorFlow Datasets. Received: {text!r}"
        )
    return Spec(name, kind, place)


def check(settings: Settings) -> None:
    """Checks the numbers of settings.

    Args:
        settings: How data is prepared.

    Raises:
        DataError: If one is out of its range.
    """
    for name in ("val_fraction", "test_fraction"):
        value = getattr(settings, name)
        if not 0.0 < value < 1.0:
            raise DataError(
                f"--{name} is a fraction of each class, in (0, 1). "
                f"Received: {value}"
            )
    if not 1 <= settings.size <= _MAX_SIDE:
        raise DataError(
            f"Images are stored at 1 to {_MAX_SIDE} pixels. "
            f"Received: {settings.size}"
        )


def _is_version(text: str) -> bool:
    """Tells `1.0.0` or `1.*.*`, which follows the name of a set of TFDS."""
    return text.replace(".", "").replace("*", "").isdigit() or text == "*.*.*"
