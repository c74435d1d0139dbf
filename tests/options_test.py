import keras
import numpy as np
import options
import pytest
from absl.testing import flagsaver
from PIL import Image

from packnet_tf.errors import ArgumentError
from packnet_tf.errors import PackNetError


@pytest.fixture
def flags(tmp_path):
    """Sets flags for one test."""
    flags = options.FLAGS
    if not flags.is_parsed():
        flags(["test"])

    def set_flags(**values):
        for name, value in values.items():
            setattr(flags, name, value)

    with flagsaver.flagsaver(cache_dir=str(tmp_path / "cache")):
        yield set_flags


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A saved network that tells three classes apart."""
    keras.utils.set_random_seed(0)
    path = tmp_path_factory.mktemp("network") / "network.keras"
    keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            keras.layers.Conv2D(4, 3),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3, activation="softmax"),
        ]
    ).save(path)
    return str(path)


def fill(folder, classes, count=8):
    generator = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (9, 9, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return f"folder:{folder}"


def test_the_kept_task_gets_its_data(flags, classifier, tmp_path):
    spec = fill(tmp_path / "abc", "abc")
    flags(network=classifier, keep="old", keep_train=spec, image_size=16)
    network = options.network(3)
    train, test = options.load_kept(network, 3)
    assert test is train
    assert train.num_classes == 3
    assert train.train.images.shape[1:] == (16, 16, 3)
    flags(keep_test=spec)
    train, test = options.load_kept(network, 3)
    assert (len(test.train), len(test.test)) == (0, 24)
    flags(keep_train=None, keep_test=None)
    assert options.load_kept(network, 3) == (None, None)


@pytest.mark.parametrize("flag", ["keep_train", "keep_test"])
def test_labels_of_another_number_of_classes_are_refused_before_decoding(
    flag, flags, classifier, tmp_path
):
    spec = fill(tmp_path / "two", "ab")
    flags(network=classifier, keep="old", image_size=16, **{flag: spec})
    network = options.network(3)
    with pytest.raises(PackNetError, match="2 classes, for 3 outputs"):
        options.load_kept(network, 3)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("flag", ["keep_train", "keep_test"])
def test_data_of_a_task_that_is_not_kept_is_refused(flag, flags, classifier):
    flags(network=classifier, image_size=16, **{flag: "folder:nowhere"})
    with pytest.raises(ArgumentError, match=f"--{flag} without --keep"):
        options.load_kept(options.network(3), 3)
