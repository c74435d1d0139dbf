import hashlib

import keras
import numpy as np
import pytest
from absl import flags as absl_flags
from experiments import make_keeping
from methods import networks
from methods import recipes
from PIL import Image
from program import image_options
from program import options
from program import repetition

import packnet_tf
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import PackNetError


def test_the_defaults_are_those_of_the_paper(flags):
    flags(tasks=["a:folder:a", "b:folder:b", "c:folder:c"])
    assert recipes.Recipe.from_flags(options.FLAGS) == recipes.Recipe(
        "sgd", 1e-3, 1e-4, "step", 10, 0.1, 0.9, 0.0
    )
    values = options.all_flags()
    assert (values["epochs"], values["retrain_epochs"]) == (20, 10)
    assert (values["batch_size"], values["augmentation"]) == (32, "crop_flip")
    assert (values["criterion"], values["scope"]) == ("magnitude", "layer")
    assert options.sparsities() == [0.75, 0.75, 0.0]
    settings = image_options.settings(3)
    assert (image_options.size(), settings.size) == (224, 256)
    assert settings.boxed_size == 224


def test_a_kept_network_with_depthwise_layers_is_pruned_with_care(flags):
    network = networks.Network(
        packed, lambda: keras.applications.MobileNet(weights=None)
    )
    assert options.wrapping(network)["filters"] is None
    flags(keep="old")
    chosen = options.wrapping(network)["filters"]
    layers = [layer for layer in network.build_whole().layers if layer.weights]
    assert {layer.name for layer in layers if not chosen(layer)} == {
        "conv1",
        *(f"conv_dw_{number}" for number in range(1, 14)),
    }
    assert options.keep(network, 3).sparsity == 0.3
    flags(keep_sparsity=0.6, filters="conv_pw")
    assert options.wrapping(network)["filters"] == "conv_pw"
    assert options.keep(network, 3).sparsity == 0.6
    flags(filters="")
    assert options.wrapping(network)["filters"] is None


def test_any_other_kept_network_is_packed_whole(flags, classifier):
    flags(network=classifier, keep="old", image_size=16)
    network = options.network(3)
    assert options.wrapping(network)["filters"] is None
    assert options.keep(network, 3).sparsity == 0.5


def test_a_model_is_a_network(flags, classifier):
    flags(model=classifier)
    assert options.FLAGS.network == classifier
    assert "model" not in options.config()


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


def test_files_of_weights_have_their_fingerprints(flags, tmp_path):
    assert options.fingerprints_of_files() == {}
    flags(network=str(tmp_path / "a.keras"), weights=str(tmp_path / "b.h5"))
    assert options.fingerprints_of_files() == {}
    (tmp_path / "a.keras").write_bytes(b"abc")
    (tmp_path / "b.h5").write_bytes(b"x" * 5_000_000)
    found = options.fingerprints_of_files()
    assert list(found) == ["--network", "--weights"]
    assert found["--network"] == hashlib.sha256(b"abc").hexdigest()
    assert found["--weights"] == hashlib.sha256(b"x" * 5_000_000).hexdigest()


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
    flags(augmentation="none")
    network = options.network(3)
    kept = options.keep(network, 3)
    train = kept.train
    assert (kept.name, kept.classes) == ("old", 3)
    assert kept.test is train
    assert train.num_classes == 3
    assert train.train.images.shape[1:] == (16, 16, 3)
    flags(keep_test=spec)
    test = options.keep(network, 3).test
    assert (len(test.train), len(test.test)) == (0, 24)
    flags(keep_train=None, keep_test=None)
    kept = options.keep(network, 3)
    assert (kept.train, kept.test) == (None, None)
    flags(keep=None)
    assert options.keep(network, 3) is None


@pytest.mark.parametrize("flag", ["keep_train", "keep_test"])
def test_labels_of_another_number_of_classes_are_refused_before_decoding(
    flag, flags, classifier, tmp_path
):
    spec = fill(tmp_path / "two", "ab")
    flags(network=classifier, keep="old", image_size=16, **{flag: spec})
    network = options.network(3)
    with pytest.raises(PackNetError, match="2 classes, for 3 outputs"):
        options.keep(network, 3)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("flag", ["keep_train", "keep_test"])
def test_data_of_a_task_that_is_not_kept_is_refused(flag, flags, classifier):
    flags(network=classifier, image_size=16, **{flag: "folder:nowhere"})
    with pytest.raises(ArgumentError, match=f"--{flag} without --keep"):
        options.keep(options.network(3), 3)


def test_every_flag_is_part_of_what_a_run_is_or_known_not_to_be(flags):
    defined = set()
    for module in ("data", "network", "packing", "run", "training"):
        found = options.FLAGS.get_flags_for_module(f"program.flags_{module}")
        defined |= {flag.name for flag in found}
    assert len(defined) > 50
    assert set(options.all_flags()) == defined - {"model"}
    left_out = defined - {"model"} - set(options.config())
    assert left_out < defined
    assert {"run_dir", "methods", "seeds", "overwrite"} < left_out
    assert not left_out & {"epochs", "tasks", "learning_rate", "precision"}


def packed(**kwargs):
    network = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(10),
            keras.layers.Dense(5),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    return packnet_tf.wrap(network, **kwargs)


@pytest.mark.parametrize(
    ("sparsities", "expected"),
    [
        # Of 40 + 50 + 15 weights, in three layers.
        (["0.5", "0.5", "0"], None),
        (["0.5", "0", "0"], "0 of 105 weights for 'c'"),
        (["0.5", "0.04", "0"], "2 of 105 weights for 'c', in 3 packed layers"),
        (["0.99", "0.5", "0"], "0 of 105 weights for 'a'"),
        (["equal"], None),
        (["0.5"], None),
    ],
)
def test_sparsities_that_leave_nothing_are_refused(sparsities, expected, flags):
    flags(tasks=["a:mnist", "b:mnist", "c:mnist"], sparsities=sparsities)
    model = packed(head=None)
    if expected is None:
        planned = options.plan(model)
        assert list(planned.sparsities.values()) == options.sparsities()
    else:
        with pytest.raises(ArgumentError, match=expected):
            options.plan(model)


def test_the_kept_task_counts_in_capacity(flags):
    flags(tasks=["a:mnist"], sparsities=["0"])
    options.plan(packed(task="old"), keep=make_keeping(name="old"))
    keep = make_keeping(name="old", sparsity=0.01)
    with pytest.raises(ArgumentError, match="for 'a'"):
        options.plan(packed(task="old"), keep=keep)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"seeds": ["one"]}, "whole numbers"),
        ({"seeds": []}, "whole numbers"),
        ({"seeds": ["-1"]}, "whole numbers"),
        ({"seeds": ["1", "1"]}, "different"),
        ({"seeds": [str(2**31)]}, "below"),
        ({"methods": ["packnet", "magic"]}, "magic"),
        ({"methods": []}, "one or more"),
    ],
)
def test_bad_methods_and_seeds_are_refused(values, expected, flags):
    flags(**values)
    check = repetition.from_flags if "seeds" in values else options.methods
    with pytest.raises(ArgumentError, match=expected):
        check()


def test_methods_are_run_in_one_order(flags):
    flags(methods=["ewc", "packnet", "individual"])
    assert options.methods() == ["packnet", "individual", "ewc"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (dict(tasks=[]), "--tasks names one task"),
        (dict(sparsities=["75", "75"]), "percent"),
        (dict(sparsities=["nan"]), r"in \[0, 1\)"),
        (dict(sparsities=["much"]), "the word equal"),
        (dict(sparsities=["0.1", "0.2", "0.3"]), "3 for 2 tasks"),
        (dict(keep="old", keep_sparsity=1.0), r"in \[0, 1\)"),
        (dict(keep="a"), "Every task has its own name"),
    ],
)
def test_flags_that_make_no_sense_are_refused_before_data_is_read(
    values, expected, flags
):
    flags(tasks=["a:folder:nowhere", "b:folder:nowhere"])
    flags(**values)
    with pytest.raises(PackNetError, match=expected) as caught:
        options.check_tasks(3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (dict(keep="old", keep_train="folder:nowhere"), "nowhere"),
        (dict(keep="old", keep_test="npz:nowhere.npz"), "`folder:PATH`"),
        (dict(keep="old", keep_test="folder:nowhere"), "nowhere"),
        (dict(keep_test="folder:nowhere"), "without --keep"),
        (dict(tasks=["mnist", "b:folder:nowhere"]), "nowhere"),
    ],
)
def test_data_that_is_not_there_is_told_before_any_is_read(
    values, expected, flags
):
    flags(tasks=["mnist"])
    flags(**values)
    with pytest.raises(PackNetError, match=expected):
        options.check_tasks(3)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (dict(network="vgg16_bn", image_size=28), "--image_size=28"),
        (dict(criterion="foo"), "'foo'"),
        (dict(filters="("), "regular expression"),
        (dict(filters="nowhere"), "nowhere"),
    ],
)
def test_a_network_that_cannot_be_packed_is_told_before_data_is_read(
    values, expected, flags
):
    flags(tasks=["mnist"], network="mlp", width=4)
    options.check_network(options.network(1), ["packnet"], 1)
    flags(**values)
    with pytest.raises(PackNetError, match=expected):
        options.check_network(options.network(1), ["packnet"], 1)


def test_filters_are_for_the_packed_network_alone(flags):
    flags(tasks=["mnist"], network="mlp", width=4, filters="(")
    options.check_network(options.network(1), ["individual"], 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name",
    ["learning_rate", "weight_decay", "momentum", "keep_temperature"],
)
def test_numbers_that_are_none_are_refused_by_their_flag(name, value, flags):
    with pytest.raises(absl_flags.IllegalFlagValueError, match=f"--{name}="):
        flags(**{name: value})
