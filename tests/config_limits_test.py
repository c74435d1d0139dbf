"""Configurations that ask for much, through the readers of files."""

import json
import zipfile

import keras
import numpy as np
import pytest
from pack_files import describe
from pack_files import with_description

import packnet_tf
from packnet_tf import configurations
from packnet_tf.errors import FileError
from packnet_tf.layers import PackedLayer

L = keras.layers
BOMB = 300_000_000
WHOLE = {}


def serialize(thing):
    """Returns a configuration as a file holds it."""
    return json.loads(
        json.dumps(keras.saving.serialize_keras_object(thing), default=list)
    )


@pytest.fixture
def whole(network, tmp_path):
    """The members of a saved model, and the bytes of its pack file."""
    if not WHOLE:
        model = packnet_tf.wrap(network(), task="one")
        model.compile("adam", "mse", metrics=["mae"])
        model.save(tmp_path / "model.keras")
        with zipfile.ZipFile(tmp_path / "model.keras") as archive:
            for name in archive.namelist():
                WHOLE[name] = archive.read(name)
        packnet_tf.save_pack(model, tmp_path / "model.packnet")
        WHOLE["pack"] = (tmp_path / "model.packnet").read_bytes()
    return WHOLE


@pytest.fixture
def load(whole, tmp_path):
    """Loads the model with another configuration."""

    def load(change, **kwargs):
        config = json.loads(whole["config.json"])
        change(config)
        path = tmp_path / "forged.keras"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", json.dumps(config))
            for name in ("metadata.json", "model.weights.h5"):
                archive.writestr(name, whole[name])
        return packnet_tf.load_model(path, **kwargs)

    return load


def tensor(layer="dense"):
    """Returns what stands for the output of a layer."""
    inner = {
        "shape": [None],
        "dtype": "float32",
        "keras_history": [layer, 0, 0],
    }
    return {"class_name": "__keras_tensor__", "config": inner}


def node(*args, **kwargs):
    return {"args": list(args), "kwargs": kwargs}


def made(name, module="keras.layers", nodes=(), build=None, **config):
    """Returns the configuration of a layer or an operation in a model."""
    return {
        "module": module,
        "class_name": name,
        "config": config,
        "registered_name": None,
        "build_config": build,
        "name": "bomb",
        "inbound_nodes": list(nodes),
    }


def of_ops(name, module="keras.src.ops.numpy", **config):
    return made(name, module, [node(tensor())], **config)


def adding(*layers):
    def change(config):
        config["config"]["backbone"]["config"]["layers"] += layers

    return change


def normalizing(mean=0.0, shape=None, **config):
    build = None if shape is None else {"input_shape": shape}
    return made(
        "Normalization", build=build, mean=mean, variance=mean, **config
    )


def inside(outer, *layers):
    layers = [{**layer, "inbound_nodes": []} for layer in layers]
    return made(outer, layers=layers)


def array(value):
    inner = {"value": value, "dtype": "int32"}
    return {"class_name": "__numpy__", "config": inner}


ENDLESS = "for as many features"
LARGE = "makes large constants"
COUNTS = "counts to more"
OFTEN = "calls its layers all too often"
EAGER = "on no tensor"
STEPS = "unrolls a recurrent layer"
CALLED = "may take any time"
DENSE = serialize(L.Dense(2))


@pytest.mark.parametrize(
    ("layer", "match"),
    [
        (normalizing(0.0, [None, BOMB]), LARGE),
        (normalizing([0.0], [None, BOMB]), LARGE),
        (normalizing("0.0", [None, BOMB]), LARGE),
        (normalizing(0.0, [None, 2**12, 2**12], axis=[1, -1]), LARGE),
        (normalizing([1.0, 2.0], [None, BOMB, 2], axis=[1, 2]), LARGE),
        (normalizing(), ENDLESS),
        (normalizing([0.0]), ENDLESS),
        (normalizing(0.0, [None, None]), ENDLESS),
        (normalizing(0.0, [None, 3e8]), ENDLESS),
        (normalizing(0.0, BOMB), ENDLESS),
        (normalizing(0.0, axis=array([-1])), ENDLESS),
        (made("BroadcastTo", "keras.src.ops.numpy", [node(1)]), EAGER),
        (made("BroadcastTo", "keras.src.ops.numpy", [node()]), EAGER),
        (made("BroadcastTo", "keras.src.ops.numpy", [{}]), EAGER),
        (made("BroadcastTo", "keras.src.ops.numpy", [[]]), EAGER),
        (made("BroadcastTo", "keras.src.ops.numpy", [[[]]]), EAGER),
        (made("BroadcastTo", "keras.src.ops.numpy", [""]), EAGER),
        (made("Arange", "keras.src.ops.numpy", [node(BOMB)]), EAGER),
        (made("Add", "keras.src.ops.numpy", [node(tensor()), node(1)]), EAGER),
        (made("Dense", nodes=[node({**DENSE, "x": tensor()})]), EAGER),
        (made("Dense", nodes=[[["dense", 0, 0]]]), EAGER),
        (made("Dense", nodes=[node(tensor(), DENSE)]), "on another layer"),
        (
            made("Dense", nodes=[node({"class_name": "__keras_tensor__"})]),
            EAGER,
        ),
        ({**made("Dense"), "inbound_nodes": {"": 1}}, EAGER),
        (of_ops("Unstack", "keras.src.ops.core", num=BOMB), COUNTS),
        (of_ops("Unstack", "keras.src.ops.core", num=-BOMB), COUNTS),
        (of_ops("Unstack", "keras.src.ops.core", num=array(BOMB)), COUNTS),
        (of_ops("Unstack", "keras.src.ops.core", num=array([[BOMB]])), COUNTS),
        (of_ops("Unstack", "keras.src.ops.core", axis=1), "takes a tensor"),
        (of_ops("Split", indices_or_sections=BOMB), COUNTS),
        (of_ops("Diff", n=BOMB), COUNTS),
        (made("LSTM", units=1, unroll=True), STEPS),
        (made("GRU", units=1, unroll=1), STEPS),
        (made("ConvLSTM1D", filters=1, kernel_size=1, unroll=True), STEPS),
        (made("Bidirectional", layer=made("LSTM", unroll=True)), STEPS),
        (made("SpectralNormalization", power_iterations=BOMB), COUNTS),
        (made("RandAugment", num_ops=BOMB), COUNTS),
        (made("AugMix", num_chains=BOMB), COUNTS),
        (made("AugMix", chain_depth=BOMB), COUNTS),
        (made("MelSpectrogram", num_mel_bins=BOMB), COUNTS),
        (made("STFTSpectrogram", frame_length=BOMB), COUNTS),
        (made("StringLookup", num_oov_indices=BOMB), COUNTS),
        (made("TextVectorization", ngrams=BOMB), COUNTS),
        (
            made("StringLookup", max_tokens=BOMB, pad_to_max_tokens=True),
            LARGE,
        ),
        (inside("Pipeline", made("TimeDistributed", layer=DENSE)), CALLED),
        (inside("Pipeline", made("Equalization")), CALLED),
        (inside("Pipeline", inside("Pipeline")), CALLED),
    ],
    ids=lambda value: value if isinstance(value, str) else value["class_name"],
)
def test_a_layer_that_asks_for_too_much_is_refused(load, layer, match):
    with pytest.raises(FileError, match=match) as caught:
        load(adding(layer))
    assert "`safe_mode=False`" in str(caught.value)
    assert "Received: " in str(caught.value)


@pytest.mark.parametrize(
    "metric",
    [
        keras.metrics.AUC(num_thresholds=3),
        keras.metrics.PrecisionAtRecall(0.5, num_thresholds=3),
        keras.metrics.MeanIoU(num_classes=3),
    ],
    ids=lambda metric: type(metric).__name__,
)
def test_a_metric_that_asks_for_too_much_is_refused(load, metric):
    metric = serialize(metric)

    def change(config):
        config["compile_config"]["metrics"] = [metric]

    load(change)
    for name, value in metric["config"].items():
        if value == 3:
            metric["config"][name] = BOMB
    with pytest.raises(FileError, match=COUNTS):
        load(change)


def test_an_optimizer_that_asks_for_too_much_is_refused(load):
    if not hasattr(keras.optimizers, "Muon"):  # Since Keras 3.11.
        pytest.skip("no Muon")
    optimizer = serialize(keras.optimizers.Muon(ns_steps=BOMB))

    def change(config):
        config["compile_config"]["optimizer"] = optimizer

    with pytest.raises(FileError, match=COUNTS):
        load(change)


def test_many_that_ask_for_little_are_refused_together(load):
    one = of_ops("Unstack", "keras.src.ops.core", num=2**16)
    with pytest.raises(FileError, match=OFTEN):
        load(adding(*[{**one, "name": name} for name in "abc"]))
    one["inbound_nodes"] *= 3
    with pytest.raises(FileError, match=OFTEN):
        load(adding(one))
    one = normalizing(0.0, [None, 2**19])
    with pytest.raises(FileError, match=LARGE):
        load(adding(*[{**one, "name": name} for name in "abc"]))


def test_models_within_models_are_not_called_all_too_often(load):
    inputs = keras.Input((None, 3))
    model = keras.Model(inputs, L.Dense(3)(inputs))
    for _ in range(3):
        inputs = keras.Input((None, 3))
        model = keras.Model(inputs, model(model(inputs)))
    inner = serialize(model)
    configurations.check(inner)
    for _ in range(20):
        outer = serialize(model)
        outer["config"]["layers"][-1].update(
            class_name="Functional", config=inner["config"]
        )
        inner = outer
    with pytest.raises(FileError, match=OFTEN):
        load(adding({**inner, "name": "bomb", "inbound_nodes": []}))


def test_sides_do_not_grow_beyond_all_bounds(load):
    before = keras.KerasTensor.__init__
    layers, last = [], "dense"
    for round in range(40):
        for name, target in (("a", [-1, 1]), ("b", [1, -1])):
            layer = made("Reshape", nodes=[node(tensor(last))])
            layer["config"] = {"target_shape": target}
            layers.append({**layer, "name": f"{name}{round}"})
        both = [tensor(f"a{round}"), tensor(f"b{round}")]
        layers.append({**made("Add", nodes=[node(both)]), "name": f"c{round}"})
        last = f"d{round}"
        flat = made("Flatten", nodes=[node(tensor(f"c{round}"))])
        layers.append({**flat, "name": last})
    with pytest.raises(FileError, match="larger than any can be"):
        load(adding(*layers))
    assert keras.KerasTensor.__init__ is before
    keras.Input((2**70,))  # Which is no concern of ours outside.


def test_steps_are_not_gone_through_to_find_a_shape():
    calls = []

    class Counting(L.Dense):
        def call(self, inputs, training=None):
            calls.append(inputs.shape)
            return super().call(inputs)

    layer = PackedLayer(L.TimeDistributed(Counting(3)))
    assert layer(keras.Input((50, 4))).shape == (None, 50, 3)
    assert len(calls) < 50


def test_a_pack_that_asks_for_too_much_is_refused(whole, tmp_path):
    path = tmp_path / "forged.packnet"
    for layer, match in (
        (normalizing(0.0, [None, BOMB]), LARGE),
        (made("Arange", "keras.src.ops.numpy", [node(BOMB)]), EAGER),
    ):
        description = describe(whole["pack"])
        adding(layer)({"config": description["model"]})
        path.write_bytes(with_description(whole["pack"], description))
        with pytest.raises(FileError, match=match) as caught:
            packnet_tf.load_pack(path)
        assert "`safe_mode=False`" in str(caught.value)


@pytest.mark.parametrize("name", ["IndexLookup", "IntegerLookup"])
def test_no_vocabulary_is_read_from_a_path(load, name):
    module = f"keras.src.layers.preprocessing.{name[:-6].lower()}_lookup"
    lookup = made(name, module, vocabulary=__file__)
    with pytest.raises(FileError, match="reads another file"):
        load(adding(lookup))


@keras.saving.register_keras_serializable("config_limits_test")
class Own(L.Layer):
    """A layer of a user's own."""

    def __init__(self, size=1, num_ops=1, **kwargs):
        super().__init__(**kwargs)
        self.size = size
        self.num_ops = num_ops


@keras.saving.register_keras_serializable("config_limits_test", "other")
class Renamed(L.Normalization):
    """One that is registered by another name, and inherits of Keras."""


def test_a_name_does_not_stand_for_another(load):
    forged = {**made("Dense"), "registered_name": "config_limits_test>Own"}
    with pytest.raises(FileError, match="by the name of another"):
        load(adding(forged))
    function = {**made("function"), "config": "config_limits_test>Own"}
    with pytest.raises(FileError, match="names a function"):
        load(adding(function))


def test_classes_of_users_are_known_by_their_names():
    configurations.check(serialize(Own()))
    configurations.check(serialize(Renamed()))
    config = {**made("Mine"), "registered_name": "Mine"}
    with pytest.raises(FileError, match="not registered"):
        configurations.check(config)
    with keras.saving.custom_object_scope({"Mine": Own}):
        configurations.check(config)


def test_classes_of_users_count_as_they_like():
    configurations.check(serialize(Own(size=BOMB)))
    with pytest.raises(FileError, match=COUNTS):
        configurations.check(serialize(Own(num_ops=BOMB)))
    with pytest.raises(FileError, match=ENDLESS):
        configurations.check(serialize(Renamed(mean=0.0, variance=1.0)))


@pytest.mark.parametrize(
    "layer",
    [
        L.Normalization(),
        L.Normalization(mean=[1.0, 2.0, 3.0], variance=[1.0, 2.0, 3.0]),
        L.Normalization(None, mean=1.0, variance=2.0),
        L.Normalization(mean=1.0, variance=2.0),
        L.Normalization(mean=[1.0], variance=[2.0]),
        L.Normalization((1, 2), mean=[1.0] * 3, variance=[2.0] * 3),
    ],
)
def test_normalization_is_loaded(layer, tmp_path):
    inputs = keras.Input((4, 3))
    outputs = L.Dense(2)(L.Flatten()(L.Dense(3)(layer(inputs))))
    model = packnet_tf.wrap(keras.Model(inputs, outputs), task="one")
    model.save(tmp_path / "model.keras")
    packnet_tf.save_pack(model, tmp_path / "model.packnet")
    x = np.ones((2, 4, 3), "float32")
    expected = model(x).numpy()
    for loaded in (
        packnet_tf.load_model(tmp_path / "model.keras"),
        packnet_tf.load_pack(tmp_path / "model.packnet"),
    ):
        np.testing.assert_array_equal(loaded(x), expected)


def test_keras_builds_no_normalization_twice():
    # On this rests that the shape it is built for can be trusted.
    config = normalizing(1.0, [None, 1])
    layer = keras.saving.deserialize_keras_object(config)
    assert layer(keras.Input((5,))).shape == (None, 5)
    assert tuple(layer.mean.shape) == (1, 1)


def transformer():
    inputs = keras.Input((16,), dtype="int32")
    x = L.Embedding(100_000, 32)(inputs)
    for _ in range(2):
        attended = L.MultiHeadAttention(4, 8)(x, x, use_causal_mask=True)
        x = L.LayerNormalization()(x + L.Dropout(0.1)(attended))
        x = L.LayerNormalization()(x + L.Dense(32, "gelu")(x))
    x = keras.ops.reshape(x[:, -1], (-1, 4, 8))
    first, second = keras.ops.split(x, 2, axis=1)
    return keras.Model(inputs, L.Flatten()(first * keras.ops.tanh(second)))


def recurrent():
    inputs = keras.Input((None, 4))
    x = L.Bidirectional(L.LSTM(8, return_sequences=True))(inputs)
    x = L.TimeDistributed(L.Dense(5))(x)
    return keras.Model(inputs, L.RNN([L.GRUCell(3), L.LSTMCell(3)])(x))


def preprocessed():
    inputs = keras.Input((96, 96, 3))
    x = L.Pipeline([L.RandomFlip(), L.RandomRotation(0.1), L.Rescaling(2.0)])(
        inputs
    )
    x = L.RandAugment()(L.Resizing(64, 64)(x))
    return keras.Model(inputs, L.Conv2D(4, 3)(x))


def siamese():
    branch = keras.Sequential([keras.Input((4,)), L.Dense(3), L.Dense(3)])
    inputs = [keras.Input((4,)), keras.Input((4,))]
    return keras.Model(inputs, L.Dot(-1)([branch(x) for x in inputs]))


def sound():
    inputs = keras.Input((160_000,))
    x = L.MelSpectrogram(sampling_rate=96_000)(inputs)
    return keras.Model(inputs, L.Conv1D(4, 3)(x))


@pytest.mark.parametrize(
    "make", [transformer, recurrent, preprocessed, siamese, sound]
)
def test_networks_of_all_kinds_are_taken(make):
    configurations.check(serialize(make()))


def test_layers_for_preprocessing_are_taken():
    for layer in (
        L.AugMix(),
        L.CategoryEncoding(200_000),
        L.Hashing(10**6, salt=2**40, mask_value=10**9),
        L.HashedCrossing(10**6),
        L.IntegerLookup(vocabulary=[10**9, 2], mask_token=10**8, oov_token=-1),
        L.RandomCrop(512, 512),
        L.StringLookup(vocabulary=["a", "b"], num_oov_indices=100),
        L.TextVectorization(200_000, ngrams=3, output_sequence_length=10**5),
    ):
        configurations.check(serialize(layer))


@pytest.mark.parametrize(
    "name",
    [
        "MobileNetV2",
        "EfficientNetB0",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                "ConvNeXtTiny",
                "DenseNet121",
                "EfficientNetV2B0",
                "InceptionResNetV2",
                "MobileNetV3Small",
                "NASNetMobile",
                "ResNet50",
                "VGG16",
                "Xception",
            )
        ),
    ],
)
def test_applications_of_keras_are_taken(name):
    model = getattr(keras.applications, name)(weights=None)
    configurations.check(serialize(model))
