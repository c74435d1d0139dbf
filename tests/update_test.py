import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from packnet_tf import update
from packnet_tf.fused_update import FusedUpdate
from packnet_tf.update import Target

_EMA = {"use_ema": True, "ema_momentum": 0.5}

_OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=0.05),
    "adam": lambda: keras.optimizers.Adam(0.1),
    "adamw": lambda: keras.optimizers.AdamW(0.1, weight_decay=0.1),
    "ftrl": lambda: keras.optimizers.Ftrl(0.1, l1_regularization_strength=0.01),
    "ema": lambda: keras.optimizers.SGD(
        0.1, momentum=0.9, ema_overwrite_frequency=2, **_EMA
    ),
    "ema_at_the_end": lambda: keras.optimizers.Adam(0.1, **_EMA),
    "clipped": lambda: keras.optimizers.SGD(
        0.1, momentum=0.9, global_clipnorm=1.0
    ),
    "accumulated": lambda: keras.optimizers.SGD(
        0.1, momentum=0.9, gradient_accumulation_steps=2
    ),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Adam(0.1), initial_scale=2.0
    ),
    "constrained": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
}
_each_optimizer = pytest.mark.parametrize("name", _OPTIMIZERS)
_each_mode = pytest.mark.parametrize("mode", ["eager", "graph", "jit", "fused"])

_SHAPES = [(3, 3, 2, 4), (6, 5), (5,)]  # The last has no owner map.


class _Network:
    """Two packed kernels and a bias in the middle of task 2.

    Frozen entries include a negative zero and a subnormal number, which only
    an exact copy keeps. Free entries are zero.
    """

    def __init__(self, owners=(0, 1, 2), constraint=None):
        generator = np.random.default_rng(7)
        self.targets = []
        for shape in _SHAPES:
            value = generator.normal(size=shape).astype(np.float32)
            owner = generator.choice(owners, shape).astype(np.uint8)
            packed = len(shape) > 1
            if packed:
                owner.flat[:4], value.flat[:2] = 1, (-0.0, 1e-42)
                value[owner == 0] = 0
            variable = keras.Variable(value)
            if packed:
                variable.constraint = constraint
                owner = keras.Variable(owner, dtype="uint8", trainable=False)
            self.targets.append(Target(variable, owner if packed else None))

    @property
    def variables(self):
        return [target.variable for target in self.targets]

    @property
    def owners(self):
        return [target.owner for target in self.targets[:2]]

    def pair(self, gradients):
        return list(zip(gradients, self.variables))

    def values(self):
        return [variable.numpy() for variable in self.variables]

    def trainable(self, task=2):
        return [
            target.owner.numpy() == task
            if target.owner is not None
            else np.ones(target.variable.shape, bool)
            for target in self.targets
        ]


def _network(name, **kwargs):
    if name == "constrained":
        kwargs["constraint"] = keras.constraints.UnitNorm(axis=0)
    return _Network(**kwargs)


def _gradients(steps, seed=0):
    generator = np.random.default_rng(seed)
    return [
        [generator.normal(size=s).astype(np.float32) for s in _SHAPES]
        for _ in range(steps)
    ]


def _train(mode, step, gradients):
    """Makes one step per list of gradients."""
    if mode != "eager":
        step = tf.function(step, jit_compile=mode == "jit")
    for each in gradients:
        step([tf.constant(gradient) for gradient in each])


def _assert_fused(apply_gradients):
    """Asserts that the fused form has not given way to the plain one."""
    functions = apply_gradients.__self__.functions.values()
    assert functions
    assert all(functions)


def _form(mode):
    """Returns the update in its plain or its fused form."""
    if mode == "fused":
        return FusedUpdate().apply_gradients
    return update.apply_gradients


def _train_packed(mode, optimizer, network, gradients, task=2):
    optimizer.build(network.variables)
    apply_gradients = _form(mode)
    _train(
        mode,
        lambda each: apply_gradients(
            optimizer, network.pair(each), network.targets, task
        ),
        gradients,
    )
    if mode == "fused":
        _assert_fused(apply_gradients)


def _train_plain(mode, optimizer, network, gradients, task=2):
    """Zeroes the gradients as PackNet does, and leaves it at that."""
    optimizer.build(network.variables)
    masks = network.trainable(task)
    _train(
        mode,
        lambda each: optimizer.apply(
            [tf.where(mask, g, 0.0) for g, mask in zip(each, masks)],
            network.variables,
        ),
        gradients,
    )


def _finish(name, optimizer, network):
    if name.startswith("ema"):
        optimizer.finalize_variable_values(network.variables)


def _bits(value, where):
    return value[where].view(np.uint32)


def _assert_still(before, after, trainable):
    for old, new, moves in zip(before, after, trainable):
        np.testing.assert_array_equal(_bits(old, ~moves), _bits(new, ~moves))


def _assert_moved(before, after, trainable):
    for old, new, moves in zip(before, after, trainable):
        assert np.all(np.isfinite(new[moves]))
        assert np.mean(old[moves] != new[moves]) > 0.9


def _moved(before, after, where):
    return any(
        np.any(_bits(old, at) != _bits(new, at))
        for old, new, at in zip(before, after, where)
    )


@_each_mode
@_each_optimizer
def test_apply_gradients_moves_what_the_task_owns_and_no_more(name, mode):
    network, plain = _network(name), _network(name)
    optimizer, plain_optimizer = _OPTIMIZERS[name](), _OPTIMIZERS[name]()
    before, trainable = network.values(), network.trainable()
    # A constraint looks at the whole kernel, which differs after one step.
    gradients = _gradients(1 if name == "constrained" else 4)
    _train_packed(mode, optimizer, network, gradients)
    _assert_still(before, network.values(), trainable)
    _finish(name, optimizer, network)
    _assert_still(before, network.values(), trainable)
    _assert_moved(before, network.values(), trainable)

    _train_plain(mode, plain_optimizer, plain, gradients)
    _finish(name, plain_optimizer, plain)
    for new, expected, moves in zip(
        network.values(), plain.values(), trainable
    ):
        np.testing.assert_allclose(
            new[moves], expected[moves], rtol=1e-5, atol=1e-7
        )


def _change_tasks(name, mode, train):
    """Trains three stages with one optimizer and yields each of them."""
    network = _network(name, owners=(1,))
    optimizer = _OPTIMIZERS[name]()
    before = network.values()
    train(mode, optimizer, network, _gradients(3, seed=1), 1)
    yield before, network, 1

    # Task 1 lets go of half of its weights, and task 2 takes them.
    generator = np.random.default_rng(2)
    for target in network.targets[:2]:
        taken = generator.random(target.variable.shape) < 0.5
        target.owner.assign(np.where(taken, 2, 1))
        target.variable.assign(np.where(taken, 0, target.variable))
    before = network.values()
    train(mode, optimizer, network, _gradients(3, seed=3), 2)
    yield before, network, 2

    # Task 2 is pruned.
    for target in network.targets[:2]:
        free = (generator.random(target.variable.shape) < 0.5) & (
            target.owner.numpy() == 2
        )
        target.owner.assign(np.where(free, 0, target.owner))
        target.variable.assign(np.where(free, 0, target.variable))
    update.align_averages(optimizer, network.targets, 2)
    before = network.values()
    train(mode, optimizer, network, _gradients(3, seed=4), 2)
    yield before, network, 2
    _finish(name, optimizer, network)
    yield before, network, 2


@pytest.mark.parametrize(
    ("name", "mode"),
    [(name, "eager") for name in _OPTIMIZERS]
    + [
        (name, mode)
        for name in ("sgd", "adamw", "ema", "constrained")
        for mode in ("jit", "fused")
    ],
)
def test_apply_gradients_with_an_optimizer_carried_over(name, mode):
    for before, network, task in _change_tasks(name, mode, _train_packed):
        trainable = network.trainable(task)
        _assert_still(before, network.values(), trainable)
        _assert_moved(before, network.values(), trainable)


@_each_optimizer
def test_zero_gradients_alone_do_not_freeze(name):
    # The reason for all this, and the proof that the tests above can fail.
    stages = _change_tasks(name, "eager", _train_plain)
    moved = [
        _moved(before, network.values(), [~m for m in network.trainable(task)])
        for before, network, task in stages
    ]
    assert moved[-1]


@_each_mode
def test_apply_gradients_matches_numpy_for_sgd(mode):
    network = _Network()
    trainable = network.trainable()
    expected = [value.astype(np.float64) for value in network.values()]
    velocity = [np.zeros_like(value) for value in expected]
    gradients = _gradients(5)
    _train_packed(mode, _OPTIMIZERS["sgd"](), network, gradients)
    for each in gradients:
        for i, gradient in enumerate(each):
            velocity[i] = 0.9 * velocity[i] - 0.1 * gradient
            stepped = expected[i] * (1 - 0.1 * 0.05) + velocity[i]
            expected[i] = np.where(trainable[i], stepped, expected[i])
    for new, value in zip(network.values(), expected):
        np.testing.assert_allclose(new, value, rtol=1e-4, atol=1e-6)


@_each_mode
@pytest.mark.parametrize("name", ["adamw", "clipped"])
def test_apply_gradients_ignores_bad_gradients_of_frozen_entries(name, mode):
    network, reference = _Network(), _Network()
    trainable, before = network.trainable(), network.values()
    bad = np.array([np.nan, np.inf, -np.inf], np.float32)
    gradients = _gradients(3)
    spoilt = [
        [
            np.where(m, g, np.resize(bad, g.shape))
            for g, m in zip(g_s, trainable)
        ]
        for g_s in gradients
    ]
    _train_packed(mode, _OPTIMIZERS[name](), network, spoilt)
    _train_packed(mode, _OPTIMIZERS[name](), reference, gradients)
    _assert_still(before, network.values(), trainable)
    for new, expected in zip(network.values(), reference.values()):
        np.testing.assert_array_equal(new, expected)


@_each_mode
def test_apply_gradients_keeps_frozen_entries_when_training_diverges(mode):
    network = _Network()
    trainable, before = network.trainable(), network.values()
    gradients = [[np.full_like(g, np.nan) for g in _gradients(1)[0]]] * 2
    _train_packed(mode, _OPTIMIZERS["adam"](), network, gradients)
    _assert_still(before, network.values(), trainable)
    for new, moves in zip(network.values(), trainable):
        assert np.all(np.isnan(new[moves]))


@_each_mode
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_apply_gradients_keeps_every_bit(dtype, mode):
    # All values of 16 bits: infinite, subnormal, and every kind of NaN.
    bits = np.arange(2**16, dtype=np.uint16)
    bits = bits if dtype != "float32" else bits.astype(np.uint32) << 15
    values = tf.bitcast(bits, dtype)
    variable = keras.Variable(tf.zeros_like(values), dtype=dtype)
    variable.value.assign(values)
    owner = np.resize(np.array([1, 2], np.uint8), bits.shape)
    target = Target(variable, keras.Variable(owner, dtype="uint8"))
    optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.1)
    optimizer.build([variable])
    apply_gradients = _form(mode)
    _train(
        mode,
        lambda each: apply_gradients(
            optimizer, [(each[0], variable)], [target], 2
        ),
        [[tf.ones_like(values)]] * 2,
    )
    after = variable.numpy().view(bits.dtype)
    np.testing.assert_array_equal(after[owner == 1], bits[owner == 1])
    assert np.mean(after[owner == 2] != bits[owner == 2]) > 0.9


def test_apply_gradients_without_owned_entries_moves_no_kernel():
    network = _Network(owners=(0, 1))
    before = network.values()
    _train_packed("graph", _OPTIMIZERS["adamw"](), network, _gradients(3))
    for old, new in zip(before[:2], network.values()[:2]):
        np.testing.assert_array_equal(old.view(np.uint32), new.view(np.uint32))
    assert np.all(before[2] != network.values()[2])


def test_apply_gradients_leaves_owner_maps_alone():
    network = _Network()
    before = [owner.numpy() for owner in network.owners]
    _train_packed("graph", _OPTIMIZERS["adamw"](), network, _gradients(3))
    for old, owner in zip(before, network.owners):
        np.testing.assert_array_equal(old, owner.numpy())


@pytest.mark.parametrize("mode", ["graph", "fused"])
def test_apply_gradients_reads_owner_maps_in_every_step(mode):
    network = _Network()
    optimizer = _OPTIMIZERS["adamw"]()
    optimizer.build(network.variables)
    apply_gradients = _form(mode)
    step = tf.function(
        lambda each: apply_gradients(
            optimizer, network.pair(each), network.targets, 2
        )
    )
    for each in _gradients(3):
        before = network.values()
        step([tf.constant(gradient) for gradient in each])
        _assert_still(before, network.values(), network.trainable())
        for owner in network.owners:
            owner.assign(np.where(owner.numpy() == 2, 1, 2))
    assert step.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("mode", ["eager", "graph", "fused"])
def test_apply_gradients_takes_none(mode):
    network = _Network()
    apply_gradients = _form(mode)
    optimizer = _OPTIMIZERS["adamw"]()
    before, trainable = network.values(), network.trainable()
    optimizer.build(network.variables)

    def step(each):
        apply_gradients(
            optimizer, network.pair([None, *each[1:]]), network.targets, 2
        )

    with pytest.warns(UserWarning, match="Gradients do not exist"):
        _train(mode, step, _gradients(1))
    after = network.values()
    np.testing.assert_array_equal(before[0], after[0])
    _assert_still(before[1:], after[1:], trainable[1:])
    _assert_moved(before[1:], after[1:], trainable[1:])


@_each_mode
@pytest.mark.parametrize("name", [*_OPTIMIZERS, "plain"])
def test_apply_gradients_takes_slices(name, mode):
    make = _OPTIMIZERS.get(name, lambda: keras.optimizers.SGD(0.1))
    generator = np.random.default_rng(0)
    table = generator.normal(size=(7, 3)).astype(np.float32)
    owner = generator.integers(0, 3, (7, 3)).astype(np.uint8)
    values = generator.normal(size=(4, 3)).astype(np.float32)
    packed, plain = (
        Target(keras.Variable(table), keras.Variable(owner, dtype="uint8"))
        for _ in range(2)
    )
    optimizer, plain_optimizer = make(), make()
    optimizer.build([packed.variable])
    plain_optimizer.build([plain.variable])
    apply_gradients = _form(mode)

    def slices(rows, values):
        # In a graph their number is not known.
        return tf.IndexedSlices(values, rows, tf.constant(table.shape))

    def step(rows, values):
        apply_gradients(
            optimizer, [(slices(rows, values), packed.variable)], [packed], 2
        )

    def step_plain(rows, values):
        plain_optimizer.apply(
            [
                slices(
                    rows,
                    tf.where(tf.gather(owner == 2, rows), values, 0.0),
                )
            ],
            [plain.variable],
        )

    if mode != "eager":
        specs = [tf.TensorSpec([None], tf.int32), tf.TensorSpec([None, 3])]
        step, step_plain = (
            tf.function(
                function, jit_compile=mode == "jit", input_signature=specs
            )
            for function in (step, step_plain)
        )
    for rows in ([1, 5, 1, 6], [2, 1], [6, 6, 6, 3]):
        # The same row more than once, another number of rows, and the last.
        arguments = tf.constant(rows), tf.constant(values[: len(rows)])
        step(*arguments)
        step_plain(*arguments)
    if mode == "fused":
        _assert_fused(apply_gradients)
    trained, expected = packed.variable.numpy(), plain.variable.numpy()
    mine = owner == 2
    _assert_still([table], [trained], [mine])
    np.testing.assert_allclose(trained[mine], expected[mine], rtol=1e-5)
    used = np.isin(np.arange(7), [1, 2, 5, 6])[:, None] & mine
    assert np.all(trained[used] != table[used])


def test_apply_gradients_to_some_variables_keeps_the_others():
    network = _Network()
    optimizer = _OPTIMIZERS["ema"]()
    optimizer.build(network.variables)
    before, trainable = network.values(), network.trainable()
    for _, dense, bias in _gradients(4):
        some = network.pair([None, dense, bias])[1:]
        update.apply_gradients(optimizer, some, network.targets, 2)
    _assert_still(before, network.values(), trainable)


_ARRAYS = hnp.array_shapes(max_dims=4, max_side=4).flatmap(
    lambda shape: st.tuples(
        hnp.arrays(np.float32, shape),
        hnp.arrays(np.uint8, shape, elements=st.integers(0, 3)),
    )
)


@given(arrays=_ARRAYS, task=st.integers(1, 3))
@settings(max_examples=60, deadline=None, database=None)
def test_select_gradient_matches_oracle(arrays, task):
    gradient, owner = arrays
    selected = update.select_gradient(
        tf.constant(gradient), keras.Variable(owner, dtype="uint8"), task
    )
    pairs = zip(gradient.reshape(-1), owner.reshape(-1))
    flat = [g if o == task else 0.0 for g, o in pairs]
    expected = np.array(flat, np.float32).reshape(gradient.shape)
    assert selected.dtype == tf.float32
    np.testing.assert_array_equal(selected, expected)


@given(data=st.data())
@settings(max_examples=60, deadline=None, database=None)
def test_select_gradient_of_slices_matches_dense(data):
    shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=3, max_side=4))
    places = data.draw(st.lists(st.integers(0, shape[0] - 1), max_size=6))
    finite = st.floats(-100, 100, width=32)
    values = data.draw(
        hnp.arrays(np.float32, (len(places), *shape[1:]), elements=finite)
    )
    owner = data.draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, 2)))
    slices = tf.IndexedSlices(values, np.array(places, np.int64), shape)
    selected = update.select_gradient(
        slices, keras.Variable(owner, dtype="uint8"), 2
    )
    assert isinstance(selected, tf.IndexedSlices)
    np.testing.assert_array_equal(selected.indices, places)
    assert tuple(selected.dense_shape) == shape
    dense, expected = np.zeros(shape), np.zeros(shape)
    np.add.at(dense, places, selected.values.numpy())
    np.add.at(expected, places, values)
    np.testing.assert_array_equal(dense, np.where(owner == 2, expected, 0))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_select_gradient_of_slices_drops_what_is_not_finite(bad):
    owner = keras.Variable([[1, 2], [2, 1]], dtype="uint8")
    slices = tf.IndexedSlices(tf.fill((1, 2), bad), tf.constant([1]))
    selected = update.select_gradient(slices, owner, 2)
    np.testing.assert_array_equal(selected.values, [[bad, 0.0]])
    assert selected.dense_shape is None


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_select_gradient_keeps_the_dtype(dtype):
    owner = keras.Variable([1, 2], dtype="uint8")
    selected = update.select_gradient(tf.ones(2, dtype), owner, 2)
    assert selected.dtype == dtype
    np.testing.assert_array_equal(tf.cast(selected, "float32"), [0, 1])


def test_select_gradient_without_an_owner_map_changes_nothing():
    for gradient in (
        tf.ones(3),
        tf.IndexedSlices(tf.ones((1, 3)), tf.constant([0])),
    ):
        assert update.select_gradient(gradient, None, 2) is gradient


def test_select_gradient_of_none_is_none():
    owner = keras.Variable([1, 2], dtype="uint8")
    assert update.select_gradient(None, owner, 2) is None
    assert update.select_gradient(None, None, 2) is None


@pytest.mark.parametrize("wrapped", [False, True])
def test_moving_averages_belong_to_their_variables(wrapped):
    network = _Network()
    inner = optimizer = _OPTIMIZERS["ema"]()
    if wrapped:
        optimizer = keras.optimizers.LossScaleOptimizer(inner)
    assert update.moving_averages(optimizer) == {}
    optimizer.build(network.variables)
    averages = update.moving_averages(optimizer)
    assert set(averages) == {id(variable) for variable in network.variables}
    for variable in network.variables:
        assert averages[id(variable)].shape == variable.shape
        assert averages[id(variable)] is not variable


def test_moving_averages_of_other_optimizers_are_none():
    network = _Network()
    optimizer = _OPTIMIZERS["adam"]()
    optimizer.build(network.variables)
    assert update.moving_averages(optimizer) == {}
    assert update.moving_averages(None) == {}


def test_align_averages_makes_averages_of_still_entries_equal():
    network = _Network()
    optimizer = _OPTIMIZERS["ema"]()
    optimizer.build(network.variables)
    averages = update.moving_averages(optimizer)
    for average in averages.values():
        average.assign(np.full(average.shape, 5.0))
    update.align_averages(optimizer, network.targets, 2)
    for target, moves in zip(network.targets, network.trainable()):
        expected = np.where(moves, 5.0, target.variable.numpy())
        average = averages[id(target.variable)].numpy()
        np.testing.assert_array_equal(average, expected.astype(np.float32))


@pytest.mark.parametrize("optimizer", [None, "sgd"])
def test_align_averages_without_averages_does_nothing(optimizer):
    network = _Network()
    before = network.values()
    optimizer = optimizer and _OPTIMIZERS[optimizer]()
    update.align_averages(optimizer, network.targets, 2)
    update.seed_averages(optimizer)
    for old, new in zip(before, network.values()):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("wrapped", [False, True])
def test_seed_averages_begins_at_the_weights(wrapped):
    network = _Network()
    optimizer = _OPTIMIZERS["ema_at_the_end"]()
    if wrapped:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    update.seed_averages(optimizer)
    optimizer.build(network.variables)
    update.seed_averages(optimizer)
    before = network.values()
    getattr(optimizer, "inner_optimizer", optimizer).finalize_variable_values(
        network.variables
    )
    for old, new in zip(before, network.values()):
        np.testing.assert_array_equal(old, new)


def test_updates_work_under_a_strategy():
    strategy = tf.distribute.MirroredStrategy(["/cpu:0"])
    with strategy.scope():
        network = _Network()
        optimizer = _OPTIMIZERS["ema_at_the_end"]()
        optimizer.build(network.variables)
    before, trainable = network.values(), network.trainable()

    def in_replica(each):
        # Reduction needs gradients with a device, which arguments lack.
        gradients = [tf.identity(gradient) for gradient in each]
        update.apply_gradients(
            optimizer, network.pair(gradients), network.targets, 2
        )

    def step(each):
        strategy.run(in_replica, (each,))

    _train("graph", step, _gradients(3))
    _assert_still(before, network.values(), trainable)
    _assert_moved(before, network.values(), trainable)
    with strategy.scope():
        update.align_averages(optimizer, network.targets, 3)
    averages = update.moving_averages(optimizer)
    for target in network.targets[:2]:
        np.testing.assert_array_equal(
            averages[id(target.variable)].numpy(), target.variable.numpy()
        )
