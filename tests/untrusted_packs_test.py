"""Pack files that were made to do harm, their checksums right."""

import keras
import pytest
import tensorflow as tf
from pack_files import describe
from pack_files import put_together
from pack_files import take_apart
from pack_files import with_description

import packnet_tf
from packnet_tf.errors import FileError
from packnet_tf.errors import FingerprintError

L = keras.layers


@keras.saving.register_keras_serializable(package="untrusted_packs_test")
class Registered(L.Dense):
    """A layer class of a user's own."""


class Unknown(L.Dense):
    """One that is not registered with Keras."""


WHOLE = []


@pytest.fixture
def path(network, tmp_path):
    path = tmp_path / "model.packnet"
    if not WHOLE:
        model = packnet_tf.wrap(network(), task="one")
        model.prune(0.5)
        model.freeze_task()
        model.add_task("two", units=3)
        model.prune(0.25)
        packnet_tf.save_pack(model, path)
        WHOLE.append(path.read_bytes())
    path.write_bytes(WHOLE[0])
    return path


def layer(description, name):
    """Returns the configuration of a layer of the backbone."""
    for each in description["model"]["backbone"]["config"]["layers"]:
        if each["config"]["name"] == name:
            return each
    raise KeyError(name)


def inner(description):
    """Returns the configuration of a layer within its wrapper."""
    return layer(description, "dense")["config"]["layer"]


def variable(description, key):
    """Returns the declaration of a variable."""
    (found,) = (v for v in description["variables"] if v[0] == key)
    return found


def resize(description, key, shape):
    variable(description, key)[3] = shape


def change(path, edit):
    content = path.read_bytes()
    description = describe(content)
    edit(description)
    path.write_bytes(with_description(content, description))


KERNEL = "backbone/dense/kernel"
BIAS = "backbone/dense/bias"


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda d: resize(d, KERNEL, [2**20, 2**20]), "max_bytes"),
        (lambda d: resize(d, KERNEL, [2**40, 2**40]), "no such variable"),
        (lambda d: resize(d, KERNEL, [-4, -8]), "no such variable"),
        (lambda d: resize(d, KERNEL, [float("nan"), 1]), "no such variable"),
        (lambda d: resize(d, KERNEL, [1] * 33), "no such variable"),
        (lambda d: resize(d, KERNEL, 4), "no such variable"),
        (lambda d: resize(d, BIAS, [13]), "not those of its model"),
        (lambda d: resize(d, BIAS, [6, 2]), "not those of its model"),
        (lambda d: resize(d, KERNEL, [12, 128]), "not those of its model"),
        (lambda d: d["variables"][0].__setitem__(0, KERNEL), "twice"),
        (lambda d: variable(d, BIAS).__setitem__(0, "else"), "not those of"),
        (lambda d: variable(d, BIAS).__setitem__(1, "string"), "no such"),
        (lambda d: variable(d, BIAS).__setitem__(1, "int32"), "no such"),
        (lambda d: variable(d, BIAS).__setitem__(2, "bfloat16"), "rounded"),
        (
            lambda d: (
                variable(d, BIAS).__setitem__(2, "bfloat16"),
                d.update(rounded=True),
            ),
            "too long",
        ),
        (lambda d: d.update(rounded=True), "rounded"),
        (lambda d: variable(d, BIAS).__setitem__(4, True), "sections"),
        (lambda d: variable(d, BIAS).append(1), "no such variable"),
        (lambda d: d.update(variables={}), "no list of variables"),
        (lambda d: d.pop("model"), "KeyError"),
        (lambda d: d.update(model=7), "TypeError"),
        (lambda d: d["model"].pop("heads"), "KeyError"),
        (lambda d: d["model"]["heads"].pop("one"), "KeyError|variables"),
        (lambda d: d["model"].update(active="ten"), "no such task"),
        (lambda d: d["model"].update(backbone=None), "configuration"),
        (lambda d: d["model"]["tasks"].pop(), "no such task"),
        (lambda d: d["model"]["tasks"][0].update(number=2), "in their order"),
        (lambda d: d["model"]["tasks"][1].update(name="one"), "own name"),
        (lambda d: d["model"]["tasks"][0].update(record=None), "record"),
        (lambda d: inner(d)["config"].update(units=2**40), "more memory|conf"),
        (lambda d: inner(d)["config"].update(units=4096), "more memory|conf"),
        (lambda d: inner(d).update(class_name="Lambda"), "code of its own"),
        (lambda d: inner(d).update(module="os"), "none of Keras"),
        (lambda d: inner(d).update(class_name="Else"), "none of Keras"),
    ],
)
def test_what_does_harm_is_refused(edit, words, path):
    change(path, edit)
    with pytest.raises(FileError, match=words) as caught:
        packnet_tf.load_pack(path)
    assert "Received: " in str(caught.value)
    assert "path=" in str(caught.value)


def test_too_much_is_refused_before_it_is_allocated(path, monkeypatch):
    made = []

    def count(make, **kwargs):
        variable = make(**kwargs)
        made.append(variable.shape.num_elements())
        return variable

    def edit(description):
        inner(description)["config"]["units"] = 2**16

    change(path, edit)
    with tf.variable_creator_scope(count), pytest.raises(FileError):
        packnet_tf.load_pack(path)
    assert max(made) < 2**16


def test_the_file_alone_decides_how_deep_python_goes(path):
    kind, sections = take_apart(path.read_bytes())
    for deep in ("[" * 500 + "]" * 500, '{"a":' * 300 + "1" + "}" * 300):
        content = put_together(kind, sections)
        text = b'{"model":' + deep.encode() + b',"rounded":false}'
        path.write_bytes(with_description(content, text))
        with pytest.raises(FileError, match="Received: "):
            packnet_tf.load_pack(path)


def test_another_value_is_told_by_the_fingerprint(path):
    content = path.read_bytes()
    kind, sections = take_apart(content)
    keys = [v[0] for v in describe(content)["variables"]]
    place = 1
    for key, spec in zip(keys, describe(content)["variables"]):
        place += spec[4]
        if key == BIAS:
            break
        place += 1
    part = sections[place][1]
    # A length comes first, then the lowest bytes of the values.
    sections[place] = (3, part[:4] + bytes([part[4] ^ 1]) + part[5:])
    path.write_bytes(put_together(kind, sections))
    with pytest.raises(FingerprintError, match=r"'one'.*'dense/bias'"):
        packnet_tf.load_pack(path)


@keras.saving.register_keras_serializable(package="untrusted_packs_test")
def noisy(x):
    return x + keras.random.normal(keras.ops.shape(x))


def make_noisy(head):
    """Gives a head an activation that is registered, and no variable of it."""
    dense = head["config"]["layers"][-1]
    assert dense["class_name"] == "Dense"
    dense["config"]["activation"] = {
        "module": "builtins",
        "class_name": "function",
        "config": "noisy",
        "registered_name": "untrusted_packs_test>noisy",
    }


def test_a_head_that_cannot_be_protected_is_refused(network, path, tmp_path):
    change(path, lambda d: make_noisy(d["model"]["heads"]["one"]))
    with pytest.raises(FileError, match="cannot be protected"):
        packnet_tf.load_pack(path)
    model = packnet_tf.wrap(network(), task="one")
    model.prune(0.5)
    model.freeze_task()
    packnet_tf.save_pack(model, path)
    model.add_task("two", units=3)
    model.freeze_task()
    delta = tmp_path / "two.packtask"
    packnet_tf.save_task(model, "two", delta)
    device = packnet_tf.load_pack(path)
    change(delta, lambda d: make_noisy(d["head"]))
    with pytest.raises(FileError, match="cannot be protected"):
        packnet_tf.load_task(device, delta)
    assert device.task_names == ["one"]


@pytest.mark.parametrize("cls", [Registered, Unknown])
def test_classes_have_to_be_registered(cls, tmp_path):
    network = keras.Sequential([keras.Input((3,)), cls(4), L.Dense(2)])
    model = packnet_tf.wrap(network, task="one")
    packnet_tf.save_pack(model, tmp_path / "model.packnet")
    if cls is Registered:
        loaded = packnet_tf.load_pack(tmp_path / "model.packnet")
        assert loaded.task_names == ["one"]
        return
    with pytest.raises(FileError, match="Unknown"):
        packnet_tf.load_pack(tmp_path / "model.packnet")
