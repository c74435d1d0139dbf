import copy
import functools
import importlib
import os
import pathlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tensorflow as tf

import packnet_tf
from packnet_tf import schedules
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import PackNetError

_ROOT = pathlib.Path(packnet_tf.__file__).resolve().parents[1]
_FLAG = "TF_USE_LEGACY_KERAS"


@pytest.fixture(scope="module")
def tfmot():
    return schedules.tfmot_schedules()


class Staircase:
    """A schedule of one's own: no class of TF-MOT, but its contract."""

    def __call__(self, step):
        return step % 10 == 0, 0.1 * float(step // 10)


def test_constant_sparsity_prunes_between_its_steps(tfmot):
    schedule = schedules.get(
        tfmot.ConstantSparsity(0.75, begin_step=10, end_step=30, frequency=5)
    )
    asked = {step: schedules.evaluate(schedule, step) for step in range(40)}
    pruned = [step for step, (should, _) in asked.items() if should]
    assert pruned == [10, 15, 20, 25, 30]
    assert all(asked[step] == (True, 0.75) for step in pruned)


def test_polynomial_decay_matches_oracle(tfmot):
    schedule = schedules.get(
        tfmot.PolynomialDecay(
            0.1, 0.7, begin_step=20, end_step=120, power=3, frequency=20
        )
    )
    for step in range(0, 160, 10):
        should_prune, sparsity = schedules.evaluate(schedule, step)
        progress = np.clip((step - 20) / 100, 0, 1)
        expected = 0.7 + (0.1 - 0.7) * (1 - progress) ** 3
        assert should_prune == (20 <= step <= 120 and step % 20 == 0)
        assert sparsity == pytest.approx(
            expected if should_prune else 0.0, abs=1e-6
        )
    assert schedules.evaluate(schedule, 120) == (True, 0.7)


def test_evaluate_returns_python_values(tfmot):
    schedule = tfmot.ConstantSparsity(0.5, begin_step=0)
    should_prune, sparsity = schedules.evaluate(schedule, 0)
    assert type(should_prune) is bool
    assert type(sparsity) is float


@pytest.mark.parametrize(
    "convert",
    [tf.constant, np.float32, functools.partial(np.array, dtype=np.float32)],
    ids=["tensor", "scalar", "array"],
)
def test_evaluate_undoes_rounding_to_float32(convert):
    for percent in range(100):
        sparsity = convert(percent / 100)
        asked = schedules.evaluate(lambda step, to=sparsity: (True, to), 0)
        assert asked == (True, percent / 100)


def test_evaluate_of_tfmot_schedules_is_exact_at_the_end(tfmot):
    for fraction in (0.1, 0.3, 0.7, 0.85, 0.9999):
        constant = tfmot.ConstantSparsity(fraction, begin_step=0)
        decay = tfmot.PolynomialDecay(0.0, fraction, 0, 100)
        assert schedules.evaluate(constant, 100)[1] == fraction
        assert schedules.evaluate(decay, 100)[1] == fraction


@pytest.mark.parametrize("sparsity", [1 / 3, np.float64(1 / 3), 0, 0.0])
def test_evaluate_leaves_other_numbers_alone(sparsity):
    assert schedules.evaluate(lambda step: (1, sparsity), 5) == (
        True,
        float(sparsity),
    )


def test_evaluate_asks_with_an_integer_step():
    asked = []

    def schedule(step):
        asked.append(step)
        return False, 0.0

    assert schedules.evaluate(schedule, 2**40) == (False, 0.0)
    (step,) = asked
    assert step.dtype == tf.int64
    assert int(step) == 2**40


@pytest.mark.parametrize(
    "schedule", [Staircase(), lambda step: (step == 3, 0.5)]
)
def test_get_returns_own_callables_as_they_are(schedule):
    assert schedules.get(schedule) is schedule


def test_evaluate_own_callable():
    schedule = schedules.get(Staircase())
    assert schedules.evaluate(schedule, 20) == (True, 0.2)
    assert schedules.evaluate(schedule, 25)[0] is False


@pytest.mark.parametrize("name", ["ConstantSparsity", "PolynomialDecay"])
def test_get_resolves_configs_of_tfmot_schedules(tfmot, name):
    if name == "ConstantSparsity":
        schedule = tfmot.ConstantSparsity(0.6, 4, end_step=80, frequency=2)
    else:
        schedule = tfmot.PolynomialDecay(0.2, 0.9, 4, 80, frequency=2)
    config = schedule.get_config()
    before = copy.deepcopy(config)
    again = schedules.get(config)
    assert type(again) is type(schedule)
    assert again.get_config() == before
    assert config == before
    for step in range(0, 100, 3):
        assert schedules.evaluate(again, step) == schedules.evaluate(
            schedule, step
        )


@pytest.mark.parametrize(
    "identifier",
    [
        None,
        0.5,
        "PolynomialDecay",
        [],
        {},
        Staircase,
        {"config": {}},
        {"class_name": "Missing", "config": {}},
        {"class_name": "UpdatePruningStep", "config": {}},
        {"class_name": "__name__", "config": {}},
        {"class_name": 3, "config": {}},
        {"class_name": None},
    ],
    ids=repr,
)
def test_get_refuses_what_is_no_schedule(identifier):
    with pytest.raises(ArgumentError, match="TF-MOT") as info:
        schedules.get(identifier)
    assert isinstance(info.value, PackNetError)
    assert isinstance(info.value, ValueError)
    assert f"Received: {identifier!r}" in str(info.value)


def test_get_refuses_classes_of_tfmot(tfmot):
    with pytest.raises(ArgumentError, match="Received:"):
        schedules.get(tfmot.PolynomialDecay)


@pytest.mark.parametrize(
    "identifier",
    [
        {"class_name": "PolynomialDecay"},
        {"class_name": "ConstantSparsity", "config": {"sparsity": 0.5}},
        {"class_name": "ConstantSparsity", "config": None},
        {"class_name": "PruningSchedule", "config": {}},
    ],
    ids=repr,
)
def test_get_refuses_configs_that_do_not_fit(identifier):
    with pytest.raises(ArgumentError, match="Received:"):
        schedules.get(identifier)


@pytest.mark.parametrize("before", [None, "0", "1", "yes"])
@pytest.mark.parametrize("fails", [False, True])
def test_tfmot_schedules_puts_the_environment_back(monkeypatch, before, fails):
    def import_module(name):
        os.environ[_FLAG] = "True"
        if fails:
            raise ImportError(name)
        return name

    if before is None:
        monkeypatch.delenv(_FLAG, raising=False)
    else:
        monkeypatch.setenv(_FLAG, before)
    monkeypatch.setattr(importlib, "import_module", import_module)
    if fails:
        with pytest.raises(ImportError):
            schedules.tfmot_schedules()
    else:
        assert "tensorflow_model_opt" in schedules.tfmot_schedules()
    assert os.environ.get(_FLAG) == before


@pytest.mark.parametrize("before", [None, "0"])
def test_import_leaves_legacy_flag_as_found(before):
    program = """
        import os
        import sys

        before = os.environ.get("TF_USE_LEGACY_KERAS")
        import keras
        import packnet_tf

        assert "tensorflow_model_optimization" not in sys.modules
        assert os.environ.get("TF_USE_LEGACY_KERAS") == before
        config = {
            "class_name": "ConstantSparsity",
            "config": {"target_sparsity": 0.7, "begin_step": 0},
        }
        schedule = packnet_tf.schedules.get(config)
        assert packnet_tf.schedules.evaluate(schedule, 0) == (True, 0.7)
        assert "tensorflow_model_optimization" in sys.modules
        assert os.environ.get("TF_USE_LEGACY_KERAS") == before

        import tensorflow as tf

        assert tf.keras.Model is keras.Model
        print("done")
        """
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment.pop(_FLAG, None)
    if before is not None:
        environment[_FLAG] = before
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        cwd=_ROOT,
        env=environment,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.split() == ["done"]
