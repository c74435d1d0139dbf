import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from packnet_tf import criteria
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import PackNetError

_KERNELS = hnp.arrays(
    st.sampled_from([np.float16, np.float32, np.float64]),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)


class FromTarget(criteria.Criterion):
    """Scores by the distance from a value."""

    def __init__(self, target=0.0):
        self.target = target

    def score(self, kernel):
        return np.abs(kernel - self.target)

    def get_config(self):
        return {"target": self.target}


class Unnamed(criteria.Criterion):
    """Has neither a score nor a configuration of its own."""


@given(kernel=_KERNELS)
@settings(max_examples=60, deadline=None, database=None)
def test_magnitude_scores_by_absolute_value(kernel):
    before = kernel.tobytes()
    scores = criteria.Magnitude().score(kernel)
    assert scores.shape == kernel.shape
    assert scores.dtype == kernel.dtype
    expected = [abs(float(value)) for value in kernel.reshape(-1)]
    np.testing.assert_array_equal(
        np.reshape(scores, -1).astype(np.float64), expected
    )
    assert kernel.tobytes() == before


def test_criterion_base_class_scores_nothing():
    with pytest.raises(NotImplementedError):
        Unnamed().score(np.zeros(3))


def test_get_resolves_names():
    found = criteria.get("magnitude")
    assert isinstance(found, criteria.Magnitude)
    assert criteria.get("magnitude") is not found


def test_get_returns_instances_as_they_are():
    criterion = FromTarget(2.0)
    assert criteria.get(criterion) is criterion


def test_get_resolves_configs():
    config = keras.saving.serialize_keras_object(criteria.Magnitude())
    assert isinstance(criteria.get(config), criteria.Magnitude)


def test_get_resolves_configs_of_custom_criteria():
    config = keras.saving.serialize_keras_object(FromTarget(0.25))
    with keras.saving.custom_object_scope({"FromTarget": FromTarget}):
        found = criteria.get(config)
    assert isinstance(found, FromTarget)
    assert found.target == 0.25


def test_criterion_config_makes_an_equal_criterion():
    found = FromTarget.from_config(FromTarget(0.5).get_config())
    assert found.target == 0.5
    assert type(Unnamed.from_config(Unnamed().get_config())) is Unnamed


@pytest.mark.parametrize(
    "identifier",
    [
        "magnitud",
        "Magnitude",
        "",
        None,
        3,
        {},
        {"name": "magnitude"},
        criteria.Magnitude,
        np.abs,
        ["magnitude"],
    ],
    ids=repr,
)
def test_get_refuses_what_is_no_criterion(identifier):
    with pytest.raises(ArgumentError, match="'magnitude'") as info:
        criteria.get(identifier)
    assert isinstance(info.value, PackNetError)
    assert isinstance(info.value, ValueError)
    assert f"Received: {identifier!r}" in str(info.value)


def test_get_refuses_configs_of_other_objects():
    config = keras.saving.serialize_keras_object(keras.initializers.Zeros())
    with pytest.raises(ArgumentError, match="Received:"):
        criteria.get(config)


def test_get_refuses_configs_of_unknown_classes():
    with pytest.raises(ArgumentError, match="Received:"):
        criteria.get({"class_name": "Nowhere>Missing", "config": {}})
