"""Every way to train, on one optimizer: options, precision, execution."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import compile_model
from matrix import BATCH
from matrix import Outputs
from matrix import batches
from matrix import dtype_policy
from matrix import fit
from matrix import learn_task
from matrix import make_data
from matrix import make_network
from matrix import run_cell

import packnet_tf
from packnet_tf.errors import FingerprintError

optimizers = keras.optimizers


def adamw(**kwargs):
    """Makes an optimizer that moves weights whose gradient is zero."""
    return optimizers.AdamW(0.02, weight_decay=0.1, **kwargs)


OPTIONS = {
    "ema": {"use_ema": True, "ema_momentum": 0.5},
    "ema_overwriting": {
        "use_ema": True,
        "ema_momentum": 0.5,
        "ema_overwrite_frequency": 2,
    },
    "clipvalue": {"clipvalue": 0.01},
    "clipnorm": {"clipnorm": 0.01},
    "global_clipnorm": {"global_clipnorm": 0.01},
    "accumulation": {"gradient_accumulation_steps": 2},
    "loss_scale_factor": {"loss_scale_factor": 8.0},
    "ema_and_accumulation": {
        "use_ema": True,
        "ema_momentum": 0.5,
        "ema_overwrite_frequency": 1,
        "gradient_accumulation_steps": 2,
    },
}


# Others in the list do what they do, and more.
CONTAINED = (
    "ema",
    "ema_overwriting",
    "clipvalue",
    "clipnorm",
    "accumulation",
    "loss_scale_factor",
)


@pytest.mark.parametrize(
    "option",
    [
        pytest.param(name, marks=pytest.mark.slow)
        if name in CONTAINED
        else name
        for name in OPTIONS
    ],
)
def test_option_of_the_optimizer(option, tmp_path):
    run_cell(tmp_path, lambda: adamw(**OPTIONS[option]))


def test_loss_scale_around_averages(tmp_path):
    run_cell(
        tmp_path,
        lambda: optimizers.LossScaleOptimizer(
            adamw(use_ema=True, ema_overwrite_frequency=2), initial_scale=4.0
        ),
        skips=True,
    )


SCHEDULES = {
    "cosine": lambda: optimizers.schedules.CosineDecay(0.05, 10),
    "pieces": lambda: optimizers.schedules.PiecewiseConstantDecay(
        [1, 3], [0.1, 0.05, 0.01]
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_learning_rate_schedule(schedule, tmp_path):
    run_cell(
        tmp_path,
        lambda: optimizers.SGD(
            SCHEDULES[schedule](), momentum=0.9, weight_decay=0.1
        ),
    )


@pytest.mark.parametrize(
    "conv",
    [
        {"kernel_constraint": "unit_norm", "bias_constraint": "non_neg"},
        pytest.param(
            {"kernel_constraint": keras.constraints.MaxNorm(0.1)},
            marks=pytest.mark.slow,
        ),
        {"kernel_regularizer": "l1", "activity_regularizer": "l2"},
    ],
    ids=["unit_norm", "max_norm", "l1_and_activity"],
)
def test_constraint_or_regularizer(conv, tmp_path):
    run_cell(
        tmp_path,
        lambda: optimizers.SGD(0.05, momentum=0.9, weight_decay=0.1),
        network=lambda: make_network(**conv),
    )


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy, tmp_path):
    with dtype_policy(policy):
        # Keras puts a `LossScaleOptimizer` around it in float16.
        run_cell(tmp_path, adamw, skips=policy == "mixed_float16")


@pytest.mark.slow
def test_double_precision(tmp_path):
    with dtype_policy("float64"):
        run_cell(tmp_path, adamw)


EXECUTION = {
    "jit_compile": {"jit_compile": True},
    "run_eagerly": {"run_eagerly": True},
    "five_steps": {"steps_per_execution": 5},
}


@pytest.mark.parametrize("execution", EXECUTION)
def test_execution(execution, tmp_path):
    run_cell(tmp_path, adamw, **EXECUTION[execution])


def train_on_batches(model, x, y):
    """Calls `train_on_batch`, the last batch a smaller one."""
    for first in range(0, len(x), BATCH):
        model.train_on_batch(x[first : first + BATCH], y[first : first + BATCH])


def fit_with_sample_weights(model, x, y):
    """Gives each sample a weight, zeros among them."""
    weights = np.linspace(0.0, 2.0, len(x))
    model.fit(x, y, BATCH, sample_weight=weights, verbose=0)


def fit_with_class_weights(model, x, y):
    """Gives each class a weight."""
    weights = {0: 0.0, 1: 1.0, 2: 2.0, 3: 0.5}
    model.fit(x, y, BATCH, class_weight=weights, verbose=0)


def fit_with_validation(model, x, y):
    """Validates after each epoch."""
    model.fit(x, y, BATCH, validation_data=(x, y), verbose=0)


def fit_a_generator(model, x, y):
    """Trains on what a Python generator yields."""

    def generate():
        for first in range(0, len(x), BATCH):
            yield x[first : first + BATCH], y[first : first + BATCH]

    model.fit(generate(), steps_per_epoch=3, shuffle=False, verbose=0)


def make_step(model):
    """Makes a step of a training loop of one's own."""
    loss_fn = keras.losses.SparseCategoricalCrossentropy()

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = loss_fn(y, model(x, training=True))
            loss = model.optimizer.scale_loss(loss)
        variables = model.trainable_variables
        model.apply_gradients(zip(tape.gradient(loss, variables), variables))

    return step


def loop_eagerly(model, x, y):
    """Trains in a loop of one's own."""
    step = make_step(model)
    for batch in batches(x, y):
        step(*batch)


class LoopInAGraph:
    """Trains in a loop of one's own, compiled anew for each task."""

    __name__ = "loop_in_a_graph"

    def __init__(self):
        self.task = None

    def __call__(self, model, x, y):
        if self.task != model.task:
            self.task = model.task
            self.step = tf.function(make_step(model), reduce_retracing=True)
        for batch in batches(x, y):
            self.step(*batch)


WAYS = (
    train_on_batches,
    fit_with_sample_weights,
    pytest.param(fit_with_class_weights, marks=pytest.mark.slow),
    pytest.param(fit_with_validation, marks=pytest.mark.slow),
    pytest.param(fit_a_generator, marks=pytest.mark.slow),
    loop_eagerly,
    LoopInAGraph(),
)


@pytest.mark.parametrize("train", WAYS, ids=lambda way: way.__name__)
def test_way_to_train(train, tmp_path):
    run_cell(tmp_path, adamw, train)


@pytest.mark.skipif(
    not hasattr(keras, "RematScope"), reason="this Keras has no RematScope"
)
@pytest.mark.parametrize(
    "scope",
    [
        {"mode": "activations"},
        pytest.param(
            {"mode": "list_of_layers", "layer_names": ["conv"]},
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda scope: scope["mode"],
)
def test_gradient_checkpointing(scope, tmp_path):
    # In a graph TensorFlow checkpoints no layer that is told whether it
    # trains, so mode "full" fails in plain Keras too.
    def train(model, x, y):
        with keras.RematScope(**scope):
            fit(model, x, y)

    with keras.RematScope(**scope):
        run_cell(tmp_path, adamw, train)


def carry():
    """Makes a way to train on the optimizer of the task before."""
    held = {}

    def train(model, x, y):
        if "optimizer" in held and held["optimizer"] is not model.optimizer:
            compile_model(model, held["optimizer"], jit_compile="auto")
            assert model.optimizer is held["optimizer"]
        held["optimizer"] = model.optimizer
        fit(model, x, y)

    return train


CARRIED = {
    "momentum": lambda: optimizers.SGD(0.05, momentum=0.9, weight_decay=0.1),
    "adamw": adamw,
    "averages": lambda: adamw(use_ema=True, ema_overwrite_frequency=2),
    "accumulation": lambda: adamw(gradient_accumulation_steps=2),
    "scaled": lambda: optimizers.LossScaleOptimizer(
        adamw(use_ema=True), initial_scale=4.0
    ),
}


@pytest.mark.parametrize(
    "name",
    [
        name if name == "adamw" else pytest.param(name, marks=pytest.mark.slow)
        for name in CARRIED
    ],
)
def test_optimizer_carried_over(name, tmp_path):
    run_cell(tmp_path, CARRIED[name], carry(), skips=name == "scaled")


@pytest.mark.parametrize("way", ["eager", "graph"])
def test_a_loop_that_forgets_is_caught(way):
    x, y = make_data()
    model = packnet_tf.wrap(make_network(), task="one")
    compile_model(model, adamw(), jit_compile="auto")
    learn_task(model, Outputs(x), fit, x, y)
    model.add_task("two", units=4)
    model.optimizer.build(model.trainable_variables)

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(x, training=True) ** 2)
        variables = model.trainable_variables
        gradients = tape.gradient(loss, variables)
        model.optimizer.apply_gradients(zip(gradients, variables))

    model.verify()
    (tf.function(step) if way == "graph" else step)(x, y)
    with pytest.raises(FingerprintError, match="'one'"):
        model.verify()
