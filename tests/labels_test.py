import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import all_values
from helpers import assert_same_values
from helpers import compile_model

import packnet_tf
from packnet_tf import labels
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import StageError

each_mode = pytest.mark.parametrize(
    "eager", [False, True], ids=["graph", "eager"]
)
each_action = pytest.mark.parametrize(
    "action", ["fit", "train_on_batch", "evaluate", "test_on_batch"]
)

MISFITS = {
    "more_columns": np.zeros((32, 3)),
    "a_list_of_two": [np.zeros(32), np.zeros(32)],
    "none": None,
}


def call(model, action, x, y, **kwargs):
    if action in ("fit", "evaluate"):
        kwargs = {"verbose": 0, "batch_size": 16, **kwargs}
    return getattr(model, action)(x, y, **kwargs)


def everything(model):
    """Returns the values of a model, and how often it has been trained."""
    return all_values(model), int(model.optimizer.iterations.numpy())


@each_mode
@each_action
@pytest.mark.parametrize(
    "misfit",
    [
        name
        if name == "a_list_of_two"
        else pytest.param(name, marks=pytest.mark.slow)
        for name in MISFITS
    ],
)
def test_labels_that_do_not_fit_change_nothing(
    misfit, action, eager, network, images
):
    x, y = images
    models = []
    for fails in (True, False):
        keras.utils.set_random_seed(3)
        model = packnet_tf.wrap(network(), task="one")
        compile_model(model, run_eagerly=eager)
        before, steps = everything(model)
        if fails:
            with pytest.raises(ArgumentError) as info:
                call(model, action, x, MISFITS[misfit])
            message = str(info.value)
            rows = 16 if action in ("fit", "evaluate") else 32
            received = message.split("Received: ")[-1]
            assert "task 'one'" in message
            assert "compile()" in message
            if misfit == "more_columns":
                assert f"labels of shape ({rows}, 3)" in received
            if eager or action in ("fit", "evaluate"):
                assert f"outputs of shape ({rows}, 4)" in received
            assert_same_values(before, all_values(model))
            assert everything(model)[1] == steps
        call(model, action, x, y)
        model.fit(x, y, batch_size=16, shuffle=False, verbose=0)
        models.append(model)
    first, second = models
    assert_same_values(all_values(first), all_values(second))


@each_mode
def test_evaluating_an_older_task_names_it(eager, packed, images, finish_task):
    x, y = images
    compile_model(packed, run_eagerly=eager)
    finish_task(packed, x, y)
    packed.add_task("two", units=3)
    before = all_values(packed)
    for action in ("evaluate", "test_on_batch"):
        with pytest.raises(ArgumentError, match="task 'one'"):
            call(packed, action, x, np.zeros((32, 3)), task="one")
        with pytest.raises(ArgumentError, match="task 'two'"):
            call(packed, action, x, np.zeros((32, 3)))
        call(packed, action, x, y, task="one")
        call(packed, action, x, y % 3)
    assert_same_values(before, all_values(packed))
    packed.verify()


@each_mode
@pytest.mark.parametrize(
    ("losses", "count"),
    [
        (1, 1),
        pytest.param(2, 1, marks=pytest.mark.slow),
        pytest.param(3, 3, marks=pytest.mark.slow),
        (2, 3),
    ],
    ids=str,
)
def test_a_wrong_number_of_outputs_is_told(losses, count, eager, network):
    model = packnet_tf.wrap(network(classes=None))
    inputs = keras.Input(model.backbone.output.shape[1:])
    outputs = [keras.layers.Dense(2)(inputs), keras.layers.Dense(3)(inputs)]
    model.add_task("pair", head=keras.Model(inputs, outputs))
    loss = "mse" if losses == 1 else ["mse"] * losses
    model.compile("sgd", loss, run_eagerly=eager)
    x = np.zeros((8, 8, 8, 1), "float32")
    y = [np.zeros((8, 2))] * count
    before = all_values(model)
    with pytest.raises(ArgumentError) as info:
        model.train_on_batch(x, y if count > 1 else y[0])
    assert "task 'pair'" in str(info.value)
    assert "2)" in str(info.value).split("outputs of shape")[-1]
    assert_same_values(before, all_values(model))
    model.compile("sgd", "mse", run_eagerly=eager)
    model.train_on_batch(x, [np.zeros((8, 2)), np.zeros((8, 3))])


class TakesNone(keras.metrics.Mean):
    """Fails on all it is given."""

    def update_state(self, *args, **kwargs):
        raise ValueError("no such shape")


@each_mode
def test_a_metric_that_fails_changes_nothing(eager, packed, images):
    packed.compile(
        "adam",
        "sparse_categorical_crossentropy",
        metrics=[TakesNone()],
        run_eagerly=eager,
    )
    before, steps = everything(packed)
    with pytest.raises(ArgumentError, match="no such shape"):
        packed.train_on_batch(*images)
    assert_same_values(before, all_values(packed))
    assert everything(packed)[1] == steps


def test_inputs_that_do_not_fit_change_nothing(packed, images):
    x, y = images
    compile_model(packed, run_eagerly=True)
    before = all_values(packed)
    with pytest.raises(ValueError, match="shape"):
        packed.train_on_batch(x[:, :1], y)
    assert_same_values(before, all_values(packed))


@pytest.mark.parametrize(
    "mode",
    [pytest.param("graph", marks=pytest.mark.slow), "eager", "five_steps"],
)
def test_labels_out_of_range_harm_no_frozen_task(
    mode, packed, images, finish_task
):
    # The loss fails while the graph runs, and weight decay waits for nothing.
    x, y = images
    finish_task(packed, x, y)
    before = packed(x).numpy()
    packed.add_task("two", units=4)
    compile_model(
        packed,
        keras.optimizers.AdamW(0.1, weight_decay=0.5),
        run_eagerly=mode == "eager",
        steps_per_execution=5 if mode == "five_steps" else 1,
    )
    kept = [e.variable.numpy() for e in packed.summary_protection(len)]
    for _ in range(5):
        with pytest.raises((ArgumentError, tf.errors.InvalidArgumentError)):
            packed.fit(x, y + 7, batch_size=16, verbose=0)
    packed.verify()
    np.testing.assert_array_equal(before, packed(x, task="one"))
    for old, entry in zip(kept, packed.summary_protection(len)):
        if entry.owner is not None:
            np.testing.assert_array_equal(old, entry.variable.numpy())


def test_a_loop_of_ones_own_that_fails_harms_no_frozen_task(
    packed, images, finish_task
):
    x, y = images
    finish_task(packed, x, y)
    before = packed(x).numpy()
    packed.add_task("two", units=4)
    compile_model(packed, keras.optimizers.AdamW(0.1, weight_decay=0.5))
    loss_fn = keras.losses.SparseCategoricalCrossentropy()

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = loss_fn(y, packed(x, training=True))
        variables = packed.trainable_variables
        packed.apply_gradients(zip(tape.gradient(loss, variables), variables))

    for _ in range(5):
        with pytest.raises(tf.errors.InvalidArgumentError):
            step(x, y + 7)
    packed.verify()
    np.testing.assert_array_equal(before, packed(x, task="one"))


class FailsMidway(keras.optimizers.SGD):
    """Decays all weights, then fails on the second."""

    def update_step(self, gradient, variable, learning_rate):
        if self.armed and variable is not self.first:
            raise RuntimeError("midway")
        super().update_step(gradient, variable, learning_rate)


def test_an_optimizer_that_fails_midway_changes_no_weight(
    packed, images, finish_task
):
    finish_task(packed, *images)
    packed.add_task("two", units=4)
    optimizer = FailsMidway(0.1, momentum=0.9, weight_decay=0.5)
    compile_model(packed, optimizer, run_eagerly=True)
    optimizer.armed, optimizer.first = False, None
    packed.train_on_batch(*images)
    optimizer.armed = True
    optimizer.first = packed.trainable_variables[0].value
    before = all_values(packed)
    with pytest.raises(RuntimeError, match="midway"):
        packed.train_on_batch(*images)
    assert_same_values(before, all_values(packed))
    packed.verify()


class Counter(keras.layers.Layer):
    """Counts its calls in training, whatever is frozen, and then checks."""

    def build(self, input_shape):
        self.count = self.add_weight(
            shape=(), initializer="zeros", trainable=False, name="count"
        )

    def call(self, inputs, training=False):
        if training:
            self.count.assign_add(1.0)
        checked = tf.debugging.check_numerics(inputs, "not finite")
        with tf.control_dependencies([checked]):
            return inputs + self.count


packnet_tf.register_layer(Counter, packed=())


@each_mode
def test_what_a_layer_assigns_is_put_back_when_a_step_fails(eager, images):
    x, y = images
    layers = keras.layers
    network = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Flatten(),
            layers.Dense(6),
            Counter(),
            layers.Dense(4, "softmax"),
        ]
    )
    packed = packnet_tf.wrap(network, task="one")
    compile_model(packed)
    packed.fit(x, y, verbose=0)
    packed.prune(0.5)
    packed.freeze_task()
    before = packed(x).numpy()
    packed.add_task("two", units=4)
    compile_model(packed, run_eagerly=eager)
    with pytest.raises(tf.errors.InvalidArgumentError, match="not finite"):
        packed.fit(x * np.inf, y, verbose=0)
    packed.verify()
    np.testing.assert_array_equal(before, packed(x, task="one"))


def test_explained_leaves_other_errors_as_they_are():
    with pytest.raises(StageError, match="as it was"):
        with labels.explained("one", None, None):
            raise StageError("as it was")
    with pytest.raises(ZeroDivisionError):
        with labels.explained("one", None, None):
            _ = 1 / 0


def test_explained_describes_any_structure():
    y = {"a": tf.zeros((2, 3)), "b": None, "c": 7}
    with pytest.raises(ArgumentError) as info:
        with labels.explained(None, y, [tf.zeros(())]):
            raise KeyError("a")
    message = str(info.value)
    assert message.endswith(
        "outputs of shape [()], labels of shape "
        "{'a': (2, 3), 'b': None, 'c': 'int'}"
    )
    assert "backbone without tasks" in message
    assert isinstance(info.value.__cause__, KeyError)
