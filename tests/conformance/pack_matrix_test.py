"""Pack files and deltas of a network around each layer class."""

import keras
import pytest
from helpers import all_values
from helpers import assert_same_values
from layer_networks import CASES
from layer_networks import build

import packnet_tf


@pytest.mark.parametrize("name", CASES)
def test_every_layer_is_packed_and_unpacked(name, tmp_path):
    model = packnet_tf.wrap(
        build(name), head=None, biases="per_task", normalization="per_task"
    )
    model.add_task("one", head=keras.layers.Dense(2))
    model.prune(0.5)
    model.freeze_task()
    packnet_tf.save_pack(model, tmp_path / "model.packnet")
    device = packnet_tf.load_pack(tmp_path / "model.packnet")
    assert_same_values(all_values(model), all_values(device))
    assert device.verify() == model.verify()
    model.add_task("two", head=keras.layers.Dense(3))
    model.prune(0.5)
    model.freeze_task()
    packnet_tf.save_task(model, "two", tmp_path / "two.packtask")
    packnet_tf.load_task(device, tmp_path / "two.packtask")
    assert device.verify() == model.verify()
