import keras
import numpy as np
import pytest
import tensorflow as tf

import packnet_tf
from packnet_tf import cloning
from packnet_tf import graphs
from packnet_tf import inventory
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import UnsupportedLayerError

L = keras.layers


def sequential(shape, *layers):
    return keras.Sequential([keras.Input(shape), *layers])


LAYERS = {
    "dense": lambda: sequential((6,), L.Dense(5)),
    "dense_no_bias": lambda: sequential((6,), L.Dense(5, use_bias=False)),
    "conv1d": lambda: sequential((9, 3), L.Conv1D(4, 3)),
    "conv2d": lambda: sequential((9, 9, 3), L.Conv2D(4, 3, strides=2)),
    "conv3d": lambda: sequential((5, 5, 5, 2), L.Conv3D(3, 2)),
    "conv2d_transpose": lambda: sequential(
        (5, 5, 3), L.Conv2DTranspose(4, 3, strides=2)
    ),
    "depthwise": lambda: sequential((7, 7, 3), L.DepthwiseConv2D(3)),
    "separable": lambda: sequential((7, 7, 3), L.SeparableConv2D(4, 3)),
    "einsum_dense": lambda: sequential(
        (4, 6), L.EinsumDense("abc,cd->abd", (None, 5), bias_axes="d")
    ),
    "layer_norm": lambda: sequential((6,), L.Dense(5), L.LayerNormalization()),
    "batch_norm": lambda: sequential((6,), L.Dense(5), L.BatchNormalization()),
    "prelu": lambda: sequential((6,), L.Dense(5), L.PReLU()),
}


def random_inputs(model, batch=3):
    generator = np.random.default_rng(1)
    is_sequential = isinstance(model, keras.Sequential)
    return keras.tree.map_structure(
        lambda x: generator.normal(size=(batch, *x.shape[1:])).astype(
            "float32"
        ),
        model.inputs[0] if is_sequential else model.input,
    )


def randomize(model):
    generator = np.random.default_rng(2)
    for variable in model.trainable_variables:
        variable.assign(generator.normal(size=variable.shape))


def assert_same_outputs(model, packed, x):
    for one, other in zip(
        keras.tree.flatten(model(x)), keras.tree.flatten(packed(x))
    ):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(
        keras.tree.flatten(model.predict(x, verbose=0)),
        keras.tree.flatten(packed.predict(x, verbose=0)),
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", LAYERS)
def test_wrap_equals_the_original(name):
    model = LAYERS[name]()
    randomize(model)
    packed = packnet_tf.wrap(model, head=None)
    assert_same_outputs(model, packed, random_inputs(model))


@pytest.mark.parametrize("mask_zero", [False, True])
def test_wrap_equals_the_original_with_an_embedding(mask_zero):
    inputs = keras.Input((5,), dtype="int32")
    x = L.Embedding(11, 4, mask_zero=mask_zero)(inputs)
    x = L.GlobalAveragePooling1D()(x)
    model = keras.Model(inputs, L.Dense(3)(x))
    packed = packnet_tf.wrap(model, head=None)
    tokens = np.array([[1, 2, 0, 0, 0], [3, 4, 5, 6, 10]], "int32")
    assert_same_outputs(model, packed, tokens)


def test_wrap_takes_several_inputs_and_outputs():
    first = keras.Input((4,), name="first")
    second = keras.Input((6,), name="second")
    x = L.Concatenate()([L.Dense(5)(first), L.Dense(5)(second)])
    model = keras.Model(
        {"first": first, "second": second}, [x, L.Dense(2)(x * 2.0 + 1.0)]
    )
    packed = packnet_tf.wrap(model)
    assert packed.task is None
    assert_same_outputs(model, packed, random_inputs(model))


def nested_network():
    shared = L.Dense(6, name="shared")
    within = L.Dense(6, name="within")
    inner = sequential((6,), L.Dense(6, name="inner_dense"), L.ReLU())
    inner = sequential((6,), within, inner, within)
    inputs = keras.Input((6,))
    x = shared(inputs)
    x = inner(x)
    x = inner(shared(x))
    return keras.Model(inputs, L.Dense(3, "softmax")(x))


def test_wrap_keeps_nested_models_and_shared_layers():
    model = nested_network()
    packed = packnet_tf.wrap(model, task="one")
    keys = [
        entry.key
        for entry in packed.summary_protection(print_fn=len)
        if entry.owner is not None
    ]
    assert sorted(key.split("/")[-2] for key in keys) == [
        "inner_dense",
        "shared",
        "within",
    ]
    assert_same_outputs(model, packed, random_inputs(model))


def test_wrap_leaves_the_original_alone(network, images):
    model = network()
    before = [v.numpy() for v in model.variables]
    packed = packnet_tf.wrap(model, task="one")
    packed.compile("sgd", "sparse_categorical_crossentropy")
    packed.fit(*images, verbose=0)
    packed.prune(0.5)
    for old, new in zip(before, model.variables):
        np.testing.assert_array_equal(old, new)


def test_wrap_ignores_that_the_original_is_compiled(network):
    model = network()
    model.compile("adam", lambda y, z: keras.ops.mean(z), metrics=["mse"])
    packed = packnet_tf.wrap(model, task="one")
    assert not packed.compiled
    assert not packed.backbone.compiled


def test_wrap_takes_the_classifier_as_head(network):
    packed = packnet_tf.wrap(network(), task="digits")
    assert packed.task == "digits"
    assert [layer.name for layer in packed.heads["digits"].layers][1:] == [
        "top"
    ]
    assert packed.backbone.output.shape == (None, 12)


def test_wrap_takes_a_named_layer_as_head(network):
    packed = packnet_tf.wrap(network(), task="digits", head="dense")
    assert [layer.name for layer in packed.heads["digits"].layers][1:] == [
        "dense",
        "top",
    ]


def test_wrap_without_head_is_all_backbone(network):
    model = network()
    packed = packnet_tf.wrap(model, head=None)
    assert packed.task_names == []
    assert packed.stage is None
    assert_same_outputs(model, packed, random_inputs(model))


def test_wrap_sees_no_classifier_in_a_feature_extractor(network):
    packed = packnet_tf.wrap(network(classes=None))
    assert packed.task_names == []


def test_wrap_of_a_backbone_keeps_its_weights_for_task_1(network):
    model = network(classes=None)
    packed = packnet_tf.wrap(model)
    packed.add_task("one", units=3)
    before = model.get_layer("conv").kernel
    after = packed.backbone.get_layer("conv").layer.kernel
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    "filters", ["^conv", lambda layer: isinstance(layer, L.Conv2D)]
)
def test_filters_choose_what_is_packed(network, filters):
    packed = packnet_tf.wrap(network(), task="one", filters=filters)
    entries = packed.summary_protection(print_fn=len)
    protection = {entry.key: entry.protection for entry in entries}
    of_packed = {k for k, v in protection.items() if v == inventory.PACKED}
    assert of_packed == {"conv/kernel", "conv_no_bias/kernel"}
    assert protection["dense/kernel"] == inventory.FROZEN


def test_every_variable_is_accounted_for(network):
    model = network()
    packed = packnet_tf.wrap(model, task="one")
    entries = packed.summary_protection(print_fn=len)
    listed = {id(entry.variable) for entry in entries}
    owners = {id(e.owner) for e in entries if e.owner is not None}
    backbone = {id(variable) for variable in packed.backbone.variables}
    assert backbone == listed | owners
    assert {e.protection for e in entries} == {
        inventory.PACKED,
        inventory.FROZEN,
        inventory.SEED,
    }
    assert len({entry.key for entry in entries}) == len(entries)


def test_mixed_precision_equals_the_original():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = sequential(
            (8, 8, 1),
            L.Conv2D(4, 3),
            L.BatchNormalization(),
            L.Flatten(),
            L.Dense(3, dtype="float32"),
        )
        packed = packnet_tf.wrap(model, head=None)
        assert_same_outputs(model, packed, random_inputs(model))
    finally:
        keras.config.set_dtype_policy("float32")


@keras.saving.register_keras_serializable("wrapping_test")
class Mystery(keras.layers.Layer):
    def build(self, input_shape):
        self.table = self.add_weight(shape=(input_shape[-1], 2))

    def call(self, inputs):
        return inputs @ self.table


@keras.saving.register_keras_serializable("wrapping_test")
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = L.Dense(2)
        self.norm = L.BatchNormalization()

    def call(self, inputs, training=False):
        return self.norm(self.dense(inputs), training=training)


@keras.saving.register_keras_serializable("wrapping_test")
class SubclassedOfTwo(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.embedding = L.Embedding(7, 3)
        self.dense = L.Dense(2)

    def call(self, inputs):
        x = self.embedding(inputs["token"]) + inputs["value"]
        return [self.dense(x), x]


def subclassed_inside():
    inputs = keras.Input((4,))
    return keras.Model(inputs, Subclassed()(L.Dense(4, name="stem")(inputs)))


def subclassed_alone():
    model = Subclassed()
    model(np.ones((1, 4), "float32"))
    return model


def subclassed_as_graph():
    inputs = {
        "token": keras.Input((), name="token", dtype="int32"),
        "value": keras.Input((3,), name="value"),
    }
    return keras.Model(inputs, SubclassedOfTwo()(inputs))


def shared_across_models():
    shared = L.Dense(4, name="everywhere")
    inner = sequential((4,), L.Dense(4), shared)
    inputs = keras.Input((4,))
    return keras.Model(inputs, inner(shared(inputs)))


def subclassed_of_a_dict():
    model = SubclassedOfTwo(name="of_two")
    model({"token": np.array([1]), "value": np.ones((1, 3), "float32")})
    return model


def with_lora():
    model = sequential((4,), L.Dense(4, name="adapted"), L.Dense(4))
    model.get_layer("adapted").enable_lora(2)
    return model


@pytest.mark.parametrize(
    ("make", "packed_names"),
    [
        (
            lambda: sequential((4,), L.Dense(4, name="d"), Mystery(name="m")),
            {"d/kernel", "m/table"},
        ),
        (
            lambda: sequential((4, 4), L.LSTM(3, name="rnn")),
            {"rnn/cell/kernel", "rnn/cell/recurrent_kernel"},
        ),
        (subclassed_inside, {"stem/kernel", "subclassed/dense/kernel"}),
        (subclassed_alone, {"subclassed/dense/kernel"}),
        (
            subclassed_as_graph,
            {
                "subclassed_of_two/embedding/embeddings",
                "subclassed_of_two/dense/kernel",
            },
        ),
    ],
    ids=["own_layer", "lstm", "inside", "alone", "dict_of_inputs"],
)
def test_wrap_takes_any_layer(make, packed_names):
    model = make()
    randomize(model)
    packed = packnet_tf.wrap(model, head=None)
    entries = packed.summary_protection(print_fn=len)
    assert {e.key for e in entries if e.owner is not None} == packed_names
    if isinstance(model, Subclassed):
        x = np.ones((3, 4), "float32")
    else:
        x = random_inputs(model)
    if isinstance(x, dict):
        x["token"] = np.array([1, 2, 6], "int32")
    assert_same_outputs(model, packed, x)
    assert_same_outputs(packed.backbone, packed, x)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (with_lora, "adapted"),
        (shared_across_models, "everywhere"),
        (subclassed_of_a_dict, "of_two"),
    ],
)
def test_wrap_refuses_what_it_cannot_protect_by_name(make, named):
    with pytest.raises(UnsupportedLayerError, match=named) as caught:
        packnet_tf.wrap(make(), head=None)
    assert "Received:" in str(caught.value)


class BehindTheBack(keras.layers.Layer):
    """Counts by way of TensorFlow, which Keras does not notice."""

    def __init__(self, when, **kwargs):
        super().__init__(**kwargs)
        self.when = when

    def build(self, input_shape):
        self.count = self.add_weight(
            shape=(), initializer="zeros", trainable=False
        )

    def call(self, inputs, training=False):
        if bool(training) is self.when:
            self.count.value.assign_add(1.0)
        return inputs + self.count

    def get_config(self):
        return {**super().get_config(), "when": self.when}


class NoisyByDefault(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed = keras.random.SeedGenerator(1)

    def call(self, inputs, training=True):
        if not training:
            return inputs
        shape = keras.ops.shape(inputs)
        return inputs + keras.random.normal(shape, seed=self.seed)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: BehindTheBack(False),
        lambda: BehindTheBack(True),
        lambda: NoisyByDefault(),
    ],
)
def test_wrap_refuses_what_changes_the_outputs_unnoticed(layer):
    with pytest.raises(UnsupportedLayerError, match="Received:"):
        packnet_tf.wrap(sequential((4,), L.Dense(4), layer()), head=None)


class Around(keras.layers.Layer):
    """Hands the layer in it on as it is, which makes a copy share it."""

    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner

    def call(self, inputs):
        return self.inner(inputs)

    def get_config(self):
        return {**super().get_config(), "inner": self.inner}


def test_wrap_refuses_a_layer_whose_copy_shares_its_variables():
    network = sequential((4,), Around(L.Dense(4), name="around"))
    with pytest.raises(UnsupportedLayerError, match=r"'around'.*shares"):
        packnet_tf.wrap(network, head=None)


class _Private(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = L.Dense(4)

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, inputs):
        return self.dense(inputs)


class Stack(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.blocks = keras.Sequential([_Private(), _Private()])

    def build(self, input_shape):
        self.blocks.build(input_shape)

    def call(self, inputs):
        return self.blocks(inputs)


def test_wrap_takes_layers_whose_class_begins_with_an_underscore():
    model = sequential((4,), Stack())
    randomize(model)
    packed = packnet_tf.wrap(model, head=None)
    assert_same_outputs(model, packed, random_inputs(model))


class Tokens(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.embedding = L.Embedding(3000, 4)
        self.dense = L.Dense(2)

    def call(self, inputs):
        return self.dense(self.embedding(inputs))


class Rows(keras.Model):
    """Takes integers for a lookup, and floats."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = L.Dense(2)

    def call(self, inputs):
        rows = tf.gather(tf.eye(5), inputs["ids"])
        return self.dense(keras.ops.concatenate([rows, inputs["x"]], -1))


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_wrap_keeps_large_token_ids_of_a_subclassed_model(dtype):
    keras.config.set_dtype_policy(dtype)
    try:
        model = Tokens()
        x = np.array([[2049, 2051, 2999]])
        expected = keras.ops.cast(model(x), "float32")
        packed = packnet_tf.wrap(model, head=None)
        np.testing.assert_array_equal(
            expected, keras.ops.cast(packed(x), "float32")
        )
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.filterwarnings("ignore:When providing `inputs`")
@pytest.mark.filterwarnings("ignore:The structure of `inputs`")
def test_wrap_keeps_floats_of_a_subclassed_model_that_takes_integers_too():
    model = Rows()
    x = {
        "ids": np.array([1, 4]),
        "x": np.array([[0.25, 1.5], [-3.75, 0.5]], "float32"),
    }
    expected = model(x)
    packed = packnet_tf.wrap(model, head=None)
    np.testing.assert_array_equal(expected, packed(x))


def test_wrap_refuses_a_head_that_is_bypassed():
    inputs = keras.Input((4,))
    x = L.Dense(4)(inputs)
    y = L.ReLU()(x)
    model = keras.Model(inputs, L.Add()([L.Dense(4, name="middle")(y), x]))
    with pytest.raises(ArgumentError, match="cannot be split"):
        packnet_tf.wrap(model, task="one", head="middle")


def test_wrap_refuses_a_wrapped_model(packed):
    with pytest.raises(ArgumentError, match="wrapped already"):
        packnet_tf.wrap(packed)
    with pytest.raises(UnsupportedLayerError, match="wrapped already"):
        packnet_tf.wrap(packed.backbone, head=None)


def test_unpack_keeps_the_layers_of_the_original(network):
    model = network()
    packed = packnet_tf.wrap(model, task="one")
    plain = packed.unwrap()
    names = [layer.name for layer in model.layers]
    assert [
        layer.name
        for layer in plain.layers
        if not isinstance(layer, L.InputLayer)
    ] == names
    assert not any(
        isinstance(layer, packnet_tf.PackedLayer)
        for _, layer in graphs.walk_layers(plain)
    )


def test_unpack_nests_a_head_whose_layers_repeat():
    inputs = keras.Input((4,))
    twice = L.Dense(4, name="twice")
    head = keras.Model(inputs, [twice(inputs), twice(twice(inputs))])
    packed = packnet_tf.wrap(sequential((4,), L.Dense(4, "relu")))
    packed.add_task("one", head=head)
    x = random_inputs(packed.backbone)
    assert len(packed(x)) == 2
    assert_same_outputs(packed, packed.unwrap(), x)


@pytest.mark.parametrize("task", ["one", "stem"])
@pytest.mark.parametrize("name", ["predictions", "stem"])
def test_unpack_takes_a_head_whose_layers_are_named_as_the_backbone_s(
    name, task, tmp_path
):
    inputs = keras.Input((4,), name="x")
    model = keras.Model(inputs, L.Dense(4, "relu", name=name)(inputs))
    packed = packnet_tf.wrap(model, head=None)
    packed.add_task(
        task,
        head=keras.Sequential([L.Dense(3, name=name), L.ReLU(name="last")]),
    )
    x = random_inputs(packed.backbone)
    assert_same_outputs(packed, packed.unwrap(), x)
    packed.export_task(task, tmp_path / "plain.keras")
    plain = keras.saving.load_model(tmp_path / "plain.keras")
    assert_same_outputs(packed, plain, x)


def test_copy_model_shares_nothing(network):
    model = network()
    copy = cloning.copy_model(model, "copy")
    own = {id(variable) for variable in model.variables}
    assert not own & {id(variable) for variable in copy.variables}
    assert_same_outputs(model, copy, random_inputs(model))


def test_unpack_nests_a_head_of_the_name_of_a_layer():
    inputs = keras.Input((4,))
    twice = L.Dense(4, name="twice")
    head = keras.Model(inputs, [twice(inputs), twice(twice(inputs))])
    network = sequential((4,), L.Dense(4, name="one"), L.Dense(4, "relu"))
    packed = packnet_tf.wrap(network, head=None)
    packed.add_task("one", head=head)
    assert_same_outputs(packed, packed.unwrap(), random_inputs(network))
