import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import compile_model

import packnet_tf
from packnet_tf.fused_update import FusedUpdate
from packnet_tf.update import Target


class Compiles(keras.optimizers.SGD):
    """An optimizer that is not Keras' own."""

    def update_step(self, gradient, variable, learning_rate):
        variable.assign_sub(gradient * tf.cast(learning_rate, tf.float32))


class CallsPython(Compiles):
    """One that XLA does not compile."""

    def update_step(self, gradient, variable, learning_rate):
        gradient = tf.ensure_shape(
            tf.py_function(lambda x: x * 2.0, [gradient], tf.float32),
            gradient.shape,
        )
        super().update_step(gradient, variable, learning_rate)


def _targets():
    value = np.arange(1.0, 7.0, dtype=np.float32).reshape(2, 3)
    owner = np.array([[1, 2, 0], [2, 1, 2]], np.uint8)
    return [
        Target(keras.Variable(value), keras.Variable(owner, dtype="uint8")),
        Target(keras.Variable(value)),
    ]


def _step(fused, optimizer, targets):
    optimizer.build([target.variable for target in targets])

    def step(rows):
        gradient = tf.reduce_sum(rows, 0)
        fused.apply_gradients(
            optimizer,
            [(gradient, target.variable) for target in targets],
            targets,
            2,
        )

    return step


@pytest.mark.parametrize(
    ("cls", "compiles", "factor"),
    [(Compiles, True, 0.5), (CallsPython, False, 1.0)],
)
def test_a_users_optimizer_is_compiled_if_it_can_be(cls, compiles, factor):
    fused, targets = FusedUpdate(), _targets()
    before = targets[0].variable.numpy()
    tf.random.set_seed(3)
    drawn = [tf.random.uniform([]).numpy() for _ in range(2)]
    tf.random.set_seed(3)
    first = tf.random.uniform([]).numpy()
    tf.function(_step(fused, cls(0.5), targets))(tf.ones((4, 2, 3)))
    assert [f is not None for f in fused.functions.values()] == [compiles]
    owned = targets[0].owner.numpy() == 2
    np.testing.assert_array_equal(
        targets[0].variable, np.where(owned, before - 4.0 * factor, before)
    )
    np.testing.assert_array_equal(targets[1].variable, before - 4.0 * factor)
    # Trying it out draws no random number.
    assert [first, tf.random.uniform([]).numpy()] == drawn


def _in_python(value):
    """Returns a tensor by way of Python, which XLA does not compile."""
    value = tf.convert_to_tensor(value)
    result = tf.py_function(tf.identity, [value], tf.float32)
    return tf.ensure_shape(result, value.shape)


@pytest.mark.parametrize(
    "part",
    [
        {"learning_rate": lambda: _in_python(0.5)},
        {"constraint": _in_python},
    ],
    ids=list,
)
def test_what_an_optimizer_calls_is_tried_too(part):
    fused, targets = FusedUpdate(), _targets()
    optimizer = keras.optimizers.SGD(part.get("learning_rate", 0.5))
    if "constraint" in part:
        targets[0].variable.constraint = part["constraint"]
    before = targets[0].variable.numpy()
    tf.function(_step(fused, optimizer, targets))(tf.ones((4, 2, 3)))
    assert list(fused.functions.values()) == [None]
    owned = targets[0].owner.numpy() == 2
    np.testing.assert_array_equal(
        targets[0].variable, np.where(owned, before - 2.0, before)
    )


def test_graphs_of_one_step_share_a_function():
    fused, targets = FusedUpdate(), _targets()
    step = tf.function(_step(fused, keras.optimizers.Adam(), targets))
    for size in (1, 2, 3):
        step(tf.ones((size, 2, 3)))
    assert step.experimental_get_tracing_count() > 1
    assert len(fused.functions) == 1


def test_outside_of_a_graph_nothing_is_compiled():
    fused, targets = FusedUpdate(), _targets()
    _step(fused, keras.optimizers.Adam(), targets)(tf.ones((4, 2, 3)))
    assert not fused.functions


def test_settings_of_an_optimizer_hold_in_the_next_graph(packed, images):
    # As in Keras: what was traced keeps to the settings of then.
    x, _ = images
    packed.compile(
        keras.optimizers.SGD(1.0, clipvalue=1e-3),
        "sparse_categorical_crossentropy",
    )
    kernel = packed.backbone.get_layer("conv").packed_variables()[0]

    def largest_move(step):
        before = kernel.numpy()
        step()
        return np.abs(kernel.numpy() - before).max()

    def step():
        with tf.GradientTape() as tape:
            outputs = packed(x, training=True)
            loss = -tf.reduce_sum(tf.math.log(outputs[:, 0]))
        variables = packed.trainable_variables
        gradients = tape.gradient(loss, variables)
        packed.apply_gradients(zip(gradients, variables))

    assert largest_move(tf.function(step)) < 1.1e-3
    packed.optimizer.clipvalue = 1e-5
    assert largest_move(tf.function(step)) < 1.1e-5


def _losses(network, x, y, **kwargs):
    keras.utils.set_random_seed(1)
    model = packnet_tf.wrap(network(), task="one")
    compile_model(model, keras.optimizers.AdamW(0.01), **kwargs)
    model.fit(x, y, epochs=2, shuffle=False, verbose=0)
    model.prune(0.5)
    history = model.fit(x, y, epochs=2, shuffle=False, verbose=0)
    return model, history.history["loss"]


def test_both_forms_train_alike(network, images):
    fused, losses = _losses(network, *images, jit_compile="auto")
    plain, expected = _losses(network, *images)
    np.testing.assert_allclose(losses, expected, rtol=1e-3)
    assert all(fused._fused.functions.values())
    assert fused._fused.functions
    assert not plain._fused.functions


@pytest.mark.parametrize("jit_compile", ["auto", False, True])
def test_a_file_keeps_what_was_asked_of_xla(
    network, tmp_path, images, jit_compile
):
    model = packnet_tf.wrap(network(), task="one")
    compile_model(model, jit_compile=jit_compile)
    model.train_on_batch(*images)
    model.save(tmp_path / "model.keras")
    loaded = packnet_tf.load_model(tmp_path / "model.keras")
    assert loaded.recipe.jit_compile == jit_compile
    assert loaded.jit_compile is (jit_compile is True)
