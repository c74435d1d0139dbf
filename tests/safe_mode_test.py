"""Files with code: refused by every reader, unless the user trusts them."""

import keras
import numpy as np
import pytest

import packnet_tf
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import FileError

L = keras.layers


@keras.saving.register_keras_serializable("safe_mode_test")
def twice(x):
    return 2 * x


def lambda_layer(function):
    return L.Lambda(function, output_shape=(5,))


def pack(layer):
    """Returns a model of two tasks with a layer in backbone and head."""
    network = keras.Sequential([keras.Input((4,)), L.Dense(5), layer])
    model = packnet_tf.wrap(network, head=None)
    model.add_task("one", units=3)
    model.prune(0.5)
    model.freeze_task()
    head = keras.Sequential([type(layer).from_config(layer.get_config())])
    head.add(L.Dense(2))
    model.add_task("two", head=head)
    model.freeze_task()
    return model


def write(model, folder):
    model.save(folder / "model.keras")
    packnet_tf.save_pack(model, folder / "model.packnet")
    packnet_tf.save_task(model, "two", folder / "two.packtask")


def without_two(path):
    model = packnet_tf.load_pack(path, safe_mode=False)
    model.remove_task("two")
    return model


def read_all(folder, **kwargs):
    """Yields what loads the model from each kind of file."""
    yield lambda: packnet_tf.load_model(folder / "model.keras", **kwargs)
    yield lambda: packnet_tf.load_pack(folder / "model.packnet", **kwargs)

    def load_task():
        model = without_two(folder / "model.packnet")
        packnet_tf.load_task(model, folder / "two.packtask", **kwargs)
        return model

    yield load_task


@pytest.fixture
def unsafe():
    """Opens Keras for all code, as a user may; the next test is safe again."""
    keras.config.enable_unsafe_deserialization()
    yield
    keras.backend.clear_session(free_memory=False)


def check(model, folder):
    x = np.ones((2, 4), "float32")
    expected = model.predict(x, verbose=0)
    for read in read_all(folder):
        with pytest.raises(FileError, match=r"`safe_mode=False`\. Received: "):
            read()
    for read in read_all(folder, safe_mode=False):
        loaded = read()
        loaded.verify()
        np.testing.assert_array_equal(loaded.predict(x, verbose=0), expected)


def test_a_function_of_a_users_own_needs_trust(tmp_path):
    model = pack(lambda_layer(twice))
    write(model, tmp_path)
    check(model, tmp_path)


def test_code_is_refused_though_keras_is_open_for_all(unsafe, tmp_path):
    model = pack(lambda_layer(lambda x: 2 * x))
    write(model, tmp_path)
    check(model, tmp_path)


def test_code_is_loaded_though_keras_is_not_open(tmp_path):
    keras.config.enable_unsafe_deserialization()
    model = pack(lambda_layer(lambda x: 2 * x))
    write(model, tmp_path)
    keras.backend.clear_session(free_memory=False)
    check(model, tmp_path)


def test_a_layer_that_is_unrolled_needs_trust(tmp_path):
    layers = [keras.Input((4, 3)), L.LSTM(5, unroll=True), L.Dense(2)]
    model = packnet_tf.wrap(keras.Sequential(layers), task="one")
    packnet_tf.save_pack(model, tmp_path / "model.packnet")
    with pytest.raises(FileError, match=r"unrolls .*`safe_mode=False`"):
        packnet_tf.load_pack(tmp_path / "model.packnet")
    packnet_tf.load_pack(tmp_path / "model.packnet", safe_mode=False)
    model.save(tmp_path / "model.keras")
    model.load_weights(tmp_path / "model.keras")  # Without its configuration.


def test_sizes_are_checked_in_files_that_are_trusted(packed, tmp_path):
    packed.save(tmp_path / "model.keras")
    packnet_tf.save_pack(packed, tmp_path / "model.packnet")
    for load, name in (
        (packnet_tf.load_model, "model.keras"),
        (packnet_tf.load_pack, "model.packnet"),
    ):
        with pytest.raises(FileError, match="max_bytes"):
            load(tmp_path / name, max_bytes=10, safe_mode=False)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:-1])
        with pytest.raises(FileError, match="Received: "):
            load(tmp_path / name, safe_mode=False)


@pytest.mark.parametrize("max_bytes", [0, -1, True, 1.5, "1000", [1]])
@pytest.mark.parametrize("name", ["model.keras", "model.packnet"])
def test_max_bytes_is_a_positive_integer(name, max_bytes, packed, tmp_path):
    path = tmp_path / name
    if name.endswith(".keras"):
        load = packnet_tf.load_model
        path.write_bytes(b"")  # It is looked at first.
    else:
        load = packnet_tf.load_pack
        packnet_tf.save_pack(packed, path)
    with pytest.raises(ArgumentError, match="`max_bytes` is how many bytes"):
        load(path, max_bytes=max_bytes)
