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


def weight(kernel, gradient=None, key="dense/kernel"):
    return criteria.Weight(key, kernel, gradient)


@pytest.fixture
def unregistered():
    """Takes back what a test registers."""
    known = dict(criteria._CRITERIA)
    objects = dict(keras.saving.get_custom_objects())
    yield
    criteria._CRITERIA.clear()
    criteria._CRITERIA.update(known)
    keras.saving.get_custom_objects().clear()
    keras.saving.get_custom_objects().update(objects)


class FromTarget(criteria.Criterion):
    """Scores by the distance from a value."""

    def __init__(self, target=0.0):
        self.target = target

    def score(self, weight):
        return np.abs(weight.kernel - self.target)

    def get_config(self):
        return {"target": self.target}


class Unnamed(criteria.Criterion):
    """Has neither a score nor a configuration of its own."""


@given(kernel=_KERNELS)
@settings(max_examples=60, deadline=None, database=None)
def test_magnitude_scores_by_absolute_value(kernel):
    before = kernel.tobytes()
    scores = criteria.Magnitude().score(weight(kernel))
    assert scores.shape == kernel.shape
    assert scores.dtype == kernel.dtype
    expected = [abs(float(value)) for value in kernel.reshape(-1)]
    np.testing.assert_array_equal(
        np.reshape(scores, -1).astype(np.float64), expected
    )
    assert kernel.tobytes() == before


def test_criterion_base_class_scores_nothing():
    with pytest.raises(NotImplementedError):
        Unnamed().score(weight(np.zeros(3)))


@given(kernel=_KERNELS)
@settings(max_examples=60, deadline=None, database=None)
def test_random_scores_do_not_depend_on_the_kernel(kernel):
    scores = criteria.Random(seed=3).score(weight(kernel))
    assert scores.shape == kernel.shape
    assert ((scores >= 0) & (scores < 1)).all()
    again = criteria.Random(seed=3).score(weight(np.zeros_like(kernel)))
    np.testing.assert_array_equal(scores, again)


def test_random_differs_from_seed_to_seed_and_weight_to_weight():
    kernel = np.zeros((50, 40))
    keys = ["a/kernel", "b/kernel", "a/kernel_1"]
    drawn = [
        criteria.Random(seed).score(weight(kernel, key=key)).tobytes()
        for seed in (0, 1, 2**40)
        for key in keys
    ]
    assert len(set(drawn)) == 9


def test_random_without_a_seed_follows_the_global_one():
    kernel = np.zeros(20)

    def draw():
        return criteria.get("random").score(weight(kernel)).tobytes()

    keras.utils.set_random_seed(1)
    first = [draw(), draw()]
    keras.utils.set_random_seed(1)
    assert [draw(), draw()] == first
    assert first[0] != first[1]
    keras.utils.set_random_seed(2)
    assert draw() not in first


def test_random_config_makes_an_equal_criterion():
    criterion = criteria.Random()
    config = keras.saving.serialize_keras_object(criterion)
    kernel = np.zeros(20)
    np.testing.assert_array_equal(
        criteria.get(config).score(weight(kernel)),
        criterion.score(weight(kernel)),
    )


@pytest.mark.parametrize("seed", [-1, 1.5, True, "1", [1]])
def test_random_refuses_what_is_no_seed(seed):
    with pytest.raises(ArgumentError, match="Received: seed="):
        criteria.Random(seed)


@given(kernel=_KERNELS.filter(lambda kernel: np.isfinite(kernel).all()))
@settings(max_examples=60, deadline=None, database=None)
def test_taylor_scores_by_weight_times_gradient(kernel):
    gradient = np.linspace(0, 1, kernel.size, dtype=np.float32)
    gradient = gradient.reshape(kernel.shape)
    scores = criteria.Taylor().score(weight(kernel, gradient))
    assert scores.shape == kernel.shape
    np.testing.assert_array_equal(scores, np.abs(kernel * gradient))


def test_names_lists_what_get_knows():
    assert criteria.names() == ["magnitude", "random", "taylor"]
    for name in criteria.names():
        assert type(criteria.get(name)).__name__.lower() == name


def test_only_taylor_asks_for_gradients():
    asked = {name: criteria.get(name).gradient for name in criteria.names()}
    assert asked == {"magnitude": None, "random": None, "taylor": "rms"}


def test_a_subclass_with_a_package_is_registered(unregistered):
    class Smallest(criteria.Criterion, package="mine"):
        def score(self, weight):
            return -np.abs(weight.kernel)

    assert isinstance(criteria.get("smallest"), Smallest)
    assert "smallest" in criteria.names()
    config = keras.saving.serialize_keras_object(Smallest())
    assert config["registered_name"] == "mine>Smallest"
    assert isinstance(criteria.get(config), Smallest)


def test_a_subclass_without_a_package_is_not_registered():
    assert "fromtarget" not in criteria.names()
    with pytest.raises(ArgumentError, match="Received:"):
        criteria.get("fromtarget")


@pytest.mark.parametrize("name", ["Magnitude", "MAGNITUDE", "Taken"])
def test_a_name_that_is_taken_is_refused(name, unregistered):
    keras.saving.get_custom_objects()["mine>Taken"] = FromTarget
    before = dict(keras.saving.get_custom_objects()), criteria.names()
    with pytest.raises(ArgumentError, match=f"own name.*class {name}"):
        type(criteria.Criterion)(
            name, (criteria.Criterion,), {}, package="mine"
        )
    assert before == (
        dict(keras.saving.get_custom_objects()),
        criteria.names(),
    )
    assert isinstance(criteria.get("magnitude"), criteria.Magnitude)


def test_a_gradient_of_another_kind_is_refused():
    with pytest.raises(ArgumentError, match=r"'rms'.*Received: 'max' in Bad"):
        type(criteria.Criterion)(
            "Bad", (criteria.Criterion,), {"gradient": "max"}
        )


@pytest.mark.parametrize("name", criteria.names())
def test_get_resolves_names(name):
    found = criteria.get(name)
    assert isinstance(found, criteria.Criterion)
    assert criteria.get(name) is not found


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
