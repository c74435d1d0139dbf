"""Image-classification sets from TensorFlow Datasets."""

import dataclasses
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import images
import numpy as np
from bundled import DataError

# Sets whose published test part is unlabelled, or goes by another name.
_TEST = {"imagenet2012": "validation", "places365_small": "validation"}
# Papers of this line train on both; a validation part is then taken out.
_MERGED = ("oxford_flowers102", "dtd")


@dataclasses.dataclass(frozen=True)
class Source:
    """One data set.

    Attributes:
        name: Full name, with config and version.
        class_names: Names of the classes.
        splits: What TFDS calls each of `"train"`, `"test"` and perhaps
            `"val"`.
        builder: The TFDS builder.
        image: Key of the image.
        label: Key of the label.
        box: Key of the bounding box, `None` if there is none.
    """

    name: str
    class_names: tuple[str, ...]
    splits: dict[str, str]
    builder: Any
    image: str
    label: str
    box: str | None

    def examples(
        self, part: str, size: int, channels: int, boxed: bool
    ) -> Iterator[tuple[str, Callable[[], np.ndarray], int]]:
        """Yields name, decoder and label of each image of a part.

        Args:
            part: A key of `splits`.
            size: Height and width to resize to, in pixels.
            channels: 3 for RGB, 1 for gray.
            boxed: Whether to cut out the bounding box first.
        """
        import tensorflow_datasets as tfds

        split = self.splits[part]
        data = self.builder.as_dataset(split=split, shuffle_files=False)
        for number, example in enumerate(tfds.as_numpy(data)):
            array = example[self.image]
            box = example[self.box] if boxed else None

            def decode(array: Any = array, box: Any = box) -> np.ndarray:
                return images.resize(array, size, channels, box)

            yield f"{split}[{number}]", decode, example[self.label]

    def count(self, part: str) -> int | None:
        """Returns how many images a part has, if TFDS knows."""
        try:
            return self.builder.info.splits[self.splits[part]].num_examples
        except (KeyError, ValueError, AttributeError):
            return None


def find(
    name: str, data_dir: str | None, download: bool, boxed: bool
) -> Source:
    """Finds a data set, and downloads it if it is not there.

    Args:
        name: As TFDS takes it: `"cars196"`, `"name/config:1.0.0"`.
        data_dir: Where TFDS keeps its data; `None` for its default.
        download: Whether to download what is missing.
        boxed: Whether bounding boxes are needed.

    Returns:
        The data set, ready to be read.

    Raises:
        DataError: If there is no such set, if it has no image with one
            label, or if it cannot be had.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except Exception as error:  # TFDS raises what its parts raise.
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            "A task without `folder:`, `npz:` or `bundled:` names a data set "
            "of TensorFlow Datasets (https://www.tensorflow.org/datasets). "
            f"Received: {name!r} ({reason[0]})"
        ) from None
    features = builder.info.features
    image = _key(features, tfds.features.Image, "image")
    label = _key(features, tfds.features.ClassLabel, "label")
    box = _key(features, tfds.features.BBoxFeature, "bbox")
    if image is None or label is None:
        raise DataError(
            "A task is a set of images with one label each. "
            f"Received: {name!r} with {', '.join(features)}"
        )
    if boxed and box is None:
        raise DataError(
            "--boxed names tasks whose images come with a bounding box. "
            f"Received: {name!r} with {', '.join(features)}"
        )
    _prepare(builder, name, data_dir, download)
    return Source(
        builder.info.full_name,
        tuple(features[label].names),
        _splits(builder),
        builder,
        image,
        label,
        box,
    )


def _prepare(
    builder: Any, name: str, data_dir: str | None, download: bool
) -> None:
    command = f"tfds build {name}"
    if data_dir is not None:
        command += f" --data_dir={data_dir}"
    try:
        if download:
            builder.download_and_prepare()
        elif not builder.data_path.exists():
            raise FileNotFoundError("--nodownload was given")
    except (Exception, SystemExit) as error:
        lines = [line.strip() for line in str(error).splitlines()]
        reason = " ".join(line for line in lines if line)
        raise DataError(
            f"The data set {name!r} is not prepared, and cannot be now. Run "
            f"`{command}` where there is a network, and where the files are "
            "that some sets want by hand. Received: "
            f"{reason[:500] or type(error).__name__}"
        ) from None


def _splits(builder: Any) -> dict[str, str]:
    known = list(builder.info.splits or ())
    test = _TEST.get(builder.name)
    if test is None:
        test = "validation" if known and "test" not in known else "test"
    if builder.name in _MERGED:
        return {"train": "train+validation", "test": test}
    parts = {"train": "train", "test": test}
    if "validation" in known and test != "validation":
        parts["val"] = "validation"
    return parts


def _key(features: Any, kind: type, usual: str) -> str | None:
    """Returns the key of a feature, the one with the usual name first."""
    found = [
        key for key, feature in features.items() if isinstance(feature, kind)
    ]
    return usual if usual in found else next(iter(found), None)
