import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import all_values
from helpers import assert_same_values
from helpers import compile_model
from helpers import eagerly
from helpers import two_devices

import packnet_tf
from packnet_tf.errors import ArgumentError

optimizers = keras.optimizers


def multi(**kwargs):
    return optimizers.MultiOptimizer(
        optimizers.OptimizerMap(
            optimizers.SGD(0.05, momentum=0.9, **kwargs),
            {
                ".*conv.*": optimizers.Adam(0.01, **kwargs),
                ".*top.*": optimizers.RMSprop(0.01, **kwargs),
            },
        )
    )


KINDS = {
    "sgd": lambda: optimizers.SGD(0.05, momentum=0.9, weight_decay=0.1),
    "adam": lambda: optimizers.Adam(0.01, amsgrad=True),
    "averages": lambda: optimizers.SGD(
        0.05, momentum=0.9, use_ema=True, ema_momentum=0.8
    ),
    "accumulation": lambda: optimizers.Adam(
        0.01, gradient_accumulation_steps=3
    ),
    "scaled": lambda: optimizers.LossScaleOptimizer(
        optimizers.Adam(0.01), initial_scale=4.0, dynamic_growth_steps=3
    ),
    "nadam": lambda: optimizers.Nadam(0.01),
    "ftrl": lambda: optimizers.Ftrl(0.1),
    "rmsprop": lambda: optimizers.RMSprop(0.01, momentum=0.9, centered=True),
    "lamb": lambda: optimizers.Lamb(0.01),
    "muon": lambda: optimizers.Muon(0.01),
    "schedule_free": lambda: optimizers.ScheduleFreeAdamW(0.01),
    "multi": multi,
    "multi_averages": lambda: multi(use_ema=True),
}


def make(name):
    try:
        return KINDS[name]()
    except AttributeError:
        pytest.skip(f"this Keras has no {name}")


def state(optimizer):
    """Returns what an optimizer holds, by name; a slot tells its variable."""
    found = {}
    for variable in optimizer.variables:
        name = f"{variable.path.split('/')[0]}/{variable.name}"
        while name in found:
            name += "'"
        found[name] = variable.numpy()
    return found


def second_task(packed, images, optimizer):
    """Trains task "one" with an optimizer and begins task "two"."""
    x, y = images
    compile_model(packed, optimizer)
    with eagerly(packed):
        packed.fit(x, y, batch_size=8, epochs=1, verbose=0)
        packed.prune(0.5)
        packed.fit(x, y, batch_size=8, epochs=1, verbose=0)
    packed.freeze_task()
    packed.add_task("two", units=4)


@pytest.mark.parametrize("name", KINDS)
def test_carried_keeps_slots_and_counts(name, packed, images):
    optimizer = make(name)
    second_task(packed, images, optimizer)
    before = state(optimizer)
    compile_model(packed, optimizer)
    assert packed.optimizer is optimizer
    after = state(optimizer)
    kept = set(before) & set(after)
    for key in kept:
        np.testing.assert_array_equal(before[key], after[key])
    # The counts, the rate and what belongs to the kernels of the backbone.
    assert any("dense_kernel" in key for key in kept)
    assert any("conv_kernel" in key for key in kept)
    assert any(key.endswith("/iteration") for key in kept)
    assert any(np.any(before[key]) for key in kept if "dense_kernel" in key)
    # What belongs to the head of before is dropped, that of now is there.
    assert not any("top" in key for key in after)
    assert len(optimizer.variables) == len(
        {id(variable) for variable in optimizer.variables}
    )
    fresh = type(optimizer).from_config(optimizer.get_config())
    fresh.build(packed.trainable_variables)
    assert [v.shape for v in optimizer.variables] == [
        v.shape for v in fresh.variables
    ]


def test_carried_adafactor_keeps_what_has_no_name_of_its_own(packed, images):
    optimizer = optimizers.Adafactor(0.01)
    second_task(packed, images, optimizer)
    kernel = packed.backbone.get_layer("dense").layer.kernel
    index = optimizer._get_variable_index(kernel)
    slots = (optimizer._r, optimizer._c, optimizer._v)
    before = [slot[index].numpy() for slot in slots]
    compile_model(packed, optimizer)
    index = optimizer._get_variable_index(kernel)
    slots = (optimizer._r, optimizer._c, optimizer._v)
    assert all(value.any() for value in before)
    assert_same_values(before, [slot[index].numpy() for slot in slots])
    assert len(optimizer._r) == len(packed.trainable_variables)
    packed.fit(*images, verbose=0)
    packed.verify()


def test_carried_state_is_what_trains(packed, images):
    # Against Adam written out, on the step after the change of tasks.
    optimizer = optimizers.Adam(0.01, epsilon=1e-7)
    second_task(packed, images, optimizer)
    kernel = packed.backbone.get_layer("dense").layer.kernel
    index = optimizer._get_variable_index(kernel)
    m = optimizer._momentums[index].numpy().astype("float64")
    v = optimizer._velocities[index].numpy().astype("float64")
    steps = int(optimizer.iterations.numpy())
    compile_model(packed, optimizer)
    before = kernel.numpy().astype("float64")
    gradient = np.random.default_rng(0).normal(size=kernel.shape)
    pairs = [
        (
            tf.constant(gradient, "float32")
            if variable is kernel
            else tf.zeros_like(variable.value),
            variable,
        )
        for variable in packed.trainable_variables
    ]
    packed.apply_gradients(pairs)
    entry = next(
        entry
        for entry in packed.summary_protection(print_fn=len)
        if entry.variable is kernel
    )
    mine = entry.owner.numpy() == 2
    gradient = np.where(mine, gradient, 0.0)
    m = 0.9 * m + 0.1 * gradient
    v = 0.999 * v + 0.001 * gradient**2
    t = steps + 1
    rate = 0.01 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
    expected = before - rate * m / (np.sqrt(v) + 1e-7)
    np.testing.assert_allclose(
        kernel.numpy()[mine], expected[mine], rtol=1e-4, atol=1e-7
    )
    np.testing.assert_array_equal(kernel.numpy()[~mine], before[~mine])
    assert int(optimizer.iterations.numpy()) == t


def test_carried_averages_start_at_the_new_head_and_keep_the_rest(
    packed, images
):
    optimizer = optimizers.SGD(0.05, use_ema=True, ema_momentum=0.999)
    second_task(packed, images, optimizer)
    compile_model(packed, optimizer)
    before = {v.path: v.numpy() for v in packed.trainable_variables}
    packed.fit(*images, initial_epoch=1, epochs=1, verbose=0)
    for variable in packed.heads["two"].trainable_variables:
        np.testing.assert_array_equal(before[variable.path], variable.numpy())
    packed.verify()


def test_carried_optimizer_goes_on_with_its_schedule(packed, images):
    schedule = optimizers.schedules.PiecewiseConstantDecay([7], [0.1, 0.001])
    optimizer = optimizers.SGD(schedule)
    second_task(packed, images, optimizer)
    assert int(packed.optimizer.iterations.numpy()) == 0
    assert float(packed.optimizer.learning_rate) == pytest.approx(0.1)
    compile_model(packed, optimizer)
    assert int(optimizer.iterations.numpy()) == 8
    assert float(optimizer.learning_rate) == pytest.approx(0.001)


def test_carried_over_twice_is_saved_and_loaded(packed, images, tmp_path):
    x, y = images
    optimizer = optimizers.Adam(0.01)
    second_task(packed, images, optimizer)
    compile_model(packed, optimizer)
    packed.fit(x, y, verbose=0)
    packed.prune(0.5)
    packed.freeze_task()
    packed.add_task("three", units=3)
    compile_model(packed, optimizer)
    packed.fit(x, y % 3, verbose=0)
    packed.save(tmp_path / "packed.keras")
    loaded = packnet_tf.load_model(tmp_path / "packed.keras")
    assert_same_values(
        [variable.numpy() for variable in optimizer.variables],
        [variable.numpy() for variable in loaded.optimizer.variables],
    )
    keras.utils.set_random_seed(1)
    packed.fit(x, y % 3, verbose=0, shuffle=False)
    loaded.fit(x, y % 3, verbose=0, shuffle=False)
    assert_same_values(all_values(packed), all_values(loaded))


def test_without_it_the_next_task_starts_afresh(packed, images):
    optimizer = optimizers.Adam(0.01)
    second_task(packed, images, optimizer)
    compile_model(packed, optimizer)
    packed.fit(*images, verbose=0)
    packed.prune(0.5)
    packed.freeze_task()
    packed.add_task("three", units=4)
    assert packed.optimizer is not optimizer
    assert int(packed.optimizer.iterations.numpy()) == 0
    assert not packed.optimizer.built


def test_carrying_over_is_undone_if_compile_fails(packed, images):
    optimizer = multi(use_ema=True)
    second_task(packed, images, optimizer)
    fresh = packed.optimizer
    before = [(id(v), v.numpy()) for v in optimizer.variables]
    attributes = [
        dict(vars(part)) for part in (optimizer, *optimizer.optimizers)
    ]
    with pytest.raises(TypeError):
        packed.compile(optimizer, "mse", no_such_argument=1)
    after = [(id(v), v.numpy()) for v in optimizer.variables]
    assert [key for key, _ in before] == [key for key, _ in after]
    assert_same_values([v for _, v in before], [v for _, v in after])
    for part, was in zip((optimizer, *optimizer.optimizers), attributes):
        now = vars(part)
        assert set(now) == set(was)
        assert [n for n in now if now[n] is not was[n]] == []
    assert packed.optimizer is fresh
    compile_model(packed, optimizer)
    packed.fit(*images, verbose=0)
    packed.verify()


def test_carrying_over_what_keras_scales_itself(images, network):
    # Under mixed_float16 Keras wraps the optimizer it is given each time.
    x, y = images
    keras.config.set_dtype_policy("mixed_float16")
    try:
        packed = packnet_tf.wrap(network(), task="one")
        optimizer = optimizers.Adam(0.01)
        second_task(packed, images, optimizer)
        before = state(optimizer)
        compile_model(packed, optimizer)
        assert packed.optimizer.inner_optimizer is optimizer
        compile_model(packed, optimizer)
        packed.train_on_batch(np.full_like(x, np.inf), y)  # No step is made.
        after = state(optimizer)
        assert any("dense_kernel_momentum" in key for key in before)
        for key in set(before) & set(after):
            np.testing.assert_array_equal(before[key], after[key])
        assert len(after) == len(set(after)) == len(optimizer.variables)
        packed.fit(x, y, verbose=0)
        packed.verify()
    finally:
        keras.config.set_dtype_policy("float32")


def test_an_optimizer_of_another_model_is_refused(network, packed, images):
    other = network()
    compile_model(other)
    other.fit(*images, verbose=0)
    compile_model(packed, other.optimizer)
    before = all_values(packed)
    with pytest.raises(ArgumentError, match="built for other variables"):
        packed.fit(*images, verbose=0)
    assert_same_values(before, all_values(packed))


class Hidden(optimizers.SGD):
    """Keeps slots where none are looked for."""

    def build(self, variables):
        super().build(variables)
        slots = [self.add_variable((), name="hidden") for _ in variables]
        self.hidden = {"all": slots}

    def get_config(self):
        return super().get_config()


def test_state_that_belongs_to_no_variable_is_refused(packed, images):
    optimizer = Hidden(0.05)
    second_task(packed, images, optimizer)
    before = [(id(v), v.numpy().tobytes()) for v in optimizer.variables]
    fresh = packed.optimizer
    with pytest.raises(ArgumentError, match="cannot be carried over"):
        compile_model(packed, optimizer)
    assert packed.optimizer is fresh
    after = [(id(v), v.numpy().tobytes()) for v in optimizer.variables]
    assert before == after


def test_replicas_carry_over_too(network, images):
    strategy = two_devices()
    with strategy.scope():
        packed = packnet_tf.wrap(network(), task="one")
        optimizer = optimizers.SGD(0.05, momentum=0.9, weight_decay=0.1)
    with strategy.scope():
        compile_model(packed, optimizer)
    packed.fit(*images, batch_size=16, verbose=0)
    packed.prune(0.5)
    packed.freeze_task()
    packed.add_task("two", units=4)
    before = state(optimizer)
    compile_model(packed, optimizer)
    after = state(optimizer)
    for key in set(before) & set(after):
        np.testing.assert_array_equal(before[key], after[key])
    packed.fit(*images, batch_size=16, verbose=0)
    packed.verify()


def test_weights_kept_from_decay_stay_so_in_each_task(packed, images):
    optimizer = optimizers.SGD(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    second_task(packed, images, optimizer)
    kernel, bias = packed.heads["two"].trainable_variables
    bias.assign(np.ones(4))
    before = kernel.numpy()
    packed.apply_gradients(
        [(tf.zeros_like(v.value), v) for v in packed.trainable_variables]
    )
    np.testing.assert_array_equal(bias.numpy(), np.ones(4))
    np.testing.assert_allclose(kernel.numpy(), before * 0.95, rtol=1e-6)
