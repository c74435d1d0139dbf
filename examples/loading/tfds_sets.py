"""Image-classification sets from TensorFlow Datasets."""

import dataclasses
import pathlib
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import numpy as np
from loading import image_store
from loading import images
from loading import streams
from loading import tfrecords
from loading.bundled import DataError
from loading.images import ImageError

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
            boxed: Whether to cut out the bounding box, not the middle square.
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

    def stream(
        self,
        part: str,
        shape: tuple[int, int, int],
        boxed: bool,
        folder: pathlib.Path,
        max_bad: int,
        title: str,
    ) -> image_store.Stored:
        """Opens the images of a part, to be decoded when they are asked for.

        They are the same, in the same order, as those of `examples`.

        Args:
            part: A key of `splits`.
            shape: Of each decoded image.
            boxed: Whether to cut out the bounding box, not the middle square.
            folder: Where the index is kept, of where each image is.
            max_bad: How many may fail to be decoded.
            title: What they are, for progress and errors.

        Raises:
            DataError: If the files of the set are of a kind without random
                access.
        """
        kind = self.builder.info.file_format.value
        if kind != "tfrecord":
            raise DataError(
                "A set that is larger than --store_gigabytes is decoded while "
                "training, which takes TFRecord files. Prepare it in that "
                "format, or raise the limit. "
                f"Received: {title} in files of {kind}"
            )
        root = pathlib.Path(self.builder.data_path)
        key = {"tfds": self.name, "split": self.splits[part], "data": str(root)}
        known = streams.index(
            folder,
            {**key, "boxed": boxed},
            lambda: self._index(part, root, boxed, title),
        )
        read = tfrecords.reader(root, known["files"], known["places"])
        feature = self.builder.info.features[self.image]

        def decode(row: int) -> np.ndarray:
            import tensorflow as tf

            data = read(row)
            box = known["boxes"][row] if boxed else None
            try:
                example = tf.io.parse_single_example(
                    data, {self.image: tf.io.FixedLenFeature((), tf.string)}
                )
                array = feature.decode_example(example[self.image]).numpy()
            except (tf.errors.OpError, ValueError) as error:
                lines = str(error).splitlines() or [type(error).__name__]
                raise ImageError(lines[0]) from None
            return images.resize(array, *shape[1:], box)

        names = [
            f"{known['files'][number]}@{start}+{length}"
            for number, start, length in known["places"].tolist()
        ]
        stream = streams.Stream(names, shape, decode, max_bad, title)
        return image_store.Stored(stream, known["labels"], ())

    def _index(
        self, part: str, root: pathlib.Path, boxed: bool, title: str
    ) -> dict[str, np.ndarray]:
        """Reads all labels, and where each image is."""
        import keras  # After packnet_tf, which checks its backend.
        import tensorflow_datasets as tfds

        wanted = {self.label: True, **({self.box: True} if boxed else {})}
        data = self.builder.as_dataset(
            split=self.splits[part],
            shuffle_files=False,
            decoders=tfds.decode.PartialDecoding(wanted),
            read_config=tfds.ReadConfig(add_tfds_id=True),
        )
        ids, labels, boxes = [], [], []
        print(f"{title}: reading labels", flush=True)
        bar = keras.utils.Progbar(
            self.count(part), unit_name="image", interval=1
        )
        for batch in tfds.as_numpy(data.batch(1024)):
            ids += batch["tfds_id"].tolist()
            labels.append(batch[self.label])
            boxes.append(batch[self.box] if boxed else np.empty((0, 4)))
            bar.add(len(batch["tfds_id"]))
        names, places = tfrecords.locate(root, ids)
        return {
            "files": names,
            "places": places,
            "labels": np.concatenate(labels).astype(np.int32),
            "boxes": np.concatenate(boxes).astype(np.float32),
        }

    def count(self, part: str) -> int | None:
        """Returns how many images a part has, if TFDS knows."""
        try:
            return self.builder.info.splits[self.splits[part]].num_examples
        except (KeyError, ValueError, AttributeError):
            return None


def check(name: str, data_dir: str | None, boxed: bool) -> None:
    """Checks that there is such a data set, without downloading it.

    Args:
        name: As TFDS takes it: `"cars196"`, `"name/config:1.0.0"`.
        data_dir: Where TFDS keeps its data; `None` for its default.
        boxed: Whether bounding boxes are needed.

    Raises:
        DataError: If there is no such set, or if it has no image with one
            label.
    """
    _look(name, data_dir, boxed)


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
    builder, image, label, box = _look(name, data_dir, boxed)
    _prepare(builder, name, data_dir, download)
    return Source(
        builder.info.full_name,
        tuple(builder.info.features[label].names),
        _splits(builder),
        builder,
        image,
        label,
        box,
    )


def _look(
    name: str, data_dir: str | None, boxed: bool
) -> tuple[Any, str, str, str | None]:
    """Returns a builder, and the keys of its image, label and box."""
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
    return builder, image, label, box


def _prepare(
    builder: Any, name: str, data_dir: str | None, download: bool
) -> None:
    given = "" if data_dir is None else f", data_dir={data_dir!r}"
    # `tfds build` needs Apache Beam.
    command = (
        'python -c "import tensorflow_datasets as tfds; '
        f'tfds.builder({name!r}{given}).download_and_prepare()"'
    )
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
