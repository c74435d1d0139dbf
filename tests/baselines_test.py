"""Baselines: what each method keeps, and that a kill changes nothing."""

import itertools

import baselines
import ewc
import experiments
import keras
import numpy as np
import pytest
from experiments import Killed
from experiments import KillAt

METHODS = {
    "classifier": baselines.ClassifierOnly,
    "ewc": ewc.ElasticWeightConsolidation,
    "finetune": baselines.FineTuning,
    "joint": baselines.Joint,
    "lwf": baselines.LearningWithoutForgetting,
}
KEPT = {"ewc", "joint", "lwf"}
# Enough for the results of all tests of a method to be begun and left.
KILLS = [1, 2, 2, 1, 2, 3, 2, 2, 1, 4, 2, 3, 2, 2, 5, 2, 2, 2, 1, 2, 2]


def same_arrays(one, other):
    assert list(one) == list(other)
    for name, value in one.items():
        assert value.tobytes() == other[name].tobytes(), name


def without_clock(result):
    return {name: result[name] for name in set(result) - {"seconds", "bytes"}}


def learn(make_method, folder, kills=(), **changed):
    """Learns, killed again and again; returns the method and its result."""
    killed = 0
    for left in itertools.chain(kills, [None]):
        keras.backend.clear_session()
        # What a process has left in these is no part of a run.
        keras.utils.set_random_seed(1000 + killed)
        kill = None if left is None else KillAt(left)
        method = make_method(experiments.make(folder, kill=kill, **changed))
        try:
            return method, without_clock(method.learn()), killed
        except Killed:
            killed += 1
    raise AssertionError


@pytest.mark.parametrize("name", METHODS)
def test_a_kill_changes_nothing(name, tmp_path):
    def make_method(setting):
        return METHODS[name](setting, name)

    changed = {
        "keep": experiments.make_keeping() if name in KEPT else None,
        "name": "adam",
        "schedule": "cosine",
        "learning_rate": 0.01,
        "patience": 2,
        "epochs": 3,
    }
    whole, expected, _ = learn(make_method, tmp_path / "whole", **changed)
    other, found, killed = learn(
        make_method, tmp_path / "killed", KILLS, **changed
    )
    assert killed > 10
    assert found == expected
    same_arrays(whole.network.to_arrays(), other.network.to_arrays())
