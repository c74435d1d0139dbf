import collections

import keras
import numpy as np
import pytest
import tensorflow as tf

from packnet_tf import probing
from packnet_tf.errors import UnsupportedLayerError

L = keras.layers


class Stateful(L.Layer):
    """Assigns to one variable always, to another in training."""

    def build(self, input_shape):
        add = {"shape": (), "initializer": "zeros", "trainable": False}
        self.calls = self.add_weight(**add, name="calls")
        self.steps = self.add_weight(**add, name="steps")
        self.still = self.add_weight(**add, name="still")

    def call(self, inputs, training=False):
        self.calls.assign_add(1.0)
        if training:
            self.steps.assign(self.still + 1.0)
        return inputs + self.steps


class Calls(L.Layer):
    """Calls a function that was given."""

    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self.function = function

    def call(self, inputs):
        return self.function(inputs)

    def compute_output_shape(self, input_shape):
        return input_shape


class MakesLayer(L.Layer):
    """Builds a sublayer when it computes as in training."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = L.Dense(3)

    def build(self, input_shape):
        pass

    def call(self, inputs, training=False):
        return self.inner(inputs) if training else inputs


def model_of(*layers, **kwargs):
    inputs = keras.Input((3,), name="x")
    x = inputs
    for layer in layers:
        x = layer(x, **kwargs)
    return keras.Model(inputs, x, name="model")


def assigned(model, training):
    seen = probing.observe(model, training)
    return [variable.name for variable in seen.assigned]


def test_observe_sees_what_is_assigned():
    model = model_of(Stateful(), L.BatchNormalization(), L.Dropout(0.5))
    assert assigned(model, False) == ["calls"]
    assert assigned(model, None) == ["calls"]
    assert sorted(assigned(model, True)) == [
        "calls",
        "moving_mean",
        "moving_variance",
        "seed_generator_state",
        "steps",
    ]


def test_observe_leaves_the_choice_to_a_layer_if_training_is_none():
    model = model_of(L.Dropout(0.5), training=True)
    assert assigned(model, None) == ["seed_generator_state"]
    assert assigned(model, False) == []
    model = model_of(L.BatchNormalization(), training=False)
    assert assigned(model, None) == []


def test_observe_changes_nothing():
    model = model_of(
        Stateful(), L.Dense(3), L.BatchNormalization(), L.Dropout(0.5)
    )
    before = [v.numpy().tobytes() for v in model.variables]
    for training in (True, False, None):
        probing.observe(model, training)
    assert [v.numpy().tobytes() for v in model.variables] == before


def test_observe_finds_nothing_in_layers_of_keras():
    model = model_of(
        L.Dense(3),
        L.Reshape((3, 1)),
        L.LSTM(3, return_sequences=True),
        L.Conv1D(2, 1),
        L.Flatten(),
        L.LayerNormalization(),
    )
    seen = probing.observe(model, None)
    for part in (
        seen.assigned,
        seen.bypassed,
        seen.unseen,
        seen.foreign,
        seen.created,
        seen.random,
        seen.opaque,
    ):
        assert part == []


def test_observe_finds_foreign_variables():
    raw = tf.Variable(tf.ones(3), name="raw")
    hidden = keras.Variable(np.ones(3, "float32"), name="hidden")
    model = model_of(Calls(lambda x: x * raw + hidden), L.Dense(3))
    assert probing.observe(model, None).foreign == ["hidden:0", "raw:0"]


def test_observe_finds_variables_read_behind_keras_back():
    dense = L.Dense(3)
    dense.build((None, 3))
    value = dense.kernel.value
    model = model_of(dense, Calls(lambda x: x @ value))
    seen = probing.observe(model, None)
    assert [v is dense.kernel for v in seen.bypassed] == [True]
    assert seen.foreign == []


def test_observe_finds_created_variables():
    model = model_of(MakesLayer())
    assert probing.observe(model, None).created == []
    created = probing.observe(model, True).created
    assert sorted(v.name for v in created) == ["bias", "kernel"]


def plain(x):
    return x * 2.0


def branch(x):
    place = keras.ops.cast(keras.ops.sum(x) > 0, "int32")
    x = keras.ops.switch(place, [tf.tanh, tf.nn.relu], x)
    return keras.ops.cond(place > 0, lambda: x + 1.0, lambda: x - 1.0)


def noise_in_a_loop(x):
    return tf.map_fn(lambda row: row + tf.random.normal((3,)), x)


counter = tf.Variable(0.0)
table = tf.Variable([0.0, 0.0])


def count(x):
    counter.assign_add(1.0)
    return x


def scatter(x):
    tf.raw_ops.ResourceScatterAdd(
        resource=table.handle, indices=[0], updates=[1.0]
    )
    return x


@pytest.mark.parametrize(
    ("function", "part"),
    [
        (lambda x: x + tf.random.normal(tf.shape(x)), "random"),
        (lambda x: x * tf.random.uniform(tf.shape(x)), "random"),
        (lambda x: tf.random.shuffle(x), "random"),
        (lambda x: x + tf.random.truncated_normal(tf.shape(x)), "random"),
        (lambda x: tf.nn.dropout(x, 0.5), "random"),
        (
            lambda x: (
                x + tf.cast(tf.random.categorical([[0.0, 0.0]], 3), x.dtype)
            ),
            "random",
        ),
        (noise_in_a_loop, "random"),
        (lambda x: tf.py_function(plain, [x], tf.float32), "opaque"),
        (lambda x: tf.numpy_function(plain, [x], tf.float32), "opaque"),
        (tf.function(plain), "unseen"),
        (count, "unseen"),
        (scatter, "unseen"),
    ],
)
def test_observe_names_operations_by_their_layer(function, part):
    model = model_of(L.Dense(3), Calls(function, name="suspect"))
    names = getattr(probing.observe(model, None), part)
    assert names
    # The body of a loop has names of its own.
    if function is not noise_in_a_loop:
        assert any("/suspect" in name for name in names)


def test_observe_allows_random_numbers_that_are_always_the_same():
    model = model_of(
        Calls(lambda x: x + tf.random.stateless_normal((3,), seed=(1, 2))),
        Calls(lambda x: x + keras.random.normal((3,), seed=1)),
    )
    seen = probing.observe(model, None)
    assert seen.random == []
    assert seen.assigned == []


def test_observe_takes_inputs_of_any_kind():
    tokens = keras.Input((4,), dtype="int32", name="tokens")
    words = keras.Input((), dtype="string", name="words")
    sparse = keras.Input((5,), sparse=True, name="sparse")
    outputs = [
        L.Embedding(5, 2)(tokens),
        L.StringLookup(vocabulary=["a"])(words),
        L.Dense(2)(sparse),
    ]
    model = keras.Model(
        {"tokens": tokens, "words": words, "sparse": sparse}, outputs
    )
    assert probing.observe(model, None).foreign == []


def test_observe_says_that_it_cannot_trace():
    def fail(x):
        raise RuntimeError("no such thing")

    model = model_of(Calls(plain, name="suspect"))
    model.get_layer("suspect").function = fail
    with pytest.raises(UnsupportedLayerError, match="no such thing") as info:
        probing.observe(model, None)
    assert "Received: model='model'" in str(info.value)


def test_difference_is_empty_for_copies():
    def make():
        return model_of(
            L.Dense(3, "relu"),
            Calls(lambda x: x * 3.0 + tf.constant([1.0, 2.0, 3.0])),
            Calls(branch),
            Calls(lambda x: tf.map_fn(tf.tanh, x)),
            Calls(lambda x: keras.ops.gelu(x) + keras.ops.softplus(x)),
            L.BatchNormalization(),
        )

    model, copy = make(), make()
    assert [v.name for v in model.variables] == [v.name for v in copy.variables]
    assert probing.difference(model, copy) == []
    seen = probing.observe(model, training=None)
    assert probing.difference(model, copy, seen) == []


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * 2.0,
        lambda x: x + 3.0,
        lambda x: tf.nn.relu(x * 3.0),
        lambda x: x * tf.constant([3.0, 3.0, 3.0]),
        lambda x: tf.cast(tf.cast(x * 3.0, "bfloat16"), "float32"),
        lambda x: x,
    ],
)
def test_difference_names_what_the_other_does_not_compute(function):
    one = model_of(L.Dense(3), Calls(lambda x: x * 3.0, name="scale"))
    other = model_of(L.Dense(3), Calls(function, name="scale"))
    missing = probing.difference(one, other) + probing.difference(other, one)
    seen = [probing.observe(model, training=None) for model in (one, other)]
    assert missing == probing.difference(
        one, other, seen[0]
    ) + probing.difference(other, one, seen[1])
    assert probing.difference(one, other, seen[1]) == []
    assert missing
    assert all("/scale" in name for name in missing)


def test_difference_counts():
    one = model_of(Calls(lambda x: tf.tanh(tf.tanh(x)), name="twice"))
    other = model_of(Calls(tf.tanh, name="once"))
    assert collections.Counter(
        name.rpartition("/")[2] for name in probing.difference(one, other)
    ) == {"Tanh_1": 1}
    assert probing.difference(other, one) == []
