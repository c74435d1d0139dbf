import dataclasses
import types

import keras
import pytest
from methods import recipes


@pytest.mark.parametrize("name", recipes.OPTIMIZERS)
def test_every_optimizer_can_be_made(name):
    made = recipes.Recipe(name, weight_decay=0.1).optimizer("train", 2, 3)
    assert type(made).__name__.lower() == name
    assert made.weight_decay == 0.1


@pytest.mark.parametrize("name", recipes.OPTIMIZERS)
def test_weights_decay_only_if_asked_for(name):
    assert not recipes.Recipe(name).optimizer("train", 2, 3).weight_decay


def rates(schedule, phase, steps, **changed):
    recipe = recipes.Recipe(
        learning_rate=1.0,
        retrain_learning_rate=0.5,
        schedule=schedule,
        decay_epochs=2,
        **changed,
    )
    rate = recipe.rate(phase, epochs=4, steps=5)
    if isinstance(rate, float):
        return [rate] * len(steps)
    return [float(rate(step)) for step in steps]


def test_learning_rates_follow_the_schedule():
    assert rates("constant", "train", [0, 19]) == [1.0, 1.0]
    assert rates("step", "train", [0, 9, 10, 19, 20]) == pytest.approx(
        [1.0, 1.0, 0.1, 0.1, 0.01]
    )
    assert rates("step", "retrain", [0, 10], decay_rate=0.5) == pytest.approx(
        [0.5, 0.25]
    )
    assert rates("cosine", "retrain", [0, 10, 20]) == pytest.approx(
        [0.5, 0.25, 0.0], abs=1e-6
    )


def test_a_warm_up_has_a_constant_rate():
    for schedule in recipes.SCHEDULES:
        assert rates(schedule, "warmup", [0, 20]) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("given", "expected"), [("auto", "auto"), ("true", True), ("false", False)]
)
def test_flags_make_a_recipe(given, expected):
    fields = {
        field.name: index
        for index, field in enumerate(dataclasses.fields(recipes.Recipe))
    }
    made = recipes.Recipe.from_flags(
        types.SimpleNamespace(
            **{**fields, "optimizer": fields["name"], "jit_compile": given}
        )
    )
    assert dataclasses.asdict(made) == {**fields, "jit_compile": expected}


def test_the_defaults_are_the_papers():
    made = recipes.Recipe().optimizer("train", 20, 100)
    assert isinstance(made, keras.optimizers.SGD)
    assert made.momentum == 0.9
    assert not made.weight_decay
    assert float(made.learning_rate) == pytest.approx(1e-3)
