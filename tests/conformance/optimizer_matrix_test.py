"""Every optimizer of Keras, with all that moves weights switched on."""

import inspect

import keras
import pytest
import tensorflow as tf
from matrix import run_cell

from packnet_tf.fused_update import FusedUpdate
from packnet_tf.update import Target

optimizers = keras.optimizers

SETTINGS = {
    "Adadelta": {"learning_rate": 1.0},
    "Adafactor": {},
    "Adagrad": {},
    "Adam": {"amsgrad": True},
    "AdamW": {"amsgrad": True},
    "Adamax": {},
    "Ftrl": {
        "learning_rate": 0.1,
        "l1_regularization_strength": 0.0001,
        "l2_regularization_strength": 0.01,
    },
    "Lamb": {},
    "Lion": {"learning_rate": 0.003},
    "Muon": {"adam_weight_decay": 0.1},
    "Nadam": {},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "SGD": {"momentum": 0.9, "nesterov": True},
    "ScheduleFreeAdamW": {},
}


def make(name):
    """Makes an optimizer with weight decay and momentum."""
    cls = getattr(optimizers, name)
    settings = {"learning_rate": 0.02, **SETTINGS[name]}
    if "weight_decay" in inspect.signature(cls).parameters:
        settings["weight_decay"] = 0.1
    return cls(**settings)


def make_multi():
    """Makes one optimizer for the convolution and one for the rest."""
    averaging = {
        "use_ema": True,
        "ema_momentum": 0.5,
        "ema_overwrite_frequency": 2,
    }
    return optimizers.MultiOptimizer(
        optimizers.OptimizerMap(
            optimizers.AdamW(0.02, weight_decay=0.1, **averaging),
            {
                ".*conv.*": optimizers.SGD(
                    0.02, momentum=0.9, weight_decay=0.1, **averaging
                )
            },
        )
    )


WRAPPERS = {
    "LossScaleOptimizer": lambda: optimizers.LossScaleOptimizer(
        optimizers.AdamW(0.02, weight_decay=0.1)
    ),
    "MultiOptimizer": make_multi,
}
# Bases, and the argument of MultiOptimizer.
OTHERS = {"Optimizer", "OptimizerMap"}


def available(names):
    """Leaves out what an older Keras does not have."""
    return [name for name in names if hasattr(optimizers, name)]


def test_every_public_optimizer_is_in_the_matrix():
    public = {
        name
        for name in dir(optimizers)
        if inspect.isclass(getattr(optimizers, name))
    }
    assert public <= set(SETTINGS) | set(WRAPPERS) | OTHERS


# One task with the update as one function compiled with XLA, the next with it
# operation by operation; what diverges last, compiled.
BOTH_FORMS = ("auto", False, "auto")


# Others in the list move weights as they do; AdamW is in the other matrix.
SLOW = ("Adadelta", "Adagrad", "Adamax", "AdamW", "Lamb", "Nadam", "RMSprop")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name
        for name in available(SETTINGS)
    ],
)
def test_optimizer(name, tmp_path):
    run_cell(tmp_path, lambda: make(name), forms=BOTH_FORMS)


@pytest.mark.parametrize("name", available([*SETTINGS, *WRAPPERS]))
def test_every_optimizer_compiles(name):
    optimizer = WRAPPERS[name]() if name in WRAPPERS else make(name)
    variables = [keras.Variable(tf.ones((3, 2)), name=n) for n in "ab"]
    owner = keras.Variable(tf.ones((3, 2)), dtype="uint8", trainable=False)
    targets = [Target(variables[0], owner), Target(variables[1])]
    optimizer.build(variables)
    fused = FusedUpdate()

    @tf.function
    def step(gradient):
        pairs = [(gradient, variable) for variable in variables]
        fused.apply_gradients(optimizer, pairs, targets, 1)

    step(tf.ones((3, 2)))
    assert len(fused.functions) == 1
    assert all(fused.functions.values())


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(optimizers, "MultiOptimizer"), reason="not in this Keras"
)
def test_loss_scale_around_several_optimizers(tmp_path):
    run_cell(
        tmp_path,
        lambda: optimizers.LossScaleOptimizer(make_multi(), initial_scale=4.0),
        skips=True,
    )


@pytest.mark.parametrize(
    "name",
    [
        # Which the other matrix has around averages.
        pytest.param("LossScaleOptimizer", marks=pytest.mark.slow),
        *available(["MultiOptimizer"]),
    ],
)
def test_optimizer_that_wraps_others(name, tmp_path):
    run_cell(
        tmp_path,
        WRAPPERS[name],
        skips=name == "LossScaleOptimizer",
        forms=BOTH_FORMS,
    )
