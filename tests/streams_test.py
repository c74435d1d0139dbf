import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from loading import datasets
from loading import decoding
from loading import pipelines
from loading import streams
from loading import tfds_sets
from loading import tfrecords
from loading.datasets import DataError
from loading.images import ImageError
from PIL import Image

from packnet_tf.errors import FileError

COUNT = 30


def pixels(number):
    return np.random.default_rng(number).integers(
        0, 256, (12 + number % 3, 10, 3), np.uint8
    )


class OwnColors(tfds.core.GeneratorBasedBuilder):
    """A set with photographs, labels and boxes, in several files."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "picture": tfds.features.Image(encoding_format="jpeg"),
                    "bbox": tfds.features.BBoxFeature(),
                    "label": tfds.features.ClassLabel(names=["a", "b", "c"]),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(0),
            "test": self._generate_examples(COUNT),
        }

    def _generate_examples(self, first):
        for number in range(first, first + COUNT):
            yield (
                number,
                {
                    "picture": pixels(number),
                    "bbox": tfds.features.BBox(0.1, 0.2, 0.8, 0.9),
                    "label": number % 3,
                },
            )


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    tfds.builder("own_colors", data_dir=folder).download_and_prepare(
        download_config=tfds.download.DownloadConfig(num_shards=4)
    )
    return folder


@pytest.fixture
def settings(tmp_path, tfds_dir):
    return datasets.Settings(
        size=8,
        boxed_size=6,
        channels=3,
        cache_dir=str(tmp_path / "cache"),
        tfds_dir=str(tfds_dir),
        store_gigabytes=0.0,
    )


@pytest.fixture
def folder(tmp_path):
    for number in range(COUNT):
        place = tmp_path / "set" / "abc"[number % 3]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(number)).save(place / f"{number}.png")
    return tmp_path / "set"


def assert_same(streamed, stored):
    """Checks that two tasks have the same images in the same order."""
    for name in ("train", "val", "test"):
        one, other = getattr(streamed, name), getattr(stored, name)
        assert isinstance(one.images, streams.Stream)
        assert isinstance(other.images, np.ndarray)
        np.testing.assert_array_equal(one.rows, other.rows)
        places = np.arange(len(one))[::-1]
        for found, expected in zip(one.take(places), other.take(places)):
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)


def test_a_streamed_folder_is_what_is_stored_of_it(folder, settings):
    text = f"folder:{folder}"
    streamed = datasets.load(text, settings)
    assert not list(pathlib.Path(settings.cache_dir).rglob("images.bin"))
    stored = datasets.load(
        text, dataclasses.replace(settings, store_gigabytes=1.0)
    )
    assert_same(streamed, stored)
    # What is stored already is taken from there.
    again = datasets.load(text, settings)
    assert isinstance(again.train.images, np.ndarray)


@pytest.mark.parametrize("boxed", [(), ("own_colors",)])
def test_a_streamed_set_of_tfds_is_what_is_stored_of_it(boxed, settings):
    settings = dataclasses.replace(settings, boxed=boxed)
    streamed = datasets.load("own_colors", settings)
    assert streamed.train.images.shape[1:] == (
        (6, 6, 3) if boxed else (8,) * 2 + (3,)
    )
    files = {name.partition("@")[0] for name in streamed.train.images._names}
    assert len(files) == 4
    stored = datasets.load(
        "own_colors", dataclasses.replace(settings, store_gigabytes=1.0)
    )
    assert_same(streamed, stored)


@pytest.mark.parametrize("augmentation", ["none", "crop_flip"])
def test_training_on_a_stream_gives_the_same_batches(
    augmentation, folder, settings
):
    pipeline = pipelines.Pipeline(6, 7, augmentation, seed=2)
    text = f"permuted:3:folder:{folder}"
    found = [
        list(
            pipeline.training(datasets.load(text, chosen), start=2)
            .take(6)
            .as_numpy_iterator()
        )
        for chosen in (
            settings,
            dataclasses.replace(settings, store_gigabytes=1.0),
        )
    ]
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


def test_only_what_is_asked_for_is_decoded():
    decoded = []

    def decode(row):
        decoded.append(row)
        return np.full((2, 2, 1), row, np.uint8)

    stream = streams.Stream(range(9), (2, 2, 1), decode, 0, "nine")
    assert (len(stream), stream.shape) == (9, (9, 2, 2, 1))
    assert decoded == []
    assert stream[np.array([7, 1, 7])][:, 0, 0, 0].tolist() == [7, 1, 7]
    assert sorted(decoded) == [1, 7, 7]
    assert stream[3].shape == (2, 2, 1)
    assert stream[2:4].shape == (2, 2, 2, 1)
    with pytest.raises(IndexError):
        stream[9]


def test_the_fingerprint_of_a_stream_decodes_nothing(
    folder, settings, monkeypatch
):
    text = f"folder:{folder}"
    data = datasets.load(text, settings)
    monkeypatch.setattr(streams.Stream, "__getitem__", None)
    before = data.fingerprint()
    assert before == datasets.load(text, settings).fingerprint()
    assert before != datasets.load(f"permuted:1:{text}", settings).fingerprint()
    shutil.copytree(folder, folder.with_name("copy"))
    copy = f"folder:{folder.with_name('copy')}"
    assert datasets.load(copy, settings).fingerprint() == before
    Image.fromarray(pixels(77)).save(folder / "a" / "0.png")
    assert datasets.load(text, settings).fingerprint() != before


def test_files_that_are_no_images_are_left_out_before_training(
    folder, settings
):
    (folder / "a" / "bad.jpg").write_bytes(b"no image at all")
    text = f"folder:{folder}"
    data = datasets.load(text, settings)
    assert [line.split(":")[0] for line in data.skipped] == ["a/bad.jpg"]
    assert len(data.train) + len(data.val) + len(data.test) == COUNT
    with pytest.raises(DataError, match=r"max_bad_images=0.*bad\.jpg"):
        datasets.load(text, dataclasses.replace(settings, max_bad=0))


def test_images_that_break_off_are_black_up_to_a_limit(folder, settings):
    for name in ("0", "3"):
        path = folder / "a" / f"{name}.png"
        path.write_bytes(path.read_bytes()[:-80])
    text = f"folder:{folder}"
    data = datasets.load(text, dataclasses.replace(settings, max_bad=2))
    stream = data.train.images
    images = stream[np.arange(len(stream))]
    assert (images == 0).all((1, 2, 3)).sum() == 2
    assert [line.split(" ")[0] for line in stream.bad] == ["a/0.png", "a/3.png"]
    data = datasets.load(text, dataclasses.replace(settings, max_bad=1))
    stream = data.train.images
    with pytest.raises(DataError, match=r"max_bad_images=1.*a/0\.png"):
        stream[np.arange(len(stream))]
    # In training TensorFlow wraps it.
    part = datasets.Part.whole(stream, data.train.labels)
    batches = pipelines.Pipeline(8, 30).training(
        dataclasses.replace(data, train=part)
    )
    with pytest.raises(tf.errors.OpError) as caught:
        next(iter(batches))
    error = pipelines.data_error(caught.value)
    assert isinstance(error, DataError)
    assert str(error).startswith("set (all): more than --max_bad_images=1")
    assert "\n" not in str(error)
    assert (
        pipelines.data_error(tf.errors.InternalError(None, None, "x")) is None
    )


def test_a_damaged_index_is_made_anew(settings):
    expected = datasets.load("own_colors", settings).test.take(np.arange(5))
    for path in pathlib.Path(settings.cache_dir).glob("*.npz"):
        path.write_bytes(b"PK damaged")
    found = datasets.load("own_colors", settings).test.take(np.arange(5))
    np.testing.assert_array_equal(found[0], expected[0])


def test_other_files_than_tfrecords_are_not_streamed(settings, tmp_path):
    builder = tfds.builder(
        "own_colors", data_dir=tmp_path / "tfds", file_format="riegeli"
    )
    source = tfds_sets.Source(
        "own",
        ("a", "b", "c"),
        {"train": "train"},
        builder,
        "picture",
        "label",
        None,
    )
    with pytest.raises(DataError, match=r"--store_gigabytes.*files of riegeli"):
        source.stream("train", (8, 8, 3), False, tmp_path, 0, "own (train)")


def test_a_cut_tfrecord_file_is_refused(tmp_path):
    path = tmp_path / "a.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for text in (b"one", b"", b"three"):
            writer.write(text)
    table = tfrecords.offsets(path)
    read = tfrecords.reader(
        tmp_path, np.array(["a.tfrecord"]), np.insert(table, 0, 0, axis=1)
    )
    assert [read(row) for row in range(3)] == [b"one", b"", b"three"]
    whole = path.read_bytes()
    for size in (1, 11, 14, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"a\.tfrecord"):
            tfrecords.offsets(path)
    path.write_bytes(whole[:-6])
    with pytest.raises(ImageError, match="ends before"):
        read(2)
    path.unlink()
    with pytest.raises(ImageError, match="No such file"):
        read(0)


def test_a_full_disk_is_told_before_anything_is_decoded(
    folder, settings, monkeypatch
):
    settings = dataclasses.replace(settings, store_gigabytes=1.0)
    other = folder.with_name("other")
    shutil.copytree(folder, other)
    texts = [f"folder:{folder}", f"split:0-1:folder:{other}"]
    each = COUNT * 8 * 8 * 3
    monkeypatch.setattr(decoding, "free_bytes", lambda folder: int(1.5 * each))
    datasets.load(texts[0], settings)
    shutil.rmtree(settings.cache_dir)
    with pytest.raises(FileError) as caught:
        datasets.load_all(texts, settings)
    message = str(caught.value)
    for word in ("--cache_dir", "--store_gigabytes", "--resize"):
        assert word in message
    assert "Received: set (all), other (all), which take" in message
    assert not pathlib.Path(settings.cache_dir).exists()
    # What is stored already needs no room, and what is streamed none either.
    datasets.load(texts[0], settings)
    datasets.load_all(texts, settings)
    shutil.rmtree(settings.cache_dir)
    datasets.load_all(texts, dataclasses.replace(settings, store_gigabytes=0.0))


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(
            "/proc/cache",
            marks=pytest.mark.skipif(
                not os.path.isdir("/proc"), reason="there is no /proc"
            ),
        ),
        "file",
        "file/cache",
    ],
)
def test_a_cache_that_cannot_be_written_is_no_full_disk(
    place, folder, settings, tmp_path
):
    (tmp_path / "file").write_text("no folder")
    cache = str(tmp_path / place)
    settings = dataclasses.replace(
        settings, store_gigabytes=1.0, cache_dir=cache
    )
    with pytest.raises(FileError, match=f"--cache_dir={cache} \\(N") as caught:
        datasets.load(f"folder:{folder}", settings)
    assert "disk" not in str(caught.value)


def test_what_will_be_stored_is_said(folder, settings, capsys):
    settings = dataclasses.replace(settings, store_gigabytes=1.0)
    datasets.load(f"folder:{folder}", settings)
    out = capsys.readouterr().out
    assert "set (all): 0.00 GB will be stored, of" in out
    assert "decoding" in out


def test_free_bytes_are_those_of_the_disk(tmp_path):
    found = decoding.free_bytes(tmp_path / "not" / "there" / "yet")
    assert found == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)


@pytest.mark.parametrize("images", ["stream", "array"])
def test_a_program_ends_while_images_are_being_read(images):
    code = f"""
import time
import numpy as np
from loading import datasets, pipelines, streams
def decode(row):
    time.sleep(0.002)
    sum(range(20_000))
    return np.zeros((4, 4, 1), np.uint8)
class Slow(np.ndarray):
    def __getitem__(self, rows):
        time.sleep(0.02)
        return np.asarray(super().__getitem__(rows))
images = {{
    "stream": streams.Stream(range(64), (4, 4, 1), decode, 0, "slow"),
    "array": np.zeros((64, 4, 4, 1), np.uint8).view(Slow),
}}[{images!r}]
part = datasets.Part.whole(images, np.zeros(64, np.int32))
data = datasets.Dataset("slow", "", ("a", "b"), part, part, part)
batches = iter(pipelines.Pipeline(4, 8).training(data))
next(batches)
cycle = [batches]
cycle.append(cycle)
del cycle, batches
"""
    root = pathlib.Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{root}:{root / 'examples'}"},
        timeout=120,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
