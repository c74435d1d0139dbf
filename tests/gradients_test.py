import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import all_values
from helpers import assert_same_values
from helpers import compile_model
from helpers import two_devices

import packnet_tf
from packnet_tf import gradients
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import StageError

L = keras.layers


class Batches(keras.utils.PyDataset):
    """Arrays in batches."""

    def __init__(self, arrays, size=32, endless=False):
        super().__init__()
        self.arrays = arrays
        self.size = size
        self.endless = endless

    @property
    def num_batches(self):
        return None if self.endless else -(-len(self.arrays[0]) // self.size)

    def __getitem__(self, index):
        rows = slice(index * self.size, (index + 1) * self.size)
        return tuple(array[rows] for array in self.arrays)


class Counting(L.Layer):
    """Has state that training changes, and draws random numbers then."""

    def build(self, shape):
        self.count = self.add_weight(name="count", trainable=False)
        self.generator = keras.random.SeedGenerator(3)

    def call(self, inputs, training=False):
        if not training:
            return inputs
        self.count.assign_add(1.0)
        return inputs + keras.random.normal((1,), seed=self.generator)


def packed_variables(model):
    return [
        entry.variable
        for entry in model.summary_protection(print_fn=len)
        if entry.owner is not None
    ]


def measure(model, data, kind="rms"):
    variables = packed_variables(model)
    before = all_values(model)
    found = gradients.measure(model, model.task, variables, data, kind)
    assert_same_values(before, all_values(model))
    assert [array.shape for array in found] == [v.shape for v in variables]
    return found


def oracle(model, batches, kind="rms", scale=1.0):
    """Computes the gradients one batch at a time, in plain Keras."""
    values = [variable.value for variable in packed_variables(model)]

    # Eager execution may round differently.
    @tf.function(reduce_retracing=True)
    def compute(batch):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
        with tf.GradientTape() as tape:
            loss = model.compute_loss(
                x=x,
                y=y,
                y_pred=model(x, training=False),
                sample_weight=sample_weight,
                training=False,
            )
            loss = loss * scale
        return tape.gradient(loss, values)

    seen = [
        [np.float64(tf.convert_to_tensor(part)) / scale for part in found]
        for found in map(compute, batches)
    ]
    if kind == "mean":
        return [np.mean(parts, axis=0) for parts in zip(*seen)]
    return [np.sqrt(np.mean(np.square(parts), axis=0)) for parts in zip(*seen)]


def assert_equal(found, expected):
    for one, other in zip(found, expected):
        np.testing.assert_array_equal(one, other.astype(one.dtype))
        assert np.any(one)


@pytest.fixture
def many():
    """80 images: two full batches of 32 and a smaller one."""
    generator = np.random.default_rng(1)
    x = generator.normal(size=(80, 8, 8, 1)).astype("float32")
    return x, np.arange(80) % 4, generator.uniform(size=80).astype("float32")


def split(arrays, size=32):
    return list(Batches(arrays, size)[i] for i in range(3))


@pytest.mark.parametrize("kind", ["mean", "rms"])
@pytest.mark.parametrize("weighted", [False, True])
def test_measure_averages_over_batches(kind, weighted, packed, many):
    data = many if weighted else many[:2]
    found = measure(packed, data, kind)
    assert all(array.dtype == np.float32 for array in found)
    assert_equal(found, oracle(packed, split(data), kind))


def test_measure_takes_every_kind_of_data(packed, many):
    x, y, _ = many
    expected = oracle(packed, split((x, y)))
    pipeline = tf.data.Dataset.from_tensor_slices((x, y)).batch(32)
    for data in (
        (x, y),
        (x, y, None),
        (tf.constant(x), tf.constant(y)),
        pipeline,
        pipeline.repeat().take(3),
        Batches((x, y)),
    ):
        assert_equal(measure(packed, data), expected)


def test_measure_computes_as_at_inference(packed, many):
    packed.fit(*many[:2], verbose=0)
    assert_equal(measure(packed, many[:2]), measure(packed, many[:2]))
    assert_equal(measure(packed, many), oracle(packed, split(many)))


def test_measure_leaves_the_metrics_of_an_epoch_alone(packed, many):
    class Measuring(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 1:
                measure(self.model, many)

    x, y, _ = many
    state = [*packed.variables]
    values = all_values(packed)

    def fit(callbacks):
        keras.utils.set_random_seed(1)
        for variable, value in zip(state, values):
            variable.assign(value)
        compile_model(packed)
        history = packed.fit(x, y, verbose=0, epochs=2, callbacks=callbacks)
        return history.history

    assert fit([]) == fit([Measuring()])


def test_measure_includes_regularization(images):
    network = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            L.Conv2D(4, 3, kernel_regularizer="l2"),
            L.Flatten(),
            L.Dense(6, activity_regularizer="l1"),
            L.Dense(4, "softmax", kernel_regularizer="l2"),
        ]
    )
    model = packnet_tf.wrap(network, task="one")
    compile_model(model)
    found = measure(model, images)
    assert_equal(found, oracle(model, [images]))
    model.compile("sgd", loss=None)
    only = measure(model, (images[0], images[1]))
    assert not np.array_equal(found[0], only[0])


def test_measure_computes_the_newest_task(packed, many, finish_task):
    x, y, _ = many
    finish_task(packed, x, y)
    packed.add_task("two", units=4)
    packed.fit(x, y, verbose=0)
    found = measure(packed, (x, y))
    assert_equal(found, oracle(packed, split((x, y))))
    packed.set_task("one")
    variables = packed_variables(packed)
    again = gradients.measure(packed, "two", variables, (x, y), "rms")
    assert_equal(again, found)


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_measure_adds_up_the_rows_of_an_embedding(run_eagerly):
    model = packnet_tf.wrap(
        keras.Sequential(
            [
                keras.Input((7,), dtype="int32"),
                L.Embedding(30, 5),
                L.Flatten(),
                L.Dense(4, "softmax"),
            ]
        ),
        task="one",
    )
    compile_model(model, run_eagerly=run_eagerly)
    x = np.random.default_rng(0).integers(0, 20, (32, 7))
    y = np.arange(32) % 4
    (found,) = measure(model, (x, y))
    (expected,) = oracle(model, [(x, y)])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.any(found[:20])
    assert not np.any(found[20:])


def test_measure_gives_zeros_where_the_loss_depends_on_nothing(images):
    inputs = keras.Input((8, 8, 1))
    flat = L.Flatten()(inputs)
    outputs = [L.Dense(3, "relu")(flat), L.Dense(3, "relu")(flat)]
    model = packnet_tf.wrap(keras.Model(inputs, outputs))

    class First(L.Layer):
        def call(self, inputs):
            return inputs[0]

    features = [keras.Input((3,)), keras.Input((3,))]
    logits = L.Dense(4, "softmax")(First()(features))
    model.add_task("one", head=keras.Model(features, logits))
    compile_model(model)
    used, unused = measure(model, images)
    assert used.any()
    assert not unused.any()


def test_measure_takes_several_losses(images):
    inputs = keras.Input((8, 8, 1))
    hidden = L.Dense(5, "relu")(L.Flatten()(inputs))
    model = packnet_tf.wrap(keras.Model(inputs, hidden))
    features = keras.Input((5,))
    outputs = {
        "kind": L.Dense(4, "softmax", name="kind")(features),
        "size": L.Dense(1, name="size")(features),
    }
    model.add_task("one", head=keras.Model(features, outputs))
    model.compile(
        "sgd", {"kind": "sparse_categorical_crossentropy", "size": "mse"}
    )
    x, y = images
    data = x, {"kind": y, "size": np.ones((32, 1), "float32")}
    model.fit(*data, verbose=0)
    assert_equal(measure(model, data), oracle(model, [data]))


def test_measure_changes_no_state_of_layers_of_ones_own(network, images):
    model = packnet_tf.wrap(network(classes=None))
    model.add_task("one", head=keras.Sequential([Counting(), L.Dense(4)]))
    model.compile(
        "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    assert all(array.any() for array in measure(model, images))


@pytest.mark.parametrize(
    "policy", ["mixed_bfloat16", "mixed_float16", "float64"]
)
def test_measure_takes_every_precision(policy, network, many):
    keras.config.set_dtype_policy(policy)
    try:
        model = packnet_tf.wrap(network(), task="one")
    finally:
        keras.config.set_dtype_policy("float32")
    compile_model(model)
    x, y, _ = many
    scale = 2.0**15 if policy == "mixed_float16" else 1.0
    found = measure(model, (x, y))
    assert_equal(found, oracle(model, split((x, y)), scale=scale))


def test_measure_scales_small_gradients_of_float16(images):
    # Unscaled, what comes back from so small a loss is 0 in float16.
    def make(policy):
        keras.utils.set_random_seed(1)
        model = packnet_tf.wrap(
            keras.Sequential(
                [
                    keras.Input((8, 8, 1)),
                    L.Flatten(),
                    L.Dense(6, "tanh", dtype=policy),
                    L.Dense(4, dtype=policy),
                ]
            ),
            task="one",
        )
        model.compile(
            "sgd",
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            loss_weights=1e-7,
        )
        return model

    (half,) = measure(make("mixed_float16"), images)
    (full,) = measure(make("float32"), images)
    assert half.all()
    np.testing.assert_allclose(half, full, rtol=0.02, atol=0.02 * full.max())


def test_measure_scales_less_where_float16_would_overflow(images):
    model = packnet_tf.wrap(
        keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                L.Flatten(),
                L.Dense(6, "tanh", dtype="mixed_float16"),
                L.Dense(4, "softmax"),
            ]
        ),
        task="one",
    )
    model.compile("sgd", "sparse_categorical_crossentropy", loss_weights=1000.0)
    (found,) = measure(model, images)
    assert np.isfinite(found).all()
    assert found.any()


@pytest.mark.parametrize("within", [False, True])
def test_measure_under_a_strategy(within, network, many):
    x, y, _ = many
    strategy = two_devices()
    with strategy.scope():
        model = packnet_tf.wrap(network(), task="one")
        compile_model(model)
    model.fit(x, y, batch_size=16, verbose=0)
    expected = oracle(model, split((x, y)))
    if within:
        with strategy.scope():
            assert_equal(measure(model, (x, y)), expected)
    else:
        assert_equal(measure(model, (x, y)), expected)


def test_measure_names_the_batch_that_is_not_finite(packed, many):
    x, y, _ = many
    x[40] = np.inf
    with pytest.raises(ArgumentError, match=r"Received: .* in batch 1"):
        measure(packed, (x, y))


BAD = {
    "nothing": (lambda x, y: None, "Received: data=None"),
    "x_alone": (lambda x, y: x, "data of type ndarray"),
    "list": (lambda x, y: [x, y], "data of type list"),
    "one": (lambda x, y: (x,), "data of type tuple"),
    "four": (lambda x, y: (x, y, y, y), "data of type tuple"),
    "lengths": (lambda x, y: (x, y[:8]), r"lengths \[32, 8\]"),
    "scalars": (lambda x, y: (1.0, 2.0), r"lengths \[None\]"),
    "generator": (lambda x, y: iter([(x, y)]), "data of type list_iterator"),
    "no_batch": (lambda x, y: (x[:0], y[:0]), "without any"),
    "endless": (
        lambda x, y: (
            tf.data.Dataset.from_tensor_slices((x, y)).batch(8).repeat()
        ),
        "endless data",
    ),
    "endless_batches": (
        lambda x, y: Batches((x, y), endless=True),
        "endless data of type Batches",
    ),
    "no_labels": (
        lambda x, y: tf.data.Dataset.from_tensor_slices(x).batch(8),
        "batches of x alone",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_measure_refuses_other_data(case, packed, images):
    make, match = BAD[case]
    before = all_values(packed)
    with pytest.raises(ArgumentError, match=match) as caught:
        measure(packed, make(*images))
    assert "Received:" in str(caught.value)
    assert_same_values(before, all_values(packed))


def test_measure_asks_for_compiling(network, images):
    model = packnet_tf.wrap(network(), task="one")
    with pytest.raises(StageError, match="Call `compile"):
        measure(model, images)
    model.compile("sgd", loss=None)
    with pytest.raises(StageError, match="Received: loss=None"):
        measure(model, images)
