import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import compile_model

import packnet_tf
from packnet_tf import PruneOnSchedule
from packnet_tf import Stage
from packnet_tf import criteria
from packnet_tf import schedules
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import StageError

tfmot = schedules.tfmot_schedules()


def free_shares(model):
    return {
        entry.key: int((entry.owner.numpy() == 0).sum())
        for entry in model.summary_protection(print_fn=len)
        if entry.owner is not None
    }


def expected_shares(model, fraction):
    return {
        entry.key: round(fraction * entry.owner.numpy().size)
        for entry in model.summary_protection(print_fn=len)
        if entry.owner is not None
    }


class Recorder(keras.callbacks.Callback):
    """Records the sparsity after every batch end."""

    def __init__(self):
        super().__init__()
        self.sparsities = []

    def on_train_batch_end(self, batch, logs=None):
        self.sparsities.append(self.model.sparsity)


def fit(model, images, schedule, epochs=1, **kwargs):
    recorder = Recorder()
    history = model.fit(
        *images,
        batch_size=4,
        epochs=epochs,
        verbose=0,
        callbacks=[PruneOnSchedule(schedule), recorder],
        **kwargs,
    )
    return recorder.sparsities, history.history


def test_constant_sparsity_prunes_once_at_its_step(packed, images):
    sparsities, history = fit(
        packed, images, tfmot.ConstantSparsity(0.7, begin_step=3, frequency=2)
    )
    assert sparsities == [0.0, 0.0, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7]
    assert history["sparsity"] == [0.7]
    assert free_shares(packed) == expected_shares(packed, 0.7)
    assert packed.stage is Stage.RETRAIN


def test_constant_sparsity_from_step_0_prunes_before_training(packed, images):
    sparsities, _ = fit(packed, images, tfmot.ConstantSparsity(0.5, 0))
    assert sparsities[0] == 0.5


def test_polynomial_decay_prunes_gradually(packed, images):
    schedule = tfmot.PolynomialDecay(0.0, 0.6, 0, 6, frequency=2, power=1)
    sparsities, _ = fit(packed, images, schedule)
    assert sparsities == pytest.approx(
        [0.0, 0.2, 0.2, 0.4, 0.4, 0.6, 0.6, 0.6], abs=1e-6
    )
    assert free_shares(packed) == expected_shares(packed, 0.6)


@pytest.mark.parametrize("steps_per_execution", [1, 3, 4, 8])
def test_schedules_hold_for_any_steps_per_execution(
    steps_per_execution, packed, images
):
    compile_model(packed, steps_per_execution=steps_per_execution)
    schedule = tfmot.PolynomialDecay(0.0, 0.6, 0, 13, frequency=13)
    sparsities, _ = fit(packed, images, schedule, epochs=2)
    assert sparsities[0] == 0.0
    assert sparsities[-1] == 0.6
    assert free_shares(packed) == expected_shares(packed, 0.6)
    assert int(packed.steps.numpy()) == 16


def test_steps_count_over_several_fits(packed, images):
    schedule = tfmot.ConstantSparsity(0.5, begin_step=10, frequency=1)
    sparsities, _ = fit(packed, images, schedule)
    assert sparsities[-1] == 0.0
    sparsities, _ = fit(packed, images, schedule)
    assert sparsities == [0.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]


def test_steps_begin_anew_with_each_task(packed, images):
    schedule = tfmot.ConstantSparsity(0.5, begin_step=5, frequency=1)
    fit(packed, images, schedule)
    packed.freeze_task()
    packed.add_task("two", units=4)
    sparsities, _ = fit(packed, images, schedule)
    assert sparsities == [0.0, 0.0, 0.0, 0.0, 0.5, 0.5, 0.5, 0.5]


def test_a_schedule_of_ones_own(packed, images):
    def schedule(step):
        return step == 4, 0.25

    sparsities, _ = fit(packed, images, schedule)
    assert sparsities == [0.0, 0.0, 0.0, 0.25, 0.25, 0.25, 0.25, 0.25]


def test_a_schedule_from_its_config(packed, images):
    config = tfmot.ConstantSparsity(0.5, 2, frequency=1).get_config()
    sparsities, _ = fit(packed, images, config)
    assert sparsities[:3] == [0.0, 0.5, 0.5]


def test_sparsity_0_is_ignored(packed, images):
    sparsities, _ = fit(packed, images, lambda step: (True, 0.0))
    assert set(sparsities) == {0.0}
    assert packed.stage is Stage.TRAIN


def test_a_schedule_that_falls_is_an_error(packed, images):
    def schedule(step):
        return True, 0.5 if step < 3 else 0.2

    with pytest.raises(StageError, match="only grows"):
        fit(packed, images, schedule)
    assert packed.sparsity == 0.5


def test_a_plain_model_is_refused(network, images):
    model = network()
    compile_model(model)
    with pytest.raises(ArgumentError, match="wrap"):
        model.fit(
            *images, verbose=0, callbacks=[PruneOnSchedule(lambda s: (1, 0.5))]
        )


@pytest.mark.parametrize("bad", [None, 0.5, "polynomial", {}, tfmot])
def test_no_schedule_is_refused(bad):
    with pytest.raises(ArgumentError, match="Received:"):
        PruneOnSchedule(bad)


def test_an_unknown_criterion_is_refused():
    with pytest.raises(ArgumentError, match="magnitude"):
        PruneOnSchedule(lambda step: (True, 0.5), criterion="size")


@pytest.mark.parametrize("criterion", criteria.names())
def test_a_global_scope_is_followed(criterion, packed, images):
    total = sum(expected_shares(packed, 1).values())
    schedule = tfmot.PolynomialDecay(0.0, 0.6, 0, 6, frequency=3)
    recorder = Recorder()
    packed.fit(
        *images,
        batch_size=4,
        verbose=0,
        callbacks=[
            PruneOnSchedule(schedule, criterion, "global", images),
            recorder,
        ],
    )
    assert recorder.sparsities[-1] == 0.6
    shares = free_shares(packed)
    assert sum(shares.values()) == round(0.6 * total)
    assert shares != expected_shares(packed, 0.6)


def test_an_unknown_scope_is_refused():
    with pytest.raises(ArgumentError, match="scope='model'"):
        PruneOnSchedule(lambda step: (True, 0.5), scope="model")


def test_missing_data_is_noticed_before_training(images):
    with pytest.raises(ArgumentError, match="data=None"):
        PruneOnSchedule(lambda step: (True, 0.5), "taylor")
    with pytest.raises(ArgumentError, match="endless"):
        PruneOnSchedule(
            lambda step: (True, 0.5),
            "taylor",
            data=tf.data.Dataset.from_tensor_slices(images).repeat(),
        )


def test_pruning_inside_of_fit_goes_on_training(packed, images):
    x, y = images
    packed.fit(
        x,
        y,
        batch_size=4,
        epochs=2,
        verbose=0,
        callbacks=[PruneOnSchedule(tfmot.ConstantSparsity(0.5, 4))],
    )
    for entry in packed.summary_protection(print_fn=len):
        if entry.owner is not None:
            owner = entry.owner.numpy()
            assert (entry.variable.numpy()[owner == 0] == 0).all()
            assert np.any(entry.variable.numpy()[owner == 1] != 0)
    assert isinstance(packed, packnet_tf.PackNetModel)
