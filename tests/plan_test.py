"""What is planned is what tasks own that are really learned."""

import warnings

import keras
import numpy as np
import pytest
from helpers import Unchanged
from helpers import all_values
from helpers import assert_same_values
from helpers import compile_model
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

import packnet_tf
from packnet_tf import inspection
from packnet_tf import sharing
from packnet_tf.capacity import Capacity
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import StageError
from packnet_tf.errors import TaskError
from packnet_tf.errors import UnsupportedLayerError

L = keras.layers
OWN = {"biases": "per_task", "normalization": "per_task"}


def nested_network():
    inner = keras.Sequential(
        [keras.Input((5,)), L.Dense(7, name="dense"), L.Dropout(0.5)],
        name="inner",
    )
    inputs = keras.Input((5,))
    x = inner(inputs)
    x = L.LayerNormalization(name="norm")(x)
    x = inner(L.Dense(5, name="back", dtype="float16")(x))
    return keras.Model(inputs, L.Dense(9, trainable=False, name="still")(x))


def wide_network(units=60):
    return keras.Sequential([keras.Input((10,)), L.Dense(units, name="dense")])


def learn(model, planned, units):
    """Learns the planned tasks; what they own does not depend on data."""
    for name, sparsity in planned.sparsities.items():
        if name not in model.task_names:
            model.add_task(name, units=units)
        model.prune(sparsity)
        model.freeze_task()


def check(model, planned):
    """Checks that a model is as it was planned."""
    now = model.summary_capacity(print_fn=len)
    assert now == planned.capacity
    assert list(now.layers) == list(planned.capacity.layers)
    assert inspection.inspect(model).sizes.compact == planned.bytes


@pytest.mark.parametrize("make", [nested_network, None])
@pytest.mark.parametrize(
    ("tasks", "options"),
    [
        (3, {}),
        (["b", "a"], OWN),
        ({"x": 3, "y": 1.5, "z": 0.2}, {"biases": "per_task"}),
        (["a", "b"], {"filters": "dense|conv"}),
    ],
)
def test_tasks_own_what_was_planned(network, make, tasks, options):
    plain = make() if make else network(classes=None)
    before = all_values(plain)
    planned = packnet_tf.plan(plain, tasks, units=4, head=None, **options)
    assert_same_values(before, all_values(plain))
    model = packnet_tf.wrap(plain, head=None, **options)
    assert packnet_tf.plan(model, tasks, units=4) == planned
    learn(model, planned, units=4)
    check(model, planned)


def test_trained_tasks_own_what_was_planned(network, images):
    planned = packnet_tf.plan(network(), ["one", "two"], units=3, future=1)
    model = packnet_tf.wrap(network(), task="one")
    compile_model(model, "adam")
    x, y = images
    for name, sparsity in planned.sparsities.items():
        if name not in model.task_names:
            model.add_task(name, units=3)
        model.fit(x, y % 3, epochs=1, verbose=0)
        model.prune(sparsity)
        model.fit(x, y % 3, epochs=1, verbose=0)
        model.freeze_task()
    check(model, planned)
    (left,) = planned.future
    assert model.summary_capacity(print_fn=len).free == left


@given(
    sizes=st.lists(st.integers(1, 500), min_size=1, max_size=4),
    sparsities=st.lists(
        st.one_of(
            st.floats(0, 1, exclude_max=True),
            st.sampled_from([0.1, 0.25, 0.5, 0.7, 0.75]),
        ),
        min_size=1,
        max_size=4,
    ),
)
@settings(max_examples=20, deadline=None, database=None, derandomize=True)
def test_any_sparsities_lead_to_what_was_planned(sizes, sparsities):
    inputs = keras.Input((1,))
    x = inputs
    for size in sizes:
        x = L.Dense(size, use_bias=False)(L.Reshape((-1, 1))(x))
        x = L.GlobalMaxPooling1D()(x)
    plain = keras.Model(inputs, x)
    names = [f"task_{number}" for number in range(1, len(sparsities) + 1)]
    model = packnet_tf.wrap(plain, head=None)
    now = model.summary_capacity(print_fn=len)
    after = now.after(dict(zip(names, sparsities)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        if min(after.owned.values()) == 0:
            with pytest.raises(ArgumentError, match="would own nothing"):
                packnet_tf.plan(model, names, sparsities)
            return
        planned = packnet_tf.plan(model, names, sparsities, units=2)
        learn(model, planned, units=2)
    check(model, planned)


def test_tasks_share_equally():
    planned = packnet_tf.plan(wide_network(), 5, head=None)
    assert list(planned.capacity.owned.values()) == [120] * 5
    assert planned.capacity.free == 0
    assert list(planned.sparsities) == [f"task_{n}" for n in range(1, 6)]
    assert planned.sparsities["task_5"] == 0.0


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (["task_2"], ["task_3", "task_4"]),
        (["task_3", "task_1"], ["task_4", "task_5"]),
        (["task_4", "a"], ["task_3", "task_5"]),
    ],
)
def test_tasks_without_names_get_free_ones(there, expected):
    model = packnet_tf.wrap(wide_network(), head=None)
    for name in there:
        model.add_task(name, units=2)
        model.prune(0.5)
        model.freeze_task()
    assert list(packnet_tf.plan(model, 2).sparsities) == expected


def test_more_tasks_than_there_can_be_are_refused_at_once():
    with pytest.raises(TaskError, match="255"):
        packnet_tf.plan(wide_network(), 10**12, head=None)


def test_tasks_share_by_their_weights():
    planned = packnet_tf.plan(
        wide_network(), {"a": 3, "b": 1, "c": 2}, head=None
    )
    assert planned.capacity.owned == {"a": 300, "b": 100, "c": 200}


def test_future_tasks_count_as_much_as_one():
    planned = packnet_tf.plan(
        wide_network(), {"a": 2, "b": 1}, future=3, head=None
    )
    assert planned.capacity.owned == {"a": 200, "b": 100}
    assert planned.future == (100, 100, 100)


@pytest.mark.parametrize("future", [1, 4, 10])
@pytest.mark.parametrize("share", [0.01, 0.05, 1 / 13])
def test_future_tasks_own_a_share_at_least(network, future, share):
    model = packnet_tf.wrap(network(classes=None), head=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        planned = packnet_tf.plan(
            model, ["one", "two"], future=future, share=share
        )
        wanted = share * planned.capacity.total
        learn(model, planned, units=2)
        rest = packnet_tf.plan(model, future)
        learn(model, rest, units=2)
    owned = model.summary_capacity(print_fn=len).owned
    names = list(rest.sparsities)
    assert [owned[name] for name in names] == list(planned.future)
    assert min(planned.future) >= wanted
    # No more than rounding asks for.
    rounding = (future + 1) * len(planned.capacity.layers)
    assert sum(planned.future) < future * (wanted + 1) + rounding


@given(
    rows=st.lists(st.integers(1, 5000), min_size=1, max_size=6),
    weights=st.lists(st.floats(0.1, 10), min_size=0, max_size=4),
    future=st.integers(1, 12),
    share=st.floats(0.001, 0.5),
)
@settings(max_examples=200, deadline=None, database=None)
def test_what_is_reserved_is_enough(rows, weights, future, share):
    now = Capacity((), {f"{i}": (row,) for i, row in enumerate(rows)}, 0, ())
    named = {f"task_{i}": weight for i, weight in enumerate(weights)}
    try:
        chosen = sharing.reserve(now, named, future, share)
    except ArgumentError:
        # All roundings together are less than this.
        lost = (len(named) + future + 1) * (len(rows) + 1)
        assert future * share * now.total >= now.total - lost - future
        return
    after = now.after(dict(zip(named, chosen)))
    owned = list(sharing.later(after, future).owned.values())[-future:]
    assert min(owned) >= round(share * now.total, 6)


def test_a_round_share_is_no_more_than_it_says():
    # 0.07 * 100 is more than 7 in floating point.
    network = keras.Sequential([keras.Input((5,)), L.Dense(20, name="dense")])
    planned = packnet_tf.plan(network, 0, future=14, share=0.07, head=None)
    assert min(planned.future) == 7
    assert planned.sparsities == {}


def test_what_is_left_is_planned():
    model = packnet_tf.wrap(wide_network(), head=None)
    model.add_task("one", units=3)
    planned = packnet_tf.plan(model, ["one", "two", "three"])
    assert set(planned.capacity.owned.values()) == {200}
    model.prune(0.5)
    planned = packnet_tf.plan(model, ["one", "two", "three"])
    assert set(planned.capacity.owned.values()) == {200}
    planned = packnet_tf.plan(model, ["two", "three"], units=2)
    assert planned.capacity.owned == {"one": 300, "two": 150, "three": 150}
    with pytest.raises(ArgumentError, match="do not come back"):
        packnet_tf.plan(model, ["one", "two"], sparsities=[0.4, 0.0])
    model.freeze_task()
    assert packnet_tf.plan(model, ["two", "three"], units=2) == planned
    learn(model, planned, units=2)
    check(model, planned)


def test_a_task_in_training_is_asked_for():
    model = packnet_tf.wrap(wide_network(), head=None)
    model.add_task("one", units=3)
    with Unchanged(model), pytest.raises(ArgumentError, match="plan it first"):
        packnet_tf.plan(model, ["two"])


def test_the_classifier_is_the_head_of_the_first_task(network):
    planned = packnet_tf.plan(network(), ["one", "two"], units=3)
    assert planned.capacity.heads == (4 * 13, 3 * 13)
    planned = packnet_tf.plan(network(), ["one", "two"], heads={"two": 5})
    assert planned.capacity.heads == (4 * 13, 5)
    planned = packnet_tf.plan(network(), ["one", "two"], units={"two": 2})
    assert planned.capacity.heads == (4 * 13, 2 * 13)
    planned = packnet_tf.plan(network(), ["one", "two"])
    assert planned.capacity.heads == (4 * 13, 0)
    assert planned.uncounted == ("two",)


def test_heads_of_which_nothing_is_known_are_told(network):
    planned = packnet_tf.plan(
        network(), ["one", "two", "three", "four"], heads={"three": 0}
    )
    assert planned.uncounted == ("two", "four")
    lines = str(planned).split("\n")
    assert [line.split()[-1] for line in lines[2:6]] == ["52", "-", "0", "-"]
    assert lines[-1] == "not counted: heads of two, four"
    known = packnet_tf.plan(network(), ["one", "two"], units=3)
    assert known.uncounted == ()
    assert "not counted" not in str(known)


def test_a_weight_without_room_is_warned_of():
    network = keras.Sequential(
        [keras.Input((1,)), L.Dense(1, name="tiny"), L.Dense(90, name="wide")]
    )
    with pytest.warns(UserWarning, match="'b' in .*tiny/kernel"):
        packnet_tf.plan(network, ["a", "b"], head=None, sparsities=[0.5, 0.5])


def test_str_is_a_table_of_all_tasks():
    model = packnet_tf.wrap(wide_network(), head=None)
    model.add_task("old", units=3)
    model.prune(0.5)
    model.freeze_task()
    text = str(packnet_tf.plan(model, {"new": 2.0}, future=1, heads={"new": 7}))
    assert text.split("\n")[:-1] == [
        "task        sparsity  weights   share  head",
        "-------------------------------------------",
        "old                -      300  50.00%   183",
        "new         0.333333      200  33.33%     7",
        "free                      100  16.67%",
        "  future 1                100  16.67%",
    ]


REFUSED = {
    "nothing": (dict(tasks=[]), ArgumentError, "nothing to plan"),
    "no number": (dict(tasks=True), ArgumentError, "`tasks`"),
    "negative": (dict(tasks=-1), ArgumentError, "nothing to plan"),
    "text": (dict(tasks="birds"), ArgumentError, "`tasks`"),
    "twice": (dict(tasks=["a", "a"]), ArgumentError, "its own name"),
    "no name": (dict(tasks=["a/b"]), TaskError, "a/b"),
    "no text": (dict(tasks=[["a"]]), TaskError, "name"),
    "nothing named": (dict(tasks=[None]), TaskError, "None"),
    "many": (dict(tasks=200, future=56), TaskError, "task=256"),
    "weightless": (dict(tasks={"a": 0.0}), ArgumentError, "positive"),
    "endless": (dict(tasks={"a": np.inf}), ArgumentError, "positive"),
    "no weight": (dict(tasks={"a": "1"}), ArgumentError, "positive"),
    "tiny": (dict(tasks={"a": 1e-30, "b": 1.0}), ArgumentError, r"\[0, 1\)"),
    "both": (
        dict(tasks={"a": 1.0}, sparsities=[0.5]),
        ArgumentError,
        "one of both",
    ),
    "few": (dict(tasks=3, sparsities=[0.5]), ArgumentError, "1 sparsities"),
    "percent": (dict(tasks=1, sparsities=[50]), ArgumentError, "percent"),
    "no future": (dict(tasks=1, future=-1), ArgumentError, "`future`"),
    "half a future": (dict(tasks=1, future=0.5), ArgumentError, "`future`"),
    "share of none": (dict(tasks=1, share=0.1), ArgumentError, "`share`"),
    "share of all": (
        dict(tasks=1, share=1.0, future=1),
        ArgumentError,
        "`share`",
    ),
    "share and sparsities": (
        dict(tasks=1, share=0.1, future=1, sparsities=[0.5]),
        ArgumentError,
        "`share`",
    ),
    "too much": (
        dict(tasks=1, share=0.1, future=10),
        ArgumentError,
        "not enough capacity",
    ),
    "too little": (
        dict(tasks=["a", "b"], sparsities=[0.0005, 0.0]),
        ArgumentError,
        "'b' would own nothing",
    ),
    "no room": (
        dict(tasks=1, future=1, sparsities=[0.0]),
        ArgumentError,
        "would own nothing",
    ),
    "two heads": (
        dict(tasks=["a"], units=3, heads={"a": 3}),
        ArgumentError,
        "one head",
    ),
    "unknown head": (
        dict(tasks=["a"], units={"b": 3}),
        ArgumentError,
        "one head",
    ),
    "no units": (dict(tasks=["a"], units=-3), ArgumentError, "-3"),
    "filters": (dict(tasks=1, filters="no"), ArgumentError, "filters"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused(name):
    arguments, error, message = REFUSED[name]
    with pytest.raises(error, match=message) as caught:
        packnet_tf.plan(wide_network(), head=None, **arguments)
    assert "Received: " in str(caught.value)


def test_what_wrap_refuses_is_refused():
    network = keras.Sequential(
        [keras.Input((3,)), L.Dense(3), L.SpectralNormalization(L.Dense(3))]
    )
    network.layers[0].enable_lora(2)
    with pytest.raises(UnsupportedLayerError, match="LoRA"):
        packnet_tf.plan(network, 2)


def test_a_packed_model_was_wrapped_already():
    model = packnet_tf.wrap(wide_network(), head=None)
    with pytest.raises(ArgumentError, match="decided by `wrap`"):
        packnet_tf.plan(model, 2, filters="dense")
    model.add_task("one", units=3)
    model.prune(0.5)
    model.freeze_task()
    with pytest.raises(StageError, match="not frozen"):
        packnet_tf.plan(model, ["one", "two"])
