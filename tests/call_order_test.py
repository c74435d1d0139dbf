"""Models whose layers are listed in another order, or call each other."""

import copy
import functools
import json
import random

import keras
import limits
import pytest

import packnet_tf
from packnet_tf import call_order
from packnet_tf import configurations
from packnet_tf.errors import FileError

L = keras.layers
LOOP = "in a loop"
NOTHING = "that nothing gives"
ORDER = "in no order"
TWICE = "has a layer twice"


def serialize(model):
    """Returns a configuration as a file holds it."""
    return json.loads(json.dumps(keras.saving.serialize_keras_object(model)))


def layers(config):
    return {layer["name"]: layer for layer in config["config"]["layers"]}


def tensors(value):
    """Yields what stands for each tensor, to be changed in place."""
    if isinstance(value, dict) and "keras_history" in value:
        yield value["keras_history"]
    elif isinstance(value, (dict, list)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from tensors(each)


def taken(config, name, call=0):
    """Returns what a call of a layer takes, to be changed in place."""
    return next(tensors(layers(config)[name]["inbound_nodes"][call]))


def network():
    """Makes a network whose layers are called in all ways."""
    inputs = [keras.Input((4,), name="x"), keras.Input((4,), name="y")]
    inner = keras.Sequential([keras.Input((4,)), L.Dense(4)], name="inner")
    nested = keras.Model(inputs[1], L.Dense(4, name="d")(inputs[1]), name="n")
    one, two = L.Dense(4, name="one"), L.Dense(4, name="two")
    x = one(two(inner(one(two(inputs[0])))))
    y = nested(nested(inputs[1]) + inner(inputs[1]))
    attended = L.MultiHeadAttention(1, 2, name="attention")(
        query=x[:, None], value=y[:, None]
    )
    return keras.Model(inputs, [L.Add(name="sum")([x, y]), attended])


@functools.cache
def whole():
    return serialize(network())


def chain(count):
    """Returns the configuration of a chain of layers."""
    x = inputs = keras.Input((2,), name="x")
    outputs = L.Identity(name="layer_0")(x)
    config = serialize(keras.Model(inputs, outputs))
    first = config["config"]["layers"][-1]
    for place in range(1, count):
        layer = copy.deepcopy(first)
        layer["name"] = layer["config"]["name"] = f"layer_{place}"
        config["config"]["layers"].append(layer)
        taken(config, layer["name"])[0] = f"layer_{place - 1}"
    output = config["config"]["output_layers"]
    while not isinstance(output[0], str):  # Keras 3.10 makes a list of one.
        (output,) = output
    output[0] = layer["name"]
    return config


def reverse(config):
    config["config"]["layers"].reverse()
    return config


def rounds(config):
    """Goes over a model as Keras does: the rounds, and how many tries fail.

    Returns `None` if it never ends.
    """
    listed = config["config"]["layers"]
    made = {x["name"]: int(x["class_name"] == "InputLayer") for x in listed}
    left = {x["name"]: list(x["inbound_nodes"]) for x in listed}
    count = failed = 0
    while any(left.values()):
        before, count = copy.deepcopy(left), count + 1
        for layer in listed:
            calls = left[layer["name"]]
            while calls:
                if not all(made[x[0]] > x[1] for x in tensors(calls[0])):
                    failed += 1
                    break
                made[layer["name"]] += 1
                del calls[0]
        if left == before:
            return None
    return count, failed


def attempts(config):
    graphs = call_order.Graphs()
    for layer in config["config"]["layers"]:
        graphs.add_object(getattr(L, layer["class_name"], None), layer)
    graphs.add(config["config"])
    return graphs.count_attempts()


def test_attempts_are_no_fewer_than_those_of_keras():
    draw = random.Random(3)
    calls = sum(len(x["inbound_nodes"]) for x in whole()["config"]["layers"])
    assert rounds(whole())[0] == 2
    found = {"ends": 0, "loops": 0}
    for _ in range(300):
        config = copy.deepcopy(whole())
        listed = config["config"]["layers"]
        draw.shuffle(listed)
        for taken in draw.sample(list(tensors(listed)), draw.choice((0, 0, 1))):
            other = draw.choice(listed)
            count = len(other["inbound_nodes"]) or 1
            taken[:2] = other["name"], draw.randrange(count)
        expected = rounds(config)
        if expected is None:
            found["loops"] += 1
            with pytest.raises(FileError, match=LOOP):
                attempts(config)
            continue
        found["ends"] += 1
        count, failed = expected
        assert calls + failed <= attempts(config)
        # A round counts with each layer that is called, once or twice.
        assert attempts(config) <= 2 * (calls + count * len(listed))
    assert min(found.values()) > 30, found


@pytest.mark.parametrize("seed", range(3))
def test_layers_may_be_listed_in_any_order(seed):
    model = network()
    config = serialize(model)
    random.Random(seed).shuffle(config["config"]["layers"])
    configurations.check(config)
    loaded = keras.saving.deserialize_keras_object(config)
    assert {x.name for x in loaded.layers} == {x.name for x in model.layers}


def test_many_layers_are_listed_in_the_order_they_are_called():
    configurations.check(chain(1000))
    configurations.check(reverse(chain(100)))
    with limits.within(60), pytest.raises(FileError, match=ORDER):
        configurations.check(reverse(chain(1000)))


def test_a_call_that_takes_much_counts_as_several():
    config = reverse(chain(100))
    call = layers(config)["layer_99"]["inbound_nodes"][0]
    call["kwargs"]["mask"] = [0] * 100_000
    with pytest.raises(FileError, match=ORDER):
        configurations.check(config)


def edit(name, number=0, call=0, tensor="one"):
    def change(config):
        taken(config, tensor, call)[:2] = name, number

    return change


def change_input(config):
    layers(config)["y"]["name"] = "z"


def double(config):
    listed = config["config"]["layers"]
    listed.append(copy.deepcopy(listed[-1]))


def share(config):
    for name in ("one", "two"):
        layers(config)[name]["shared_object_id"] = 7


def share_input(config):
    layers(config)["x"]["shared_object_id"] = 7
    dense = layers(config)["inner"]["config"]["layers"][-1]
    dense["shared_object_id"] = 7


def hide(config):
    """Lets the dict of a call look as that of an object."""
    call = layers(config)["two"]["inbound_nodes"][0]
    call.update({"class_name": "__slice__", "config": {}})
    taken(config, "two")[0] = "sum"


def without(key, name="two"):
    def change(config):
        del layers(config)[name][key]

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (edit("one"), LOOP),
        (edit("one", 1), LOOP),
        (edit("sum", tensor="two"), LOOP),
        (edit("one", 1, tensor="two"), LOOP),
        (hide, LOOP),
        (edit("one", 2), NOTHING),
        (edit("x", 1), NOTHING),
        (edit("x", -1), NOTHING),
        (edit("one", -1), NOTHING),
        (edit("x", 0.0), NOTHING),
        (edit("x", True), NOTHING),
        (edit("x", None), NOTHING),
        (edit("else"), NOTHING),
        (edit(["x"]), NOTHING),
        (edit(None), NOTHING),
        (lambda config: taken(config, "one").append(0), NOTHING),
        (change_input, NOTHING),
        (double, TWICE),
        (share, TWICE),
        (share_input, "one object of things that differ"),
        (without("name"), "without a name"),
        (without("class_name"), "of no class"),
        (without("inbound_nodes"), "without calls"),
    ],
)
def test_what_can_never_be_called_is_refused(change, match, tmp_path):
    config = copy.deepcopy(whole())
    configurations.check(config)
    change(config)
    with pytest.raises(FileError, match=match) as caught:
        configurations.check([{"a": config}])
    assert "Received: " in str(caught.value)


def give_no_such(config):
    taken(config, "two")[2] = 7


def join_no_such(config):
    """Lets a layer raise an `IndexError` when it is called."""
    layer = layers(config)["sum"]
    layer["class_name"] = "Dot"
    layer["config"] = {"name": "sum", "axes": 7}
    layer["build_config"] = None


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (edit("sum", tensor="two"), LOOP),
        # These are told when Keras makes the model.
        (give_no_such, "Cannot load"),
        (join_no_such, "no such tensors"),
    ],
)
def test_readers_come_to_an_end(change, match, tmp_path):
    model = packnet_tf.wrap(network(), head=None)
    model.save(tmp_path / "model", zipped=False)
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    change(config["config"]["backbone"])
    path.write_text(json.dumps(config))
    with limits.within(120), pytest.raises(FileError, match=match):
        packnet_tf.load_model(tmp_path / "model")
