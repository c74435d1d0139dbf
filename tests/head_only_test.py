import keras
import numpy as np
import pytest
from helpers import Unchanged
from helpers import all_values
from helpers import assert_same_values
from helpers import compile_model

import packnet_tf
from packnet_tf.errors import StageError

SLOW = pytest.mark.slow  # What others in the list contain.


def optimizer():
    return keras.optimizers.AdamW(0.05, weight_decay=0.1, use_ema=True)


def values_of(model):
    return [variable.numpy() for variable in model.variables]


@pytest.mark.parametrize(
    ("number", "treatment", "compiled"),
    [
        pytest.param(1, "frozen", {"jit_compile": "auto"}, marks=SLOW),
        pytest.param(2, "per_task", {"jit_compile": "auto"}, marks=SLOW),
        (2, "frozen", {"jit_compile": True}),
        (2, "per_task", {"jit_compile": False}),
        (1, "per_task", {"run_eagerly": True}),
        (2, "frozen", {"steps_per_execution": 2}),
    ],
)
def test_the_head_alone_trains(number, treatment, compiled, network, images):
    x, y = images
    model = packnet_tf.wrap(
        network(classes=None), biases=treatment, normalization=treatment
    )
    model.add_task("one", units=4)
    if number == 2:
        model.prune(0.5)
        model.freeze_task()
        model.add_task("two", units=4)
    model.head_only = True
    compile_model(model, optimizer(), **compiled)
    head = model.heads[model.task]
    backbone, before = values_of(model.backbone), values_of(head)
    model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    assert_same_values(backbone, values_of(model.backbone))
    for old, new in zip(before, values_of(head)):
        assert not np.array_equal(old, new)
    assert int(model.steps.numpy()) == 0
    model.head_only = False
    compile_model(model, optimizer(), **compiled)
    model.fit(x, y, batch_size=8, verbose=0)
    kernel = model.backbone.get_layer("dense").layer.kernel
    places = [v is kernel for v in model.backbone.variables].index(True)
    assert not np.array_equal(backbone[places], kernel.numpy())
    assert int(model.steps.numpy()) == 4


def test_the_head_trains_on_features_as_at_inference(packed, images):
    x, _ = images
    packed.head_only = True
    np.testing.assert_array_equal(
        packed(x, training=True), packed(x, training=False)
    )
    packed.head_only = False
    assert not np.array_equal(
        packed(x, training=True), packed(x, training=False)
    )


def test_a_change_starts_with_a_fresh_optimizer(packed, images):
    packed.fit(*images, batch_size=8, verbose=0)
    packed.head_only = True
    assert int(packed.optimizer.iterations) == 0
    packed.fit(*images, batch_size=8, verbose=0)
    with Unchanged(packed):
        packed.head_only = True
    packed.head_only = False
    assert int(packed.optimizer.iterations) == 0
    packed.fit(*images, batch_size=8, verbose=0)


def test_training_the_head_goes_on_after_loading(network, images, tmp_path):
    x, y = images
    model = packnet_tf.wrap(network(), task="one")
    compile_model(model, optimizer())
    model.prune(0.5)
    model.freeze_task()
    model.add_task("two", units=4)
    model.head_only = True
    model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = packnet_tf.load_model(tmp_path / "model.keras")
    assert loaded.head_only
    for each in (model, loaded):
        each.fit(x, y, batch_size=8, shuffle=False, verbose=0)
        each.head_only = False
        each.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    assert_same_values(all_values(model), all_values(loaded))


def test_freezing_a_task_ends_it(packed):
    packed.head_only = True
    packed.prune(0.5)
    packed.freeze_task()
    assert not packed.head_only
    with Unchanged(packed), pytest.raises(StageError, match="Received:"):
        packed.head_only = True
    packed.add_task("two", units=4)
    assert not packed.head_only


def test_a_model_without_a_task_has_no_head_to_train(network):
    model = packnet_tf.wrap(network(classes=None))
    with pytest.raises(StageError, match="add_task"):
        model.head_only = True
    assert not model.head_only


def test_it_waits_for_the_end_of_fit(packed, images):
    class Changing(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.head_only = True

    with pytest.raises(StageError, match="fit"):
        packed.fit(*images, callbacks=[Changing()], verbose=0)
    assert not packed.head_only


def test_a_head_without_weights_cannot_train_alone(network, images):
    model = packnet_tf.wrap(network(classes=None))
    model.add_task("one", head=keras.layers.Softmax())
    compile_model(model)
    model.head_only = True
    with pytest.raises(StageError, match="head_only=True"):
        model.fit(*images, verbose=0)
