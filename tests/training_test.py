import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import compile_model
from helpers import hash_values
from helpers import two_devices

import packnet_tf
from packnet_tf import update
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import StageError

optimizers = keras.optimizers

OPTIMIZERS = {
    "sgd_momentum_decay": lambda: optimizers.SGD(
        0.1, momentum=0.9, nesterov=True, weight_decay=0.1
    ),
    "adamw": lambda: optimizers.AdamW(0.01, weight_decay=0.1),
    "ema_overwriting": lambda: optimizers.SGD(
        0.1, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2
    ),
}


def constrained_network():
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(6, 3, kernel_constraint="unit_norm"),
            layers.BatchNormalization(momentum=0.5),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(
                10,
                "tanh",
                kernel_constraint=keras.constraints.MaxNorm(0.5),
                kernel_regularizer="l2",
            ),
            layers.Dense(4, "softmax"),
        ]
    )


class Snapshots(keras.callbacks.Callback):
    """Checks after each step that the older tasks compute the same."""

    def __init__(self, x, before):
        super().__init__()
        self.x, self.before, self.checked = x, before, 0

    def on_train_batch_end(self, batch, logs=None):
        for task, outputs in self.before.items():
            np.testing.assert_array_equal(
                outputs, self.model(self.x, task=task)
            )
            self.checked += 1


def run_two_more_tasks(model, x, y, make_optimizer):
    before = {}
    for task in ("one", "two", "three"):
        if task != "one":
            model.add_task(task, units=4)
        compile_model(model, make_optimizer(), jit_compile="auto")
        snapshots = Snapshots(x, dict(before))
        for _ in range(2):
            model.fit(
                x, y, batch_size=8, verbose=0, callbacks=[snapshots], epochs=2
            )
            model.prune(0.5)
        assert snapshots.checked >= len(before)
        model.freeze_task()
        before[task] = model(x, task=task).numpy()
        for name, outputs in before.items():
            np.testing.assert_array_equal(outputs, model(x, task=name))
    assert list(model.verify()) == ["one", "two", "three"]


@pytest.mark.parametrize("name", ["adamw", "ema_overwriting"])
def test_old_tasks_stay_exact_after_each_step(name, images):
    model = packnet_tf.wrap(constrained_network(), task="one")
    run_two_more_tasks(model, *images, OPTIMIZERS[name])


def test_swapping_averages_in_for_evaluation_stays_exact(
    packed, images, finish_task
):
    x, y = images
    finish_task(packed, x, y)
    before = packed.predict(x, verbose=0)
    packed.add_task("two", units=4)
    compile_model(packed, optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9))
    packed.fit(
        x,
        y,
        batch_size=8,
        epochs=2,
        validation_data=(x, y),
        verbose=0,
        callbacks=[keras.callbacks.SwapEMAWeights(swap_on_epoch=True)],
    )
    packed.verify()
    np.testing.assert_array_equal(
        before, packed.predict(x, verbose=0, task="one")
    )


def test_averages_bring_no_released_weight_back(packed, images):
    x, y = images
    compile_model(packed, optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9))

    class PruneAtTheEnd(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.prune(0.5)

    packed.fit(x, y, verbose=0, callbacks=[PruneAtTheEnd()])
    for entry in packed.summary_protection(print_fn=len):
        if entry.owner is not None:
            free = entry.owner.numpy() == 0
            assert (entry.variable.numpy()[free] == 0).all()


def test_a_fit_without_a_step_keeps_all_weights(packed, images):
    x, y = images
    compile_model(packed, optimizers.SGD(0.1, use_ema=True))
    before = [variable.numpy() for variable in packed.variables]
    packed.fit(x, y, initial_epoch=3, epochs=3, verbose=0)
    for old, variable in zip(before, packed.variables):
        np.testing.assert_array_equal(old, variable.numpy())


@pytest.mark.parametrize("jit_compile", ["auto", False])
def test_the_first_task_trains_exactly_as_in_plain_keras(
    network, images, jit_compile
):
    x, y = images
    histories = []
    values = []
    for wrap in (False, True):
        keras.utils.set_random_seed(3)
        model = network()
        if wrap:
            model = packnet_tf.wrap(model, task="one")
        compile_model(
            model, optimizers.AdamW(0.05, weight_decay=0.1), jit_compile
        )
        histories.append(
            model.fit(
                x, y, batch_size=8, epochs=3, shuffle=False, verbose=0
            ).history
        )
        values.append([v.numpy() for v in model.trainable_variables])
    assert histories[0]["loss"] == pytest.approx(histories[1]["loss"], rel=1e-5)
    assert histories[0]["accuracy"] == histories[1]["accuracy"]
    # Nothing has to be kept yet, so the optimizer runs as it is.
    for plain, packed in zip(*values, strict=True):
        np.testing.assert_array_equal(plain, packed)


@pytest.mark.parametrize("jit_compile", ["auto", False])
def test_one_graph_trains_before_and_after_the_first_task_is_pruned(
    packed, images, jit_compile
):
    x, y = images
    compile_model(packed, optimizers.AdamW(0.01, weight_decay=0.1), jit_compile)
    step = tf.function(packed.train_step)
    data = tf.constant(x), tf.constant(y)
    before = [entry.variable.numpy() for entry in packed._packed()]
    step(data)
    for entry, old in zip(packed._packed(), before):
        assert (entry.variable.numpy() != old).mean() > 0.5
    packed.prune(0.5)
    for _ in range(3):
        step(data)
    for entry in packed._packed():
        free = entry.owner.numpy() == 0
        assert free.mean() == pytest.approx(0.5, abs=0.02)
        assert not entry.variable.numpy()[free].any()
        assert entry.variable.numpy()[~free].all()


def test_every_weight_of_the_task_trains(packed, images, finish_task):
    x, y = images
    finish_task(packed, x, y)
    packed.add_task("two", units=4)
    packed.fit(x, y, epochs=2, verbose=0)
    for entry in packed.summary_protection(print_fn=len):
        if entry.owner is not None:
            owned = entry.owner.numpy() == 2
            moved = entry.variable.numpy()[owned] != 0
            assert moved.mean() > 0.5


def test_a_training_loop_of_ones_own_stays_exact(packed, images, finish_task):
    x, y = images
    finish_task(packed, x, y)
    before = packed.predict(x, verbose=0)
    packed.add_task("two", units=4)
    packed.optimizer = optimizers.AdamW(0.01, weight_decay=0.1)
    loss_fn = keras.losses.SparseCategoricalCrossentropy()
    packed.optimizer.build(packed.trainable_variables)

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = loss_fn(y, packed(x, training=True))
        variables = packed.trainable_variables
        gradients = tape.gradient(loss, variables)
        packed.apply_gradients(zip(gradients, variables))
        return loss

    losses = [float(step(x, y)) for _ in range(8)]
    assert losses[-1] < losses[0]
    assert int(packed.steps.numpy()) == 8
    packed.verify()
    np.testing.assert_array_equal(
        before, packed.predict(x, verbose=0, task="one")
    )


def test_a_loop_that_forgets_is_caught(packed, images, finish_task):
    x, y = images
    finish_task(packed, x, y)
    packed.add_task("two", units=4)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(packed(x, training=True) ** 2)
    variables = packed.trainable_variables
    gradients = tape.gradient(loss, variables)
    packed.optimizer.apply_gradients(zip(gradients, variables))
    with pytest.raises(packnet_tf.errors.FingerprintError, match="'one'"):
        packed.verify()


def test_apply_gradients_refuses_frozen_variables(packed, images, finish_task):
    finish_task(packed, *images)
    packed.add_task("two", units=4)
    bias = packed.backbone.get_layer("dense").layer.bias
    with pytest.raises(ArgumentError, match="bias"):
        packed.apply_gradients([(tf.ones_like(bias.value), bias)])


def test_apply_gradients_refuses_a_frozen_task(packed, images, finish_task):
    finish_task(packed, *images)
    with pytest.raises(StageError, match="add_task"):
        packed.apply_gradients([])


def test_embeddings_with_sparse_gradients_stay_exact():
    layers = keras.layers
    model = packnet_tf.wrap(
        keras.Sequential(
            [
                keras.Input((5,), dtype="int32"),
                layers.Embedding(20, 6),
                layers.GlobalAveragePooling1D(),
                layers.Dense(6, "tanh"),
                layers.Dense(4, "softmax"),
            ]
        ),
        task="one",
    )
    generator = np.random.default_rng(0)
    x = generator.integers(0, 20, (32, 5)).astype("int32")
    run_two_more_tasks(
        model, x, np.arange(32) % 4, OPTIMIZERS["sgd_momentum_decay"]
    )


def test_a_new_task_gets_a_fresh_optimizer_of_the_same_kind(packed, images):
    x, y = images
    compile_model(packed, optimizers.Adam(0.01, beta_1=0.8))
    packed.fit(x, y, verbose=0)
    packed.optimizer.learning_rate = 1e-5
    packed.freeze_task()
    with pytest.warns(UserWarning, match="owns no weight"):
        packed.add_task("two", units=4)
    assert isinstance(packed.optimizer, optimizers.Adam)
    assert packed.optimizer.beta_1 == 0.8
    assert float(packed.optimizer.learning_rate) == pytest.approx(0.01)
    assert int(packed.optimizer.iterations) == 0
    assert not packed.optimizer.built
    assert int(packed.steps.numpy()) == 0


def test_compile_takes_metrics_in_third_place(packed, images):
    packed.compile("sgd", "sparse_categorical_crossentropy", ["accuracy"])
    logs = packed.evaluate(*images, verbose=0, return_dict=True)
    assert set(logs) == {"loss", "accuracy"}
    packed.compile("sgd", "sparse_categorical_crossentropy", [2.0])
    weighted = packed.evaluate(*images, verbose=0, return_dict=True)
    assert weighted["loss"] == pytest.approx(2 * logs["loss"])


def test_metrics_suit_each_task(packed, images, finish_task):
    x, y = images
    finish_task(packed, x, y)
    packed.add_task("two", units=1, activation="sigmoid")
    packed.compile(
        "adam", "binary_crossentropy", metrics=[keras.metrics.AUC(), "accuracy"]
    )
    packed.fit(x, y % 2, verbose=0)
    logs = packed.evaluate(x, y % 2, verbose=0, return_dict=True)
    assert set(logs) == {"loss", "auc", "accuracy"}
    compile_model(packed)
    logs = packed.evaluate(x, y, verbose=0, task="one", return_dict=True)
    expected = np.mean(packed.predict(x, verbose=0, task="one").argmax(1) == y)
    assert logs["accuracy"] == pytest.approx(expected)


def test_evaluating_another_task_inside_of_fit_disturbs_nothing(
    packed, images, finish_task
):
    x, y = images
    finish_task(packed, x, y)
    packed.add_task("two", units=4)
    seen = []

    class EvaluateOne(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(self.model.evaluate(x, y, verbose=0, task="one"))

    history = packed.fit(
        x, y, batch_size=8, verbose=0, callbacks=[EvaluateOne()]
    )
    assert len(seen) == 4
    assert all(result == seen[0] for result in seen)
    assert len(history.history["loss"]) == 1


def test_sample_weights_and_class_weights_are_taken(packed, images):
    x, y = images
    packed.fit(x, y, sample_weight=np.ones(32), verbose=0)
    packed.fit(x, y, class_weight={0: 1.0, 1: 2.0, 2: 1.0, 3: 1.0}, verbose=0)
    assert len(packed.train_on_batch(x, y)) == 2


def test_replicas_keep_old_tasks_exact_and_agree(network, images):
    x, y = images
    strategy = two_devices()
    with strategy.scope():
        model = packnet_tf.wrap(network(), task="one")
        compile_model(model, OPTIMIZERS["sgd_momentum_decay"]())
    model.fit(x, y, batch_size=8, verbose=0)
    model.prune(0.5)
    model.fit(x, y, batch_size=8, verbose=0)
    model.freeze_task()
    before = model.predict(x, verbose=0)
    model.add_task("two", units=4)
    model.fit(x, y, batch_size=8, verbose=0)
    model.verify()
    for variable in model.variables:
        first, second = variable.value.values
        np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(
        before, model.predict(x, verbose=0, task="one")
    )


def test_gradients_for_some_variables_keep_the_others_exact(
    packed, images, finish_task
):
    x, y = images
    finish_task(packed, x, y)
    packed.add_task("two", units=4)
    compile_model(
        packed, optimizers.SGD(0.1, use_ema=True, ema_overwrite_frequency=1)
    )
    packed.fit(x, y, verbose=0)
    kernel = packed.backbone.get_layer("dense").layer.kernel
    for _ in range(3):
        packed.apply_gradients([(tf.ones_like(kernel.value), kernel)])
    packed.verify()


@pytest.mark.parametrize("call", ["fit", "train_on_batch"])
def test_a_model_made_untrainable_is_refused_and_can_be_mended(
    call, packed, images
):
    packed.trainable = False
    with pytest.raises(StageError, match="trainable = True"):
        getattr(packed, call)(*images)
    assert not packed.optimizer.built
    packed.trainable = True
    before = packed.heads["one"].get_layer("top").kernel.numpy()
    getattr(packed, call)(*images)
    assert (packed.heads["one"].get_layer("top").kernel.numpy() != before).any()


def test_seed_averages_leaves_other_optimizers_alone():
    update.seed_averages(None)
    update.seed_averages(optimizers.SGD(0.1))


@pytest.mark.parametrize("when", ["on_epoch_end", "on_train_end"])
@pytest.mark.parametrize("what", ["freeze_task", "add_task"])
def test_stages_do_not_change_inside_of_fit(packed, images, what, when):
    class Meddler(keras.callbacks.Callback):
        def meddle(self, *args):
            arguments = ("two", 3) if what == "add_task" else ()
            getattr(self.model, what)(*arguments)

    setattr(Meddler, when, Meddler.meddle)
    compile_model(packed, run_eagerly=True)
    with pytest.raises(StageError, match=r"end of `fit\(\)`"):
        packed.fit(*images, verbose=0, callbacks=[Meddler()])
    assert packed.task_names == ["one"]
    assert packed.stage is packnet_tf.Stage.TRAIN
    packed.fit(*images, verbose=0)
    packed.freeze_task()


def _kernel(model, name):
    return model.backbone.get_layer(name).packed_variables()[0]


def _trains(model, variable):
    paths = [each.path for each in model.trainable_variables]
    return variable.path in paths


def test_a_layer_without_room_does_not_train(packed, images, tmp_path):
    x, y = images
    dense = _kernel(packed, "dense")
    dense.assign(dense * 1000.0)
    packed.prune(0.2, scope="global")  # Takes from the convolutions alone.
    packed.freeze_task()
    packed.add_task("two", units=4)
    assert not _trains(packed, dense)
    assert _trains(packed, _kernel(packed, "conv"))

    before = packed.predict(x, task="one", verbose=0)
    packed.trainable = False  # Setting what it is already does nothing.
    packed.trainable = True
    packed.fit(x, y, verbose=0)
    assert not _trains(packed, dense)
    slots = [variable.path for variable in packed.optimizer.variables]
    assert any("conv" in path for path in slots)
    assert not any("dense" in path for path in slots)

    packed.save(tmp_path / "model.keras")
    loaded = packnet_tf.load_model(tmp_path / "model.keras")
    assert hash_values(loaded) == hash_values(packed)
    loaded.fit(x, y, verbose=0)
    assert not _trains(loaded, _kernel(loaded, "dense"))
    np.testing.assert_array_equal(
        loaded.predict(x, task="one", verbose=0), before
    )
