import keras
import numpy as np
import pytest
from methods import networks

import packnet_tf
from packnet_tf.errors import ArgumentError


@pytest.mark.parametrize(
    ("name", "shape", "features"),
    [
        ("convnet", (28, 28, 1), 128),
        ("lenet", (32, 32, 3), 500),
        ("mlp", (28, 28, 1), 100),
        ("resnet9", (32, 32, 3), 512),
        ("vgg16_bn", (32, 32, 3), 512),
        ("MobileNet", (32, 32, 3), 1024),
        ("vgg16", (32, 32, 3), 4096),
    ],
)
def test_networks_give_features_and_can_be_packed(name, shape, features):
    network = networks.get(name, shape[0], shape[2])
    model = network.build()
    assert model.input_shape == (None, *shape)
    assert model.output_shape == (None, features)
    assert network.build_whole is None
    if name in ("convnet", "lenet", "mlp", "resnet9"):
        packed = packnet_tf.wrap(model, head=None)
        assert packed.task_names == []


def test_width_scales_the_own_networks():
    narrow = networks.get("vgg16_bn", 32, 3, width=8).build()
    assert narrow.output_shape == (None, 64)
    whole = networks.get("vgg16_bn", 128, 3, width=1).build()
    assert [
        layer.units
        for layer in whole.layers
        if isinstance(layer, keras.layers.Dense)
    ] == [64, 64]


def test_every_application_is_known_by_its_name():
    names = networks.names()
    assert len(names) == len(set(names)) > 35
    assert {"vgg16", "resnet50", "densenet121", "mobilenetv2"} <= set(names)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    keras.utils.set_random_seed(0)
    path = tmp_path_factory.mktemp("weights") / "mobilenet.weights.h5"
    model = keras.applications.MobileNet(weights=None, input_shape=(32, 32, 3))
    model.save_weights(path)
    return path, model


def test_weights_of_a_file_are_loaded_and_their_classifier_kept(weights):
    path, expected = weights
    network = networks.get(
        "mobilenet", 32, 3, weights=str(path), train_normalization="false"
    )
    whole = network.build_whole()
    x = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    np.testing.assert_array_equal(
        whole.predict(x, verbose=0), expected.predict(x, verbose=0)
    )
    (pooling,) = [
        layer
        for layer in whole.layers
        if isinstance(layer, keras.layers.GlobalAveragePooling2D)
    ]
    features = keras.Model(whole.inputs[0], pooling.output)
    np.testing.assert_array_equal(
        network.build().predict(x, verbose=0),
        features.predict(x, verbose=0)[:, 0, 0],
    )
    assert not any(
        variable.trainable
        for layer in network.build().layers
        if isinstance(layer, keras.layers.BatchNormalization)
        for variable in layer.variables
    )


def test_affine_normalization_learns_but_for_its_statistics(weights):
    path, _ = weights
    x = np.random.default_rng(0).random((4, 32, 32, 3), np.float32)
    stays, learns = (
        networks.get(
            "mobilenet", 32, 3, weights=str(path), train_normalization=train
        ).build()
        for train in ("false", "affine")
    )
    np.testing.assert_array_equal(
        stays.predict(x, verbose=0), learns.predict(x, verbose=0)
    )
    # As in inference, in training too.
    np.testing.assert_allclose(
        learns(x, training=False), learns(x, training=True), rtol=0, atol=1e-6
    )
    names = [
        {variable.name for variable in layer.trainable_variables}
        for layer in learns.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    assert len(names) == 27
    assert all(found == {"gamma", "beta"} for found in names)
    networks.freeze_normalization(learns)
    assert not any(
        layer.trainable_variables
        for layer in learns.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    )


def test_preprocessing_is_that_of_the_network():
    x = np.random.default_rng(0).random((2, 4, 4, 3), np.float32)
    for name, module in (
        ("vgg16", keras.applications.vgg16),
        ("resnet50", keras.applications.resnet),
        ("mobilenetv2", keras.applications.mobilenet_v2),
    ):
        np.testing.assert_array_equal(
            networks.get(name, 32, 3).preprocess(x),
            module.preprocess_input(x * 255.0),
        )
    assert networks.get("mlp", 28, 1).preprocess is None


def test_a_keras_file_is_taken(tmp_path):
    model = networks.get("mlp", 8, 3).build()
    model.save(tmp_path / "own.keras")
    again = networks.get(str(tmp_path / "own.keras"), 8, 3).build()
    x = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
    np.testing.assert_array_equal(
        again.predict(x, verbose=0), model.predict(x, verbose=0)
    )
    with pytest.raises(ArgumentError, match="images of shape"):
        networks.get(str(tmp_path / "own.keras"), 9, 3).build()


def test_a_keras_file_can_have_a_classifier(tmp_path):
    model = networks.get("mlp", 8, 3).build()
    model.add(keras.layers.Dense(5, activation="softmax"))
    model.save(tmp_path / "own.keras")
    network = networks.get(str(tmp_path / "own.keras"), 8, 3)
    assert network.build_whole().output_shape == (None, 5)
    assert network.build().output_shape == (None, 100)


def _write_lambda(path):
    keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Lambda(lambda x: x)]
    ).save(path)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b"no file of Keras"),
        lambda path: None,
        _write_lambda,
    ],
)
def test_a_file_that_is_no_network_is_refused(write, tmp_path):
    path = tmp_path / "bad.keras"
    write(path)
    with pytest.raises(ArgumentError, match="without running code"):
        networks.get(str(path), 8, 3).build()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("resnet51", 32, 3), "convnet, lenet"),
        (("mlp", 28, 1, None, "imagenet"), "starts at random"),
        (("mobilenet", 32, 3, None, "nowhere.h5"), "nowhere.h5"),
        (("vgg16_bn", 28, 3), "--image_size=28"),
        (("vgg16", 16, 3), "cannot be built"),
    ],
)
def test_what_cannot_be_built_is_refused(arguments, expected):
    with pytest.raises(ArgumentError, match=expected):
        networks.get(*arguments).build()


def test_weights_of_another_network_are_refused(weights):
    network = networks.get("mobilenetv2", 32, 3, weights=str(weights[0]))
    with pytest.raises(ArgumentError, match="cannot be built with these"):
        network.build()


def assert_parts_are_the_whole(network, x):
    """Compares both parts, one after the other, with the whole network."""
    whole = network.build_whole()
    trunk, classifier = network.build_parts()
    assert classifier.input_shape == trunk.output_shape
    assert len(trunk.output_shape) == 2
    assert len(trunk.weights) + len(classifier.weights) == len(whole.weights)
    parts = keras.Model(trunk.inputs[0], classifier(trunk.outputs[0]))
    np.testing.assert_array_equal(
        parts.predict(x, verbose=0), whole.predict(x, verbose=0)
    )
    alone = network.build()
    assert alone.output_shape == trunk.output_shape
    np.testing.assert_array_equal(
        alone.predict(x, verbose=0), trunk.predict(x, verbose=0)
    )
    return trunk, classifier


def test_parts_of_a_dense_classifier_compute_what_the_whole_does(tmp_path):
    keras.utils.set_random_seed(0)
    model = networks.get("convnet", 8, 3, width=4).build()
    model.add(keras.layers.Dense(5, activation="softmax"))
    model.save(tmp_path / "own.keras")
    network = networks.get(str(tmp_path / "own.keras"), 8, 3)
    x = np.random.default_rng(0).random((3, 8, 8, 3), np.float32)
    trunk, classifier = assert_parts_are_the_whole(network, x)
    assert trunk.output_shape == (None, 32)
    assert [weights.shape for weights in classifier.get_weights()] == [
        (32, 5),
        (5,),
    ]


def test_parts_of_a_convolutional_classifier_too(tmp_path):
    keras.utils.set_random_seed(0)
    keras.applications.MobileNet(
        weights=None, alpha=0.25, input_shape=(32, 32, 3), classes=7
    ).save(tmp_path / "own.keras")
    network = networks.get(str(tmp_path / "own.keras"), 32, 3)
    x = np.random.default_rng(0).random((3, 32, 32, 3), np.float32)
    trunk, classifier = assert_parts_are_the_whole(network, x)
    assert trunk.output_shape == (None, 256)
    assert [weights.shape for weights in classifier.get_weights()] == [
        (1, 1, 256, 7),
        (7,),
    ]


def test_a_network_without_a_classifier_in_sight_is_refused():
    inputs = keras.Input((8,))
    whole = keras.Model(inputs, keras.layers.Softmax()(inputs))
    with pytest.raises(ArgumentError, match="last dense layer"):
        networks.Network(None, lambda: whole).build_parts()
