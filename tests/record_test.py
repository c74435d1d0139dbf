import json

import numpy as np
import pytest

from packnet_tf.difference import sketch
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import PackNetError
from packnet_tf.record import Record


def _record():
    return Record(
        {"conv/kernel": "1", "conv/bias": "2"},
        {"norm/gamma": "6"},
        {"out/kernel": "3"},
        "4",
        "5",
        {
            "backbone": {
                "conv/kernel": sketch(np.ones((20, 30), np.float32)),
                "conv/bias": sketch(np.ones(3, np.float32)),
            },
            "per_task": {"norm/gamma": sketch(np.ones(3, np.float32))},
            "head": {"out/kernel": sketch(np.ones((), np.float32))},
        },
    )


def _config():
    return json.loads(json.dumps(_record().to_config()))


def test_record_survives_json():
    record = Record.from_config(_config())
    assert record == _record()
    assert record.sketches == _record().sketches
    assert list(record.backbone) == ["conv/kernel", "conv/bias"]


@pytest.mark.parametrize("sketches", [None, {}])
def test_record_without_sketches_is_read(sketches):
    config = _config()
    config.pop("sketches")
    if sketches is not None:
        config["sketches"] = sketches
    record = Record.from_config(config)
    assert record.sketches == {}
    assert record.fingerprint == "5"
    assert Record.from_config(record.to_config()) == record


def test_record_with_some_sketches_is_read():
    config = _config()
    config["sketches"].pop("head")
    config["sketches"]["backbone"].pop("conv/bias")
    record = Record.from_config(config)
    assert record.sketches == {
        "backbone": {
            "conv/kernel": _record().sketches["backbone"]["conv/kernel"]
        },
        "per_task": _record().sketches["per_task"],
    }


def test_small_sketches_are_left_out():
    config = _record().to_config(least=4)
    assert list(config["sketches"]["backbone"]) == ["conv/kernel"]
    assert config["sketches"]["head"] == {}
    assert config["backbone"] == _record().backbone


def _set(*keys):
    """Returns a function that puts its last argument behind the keys."""
    *path, last, value = keys

    def change(config):
        for key in path:
            config = config[key]
        config[last] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.pop("base"),
        lambda config: config.pop("head"),
        lambda config: config.clear(),
        _set("more", 1),
        _set("base", 4),
        _set("fingerprint", None),
        _set("backbone", []),
        _set("head", "out/kernel"),
        _set("backbone", "conv/bias", 2),
        _set("head", "out/kernel", None),
        _set("sketches", None),
        _set("sketches", []),
        _set("sketches", "more", {}),
        _set("sketches", "head", None),
        _set("sketches", "head", "more", {}),
        _set("sketches", "head", "out/kernel", None),
        _set("sketches", "head", "out/kernel", {}),
        _set("sketches", "head", "out/kernel", "cells", "AA=="),
        lambda config: config["backbone"].pop("conv/bias"),
    ],
)
def test_record_refuses_what_is_not_whole(change):
    config = _config()
    change(config)
    with pytest.raises(ArgumentError, match="Received: ") as info:
        Record.from_config(config)
    assert isinstance(info.value, PackNetError)
    assert len(str(info.value)) < 400


@pytest.mark.parametrize("config", [None, [], "record", 1])
def test_record_refuses_what_is_no_dict(config):
    with pytest.raises(ArgumentError, match="Received: "):
        Record.from_config(config)
