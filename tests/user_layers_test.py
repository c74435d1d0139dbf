"""Layers and models of a user's own through the life of a packed model."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import packnet_tf
from packnet_tf import inventory

L = keras.layers
serializable = keras.saving.register_keras_serializable("user_layers_test")


@serializable
class Centered(L.Layer):
    """Keeps moving statistics of its own, and draws random numbers."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dropout = L.Dropout(0.5)

    def build(self, input_shape):
        size = input_shape[-1]
        self.kernel = self.add_weight(shape=(size, size), name="kernel")
        self.shift = self.add_weight(
            shape=(size,), initializer="zeros", name="shift"
        )
        self.average = self.add_weight(
            shape=(size,), initializer="zeros", trainable=False, name="average"
        )

    def call(self, inputs, training=False):
        if training:
            mean = keras.ops.mean(inputs, axis=0)
            self.average.assign(0.5 * self.average + 0.5 * mean)
        x = (inputs - self.average) @ self.kernel + self.shift
        return self.dropout(x, training=training)


@serializable
class Rescaling(L.Layer):
    """Rescales its own kernel in each training step."""

    def build(self, input_shape):
        size = input_shape[-1]
        self.kernel = self.add_weight(shape=(size, size), name="kernel")

    def call(self, inputs, training=False):
        if training:
            norm = keras.ops.sqrt(keras.ops.sum(self.kernel**2))
            self.kernel.assign(self.kernel / norm)
        return inputs @ self.kernel


@serializable
class RescalingAnother(L.Layer):
    """Has no variable of its own, and rescales that of a sublayer."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = L.Dense(6)

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, inputs, training=False):
        if training:
            self.dense.kernel.assign(self.dense.kernel * 0.9)
            self.dense.bias.assign(self.dense.bias + 0.1)
        return self.dense(inputs)


@serializable
class Block(L.Layer):
    """A convolution, normalization and a shortcut."""

    def __init__(self, filters=3, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.conv = L.Conv2D(filters, 3, padding="same")
        self.steps = [L.BatchNormalization(momentum=0.5), L.ReLU()]
        self.drop = L.Dropout(0.3)

    def build(self, input_shape):
        self.conv.build(input_shape)
        self.steps[0].build((*input_shape[:-1], self.filters))

    def call(self, inputs, training=False):
        x = self.conv(inputs)
        for step in self.steps:
            x = step(x, training=training)
        return self.drop(inputs + x, training=training)

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}


@serializable
class BuiltByCall(L.Layer):
    """Leaves it to its first call to build what is inside."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = L.Dense(6)
        self.norm = L.BatchNormalization(momentum=0.5)

    def build(self, input_shape):
        self.scale = self.add_weight(
            shape=(input_shape[-1],), initializer="ones", name="scale"
        )

    def call(self, inputs, training=False):
        return self.norm(self.dense(inputs * self.scale), training=training)


@serializable
class Everything(keras.Model):
    """A subclassed model with all kinds of layers inside."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.stem = L.Conv2D(3, 3)
        self.blocks = [Block(), Block()]
        self.pool = L.GlobalAveragePooling2D()
        self.tail = keras.Sequential([L.Dense(6, "relu"), Centered()])
        self.attention = L.MultiHeadAttention(2, 3)

    def call(self, inputs, training=False):
        x = self.stem(inputs)
        for block in self.blocks:
            x = block(x, training=training)
        x = self.tail(self.pool(x), training=training)
        series = x[:, None, :]
        return x + self.attention(series, series, training=training)[:, 0]


@serializable
class Doubled(keras.Model):
    """A Functional model with a call of its own."""

    def __init__(self, size=6, **kwargs):
        inputs = keras.Input((size,))
        x = L.Dense(size, "relu")(inputs)
        x = L.BatchNormalization(momentum=0.5)(x)
        super().__init__(inputs, L.Dense(size)(x), **kwargs)
        self.size = size

    def call(self, inputs, training=None, mask=None):
        return 2.0 * super().call(inputs, training=training)

    def get_config(self):
        return {"name": self.name, "size": self.size}


def over_time():
    inputs = keras.Input((4,))
    x = L.Dense(5, "relu")(inputs)
    x = L.BatchNormalization(momentum=0.5)(x)
    inner = keras.Model(inputs, L.Dense(3)(x), name="each_step")
    return [L.TimeDistributed(inner, name="over_time"), L.Flatten()]


FLAT, IMAGE, SERIES = (6,), (6, 6, 3), (3, 4)
CASES = {
    "centered": (lambda: [Centered()], FLAT),
    "rescaling": (lambda: [Rescaling(), L.Dense(4, name="dense")], FLAT),
    "rescaling_another": (
        lambda: [RescalingAnother(), L.Dense(4, name="dense")],
        FLAT,
    ),
    "built_by_call": (lambda: [BuiltByCall(), L.Dense(4)], FLAT),
    "block": (lambda: [Block(), Block(), L.Flatten()], IMAGE),
    "everything": (lambda: [Everything()], IMAGE),
    "own_call": (lambda: [Doubled()], FLAT),
    "time_distributed": (over_time, SERIES),
    "two_precisions": (
        lambda: [L.Dense(6), Centered(dtype="mixed_bfloat16"), L.Dense(4)],
        FLAT,
    ),
}


def make(case):
    """Returns a network with random weights, a batch and its labels."""
    layers, shape = CASES[case]
    inputs = keras.Input(shape, name="x")
    x = inputs
    for layer in layers():
        x = layer(x)
    network = keras.Model(inputs, x, name="network")
    generator = np.random.default_rng(3)
    for variable in network.trainable_variables:
        variable.assign(generator.normal(size=variable.shape) / 2)
    batch = generator.normal(size=(6, *shape)).astype("float32")
    return network, batch, np.arange(6) % 3


def begin(packed, task):
    packed.add_task(task, units=3)
    packed.compile(
        keras.optimizers.SGD(0.05, momentum=0.9, weight_decay=0.01),
        "sparse_categorical_crossentropy",
        run_eagerly=True,
    )


def computed(model, x, **kwargs):
    return keras.ops.convert_to_numpy(model(x, **kwargs)).tobytes()


def frozen_values(packed):
    """Returns what is neither packed, nor per task, nor random state."""
    return {
        entry.key: entry.variable.numpy().tobytes()
        for entry in packed.summary_protection(print_fn=len)
        if entry.protection == inventory.FROZEN
    }


def train_by_fit(packed, x, y):
    packed.fit(x, y, batch_size=3, verbose=0)


def train_by_batches(packed, x, y):
    for _ in range(2):
        packed.train_on_batch(x, y)


def train_by_hand(packed, x, y):
    for _ in range(2):
        with tf.GradientTape() as tape:
            outputs = packed(x, training=True)
            losses = keras.losses.sparse_categorical_crossentropy(y, outputs)
            loss = tf.reduce_mean(losses)
        variables = packed.trainable_variables
        gradients = tape.gradient(loss, variables)
        packed.apply_gradients(zip(gradients, variables))


def train_in_graph(packed, x, y):
    packed.run_eagerly = False
    train_by_fit(packed, x, y)


TRAININGS = {
    "fit": train_by_fit,
    "train_on_batch": train_by_batches,
    "by_hand": train_by_hand,
}


def live(packed, x, y, train=train_by_fit):
    """Leads a model through three tasks; older outputs stay the same."""
    frozen = {}

    def check():
        for name, value in frozen.items():
            assert computed(packed, x, task=name) == value, name

    for task in ("one", "two", "three"):
        begin(packed, task)
        check()
        train(packed, x, y)
        packed.prune(0.5)
        train(packed, x, y)
        check()
        packed.freeze_task()
        check()
        frozen[task] = computed(packed, x, task=task)
    packed.verify()
    return frozen


@pytest.mark.parametrize(
    ("case", "policy"),
    [
        *((case, "float32") for case in CASES if case != "two_precisions"),
        ("centered", "mixed_bfloat16"),
        ("block", "mixed_bfloat16"),
    ],
)
def test_three_tasks_stay_apart(case, policy, tmp_path):
    keras.config.set_dtype_policy(policy)
    try:
        network, x, y = make(case)
        packed = packnet_tf.wrap(network, head=None)
        np.testing.assert_array_equal(network(x), packed(x))
        frozen = live(packed, x, y)
        packed.save(tmp_path / "model.keras")
        loaded = packnet_tf.load_model(tmp_path / "model.keras")
        assert loaded.verify() == packed.verify()
        for task, value in frozen.items():
            assert computed(loaded, x, task=task) == value
            assert computed(packed.unwrap(task), x) == value
            assert computed(loaded.unwrap(task), x) == value
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("case", CASES)
def test_three_tasks_stay_apart_with_biases_of_their_own(case):
    network, x, y = make(case)
    live(packnet_tf.wrap(network, head=None, biases="per_task"), x, y)


def test_layers_of_different_precision_stay_apart():
    network, x, y = make("two_precisions")
    packed = packnet_tf.wrap(network, head=None)
    np.testing.assert_array_equal(network(x), packed(x))
    frozen = live(packed, x, y)
    for task, value in frozen.items():
        assert computed(packed.unwrap(task), x) == value


@pytest.mark.parametrize("training", TRAININGS)
@pytest.mark.parametrize("case", ["centered", "rescaling", "rescaling_another"])
def test_no_training_moves_frozen_state(case, training):
    network, x, y = make(case)
    packed = packnet_tf.wrap(network, head=None)
    begin(packed, "one")
    at_first = frozen_values(packed)
    TRAININGS[training](packed, x, y)
    packed.prune(0.5)
    TRAININGS[training](packed, x, y)
    packed.freeze_task()
    before = frozen_values(packed)
    assert before != at_first
    expected = computed(packed, x)
    begin(packed, "two")
    TRAININGS[training](packed, x, y)
    assert frozen_values(packed) == before
    assert computed(packed, x, task="one") == expected
    packed.freeze_task()


@pytest.mark.parametrize("case", ["centered", "rescaling_another"])
def test_no_training_in_a_graph_moves_frozen_state(case):
    network, x, y = make(case)
    packed = packnet_tf.wrap(network, head=None)
    live(packed, x, y, train_in_graph)


def test_statistics_of_a_layer_move_in_task_1_only():
    network, x, y = make("centered")
    packed = packnet_tf.wrap(network, head=None)
    average = packed.backbone.layers[-1].layer.average
    begin(packed, "one")
    train_by_fit(packed, x, y)
    assert np.any(average.numpy() != 0.0)
    packed.prune(0.5)
    packed.freeze_task()
    before = average.numpy()
    begin(packed, "two")
    train_by_fit(packed, x + 5.0, y)
    np.testing.assert_array_equal(average.numpy(), before)


def test_dropout_inside_of_a_layer_draws_anew_after_task_1():
    network, x, y = make("centered")
    packed = packnet_tf.wrap(network, head=None)
    begin(packed, "one")
    packed.prune(0.5)
    packed.freeze_task()
    begin(packed, "two")
    packed.fit(x, y, verbose=0)
    with_dropout = {computed(packed.backbone, x, training=True) for _ in "abc"}
    assert len(with_dropout) == 3


@pytest.mark.parametrize(
    ("case", "key"),
    [
        ("rescaling", "rescaling/kernel"),
        ("rescaling_another", "rescaling_another/dense/kernel"),
    ],
)
def test_a_weight_that_its_layer_rescales_is_left_out(case, key):
    network, _, _ = make(case)
    packed = packnet_tf.wrap(network, head=None)
    entries = {e.key: e for e in packed.summary_protection(print_fn=len)}
    assert entries[key].protection == inventory.FROZEN
    assert entries[key].reason == "its layer assigns to it while it trains"
    assert entries["dense/kernel"].protection == inventory.PACKED


def test_protection_of_a_composite_follows_its_sublayers():
    network, _, _ = make("everything")
    packed = packnet_tf.wrap(network, head=None)
    how = {
        entry.key.partition("/")[2]: entry.protection
        for entry in packed.summary_protection(print_fn=len)
    }
    assert how["blocks/1/conv/kernel"] == inventory.PACKED
    assert how["blocks/1/conv/bias"] == inventory.FROZEN
    assert how["blocks/1/steps/0/moving_mean"] == inventory.FROZEN
    assert how["blocks/1/drop/seed_generator_state"] == inventory.SEED
    assert how["tail/centered/average"] == inventory.FROZEN
    assert how["attention/query_dense/kernel"] == inventory.PACKED
    assert how["attention/query_dense/bias"] == inventory.FROZEN


def test_a_subclassed_model_is_wrapped_on_its_own(tmp_path):
    model = Everything(name="alone")
    _, x, y = make("everything")
    model(x)
    packed = packnet_tf.wrap(model, head=None)
    np.testing.assert_array_equal(model(x), packed(x))
    frozen = live(packed, x, y)
    packed.export_task("one", tmp_path / "one.keras")
    plain = keras.saving.load_model(tmp_path / "one.keras")
    assert computed(plain, x) == frozen["one"]
