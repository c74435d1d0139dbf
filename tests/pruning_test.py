import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import all_values
from helpers import assert_same_values
from helpers import compile_model
from helpers import two_devices

import packnet_tf
from packnet_tf import Stage
from packnet_tf import criteria
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import StageError

L = keras.layers
SCOPES = ("layer", "global")

each_scope = pytest.mark.parametrize("scope", SCOPES)
each_criterion = pytest.mark.parametrize("criterion", criteria.names())


class ByKernel(criteria.Criterion):
    """Scores by what a function makes of the kernel."""

    def __init__(self, function):
        self.function = function

    def score(self, weight):
        return self.function(weight.kernel)


class Slope(criteria.Criterion):
    """Scores by the mean gradient; remembers what it saw."""

    gradient = "mean"

    def __init__(self):
        self.seen = []

    def score(self, weight):
        self.seen.append(weight)
        return weight.gradient


def packed_entries(model):
    return [
        entry
        for entry in model.summary_protection(print_fn=len)
        if entry.owner is not None
    ]


def owner_maps(model):
    return [entry.owner.numpy() for entry in packed_entries(model)]


def kernels(model):
    return [entry.variable.numpy() for entry in packed_entries(model)]


def shares(pools, fraction, scope):
    """Returns how many entries of each pool are released, or of all."""
    if scope == "global":
        return round(fraction * sum(pools))
    return [round(fraction * pool) for pool in pools]


def free(model, scope):
    found = [int((owner == 0).sum()) for owner in owner_maps(model)]
    return sum(found) if scope == "global" else found


def flat(arrays):
    return np.concatenate([array.reshape(-1) for array in arrays])


@each_scope
@each_criterion
def test_release_is_exact_task_after_task(
    criterion, scope, packed, images, finish_task
):
    x, y = images
    pools = [owner.size for owner in owner_maps(packed)]
    for task, fraction in enumerate([0.55, 0.3], 1):
        if task > 1:
            packed.add_task("two", units=4)
        packed.fit(x, y, batch_size=16, verbose=0)
        owners, before = owner_maps(packed), kernels(packed)
        count = packed.prune(fraction, criterion, scope, images)
        assert free(packed, scope) == shares(pools, fraction, scope)
        assert count == np.sum(shares(pools, fraction, scope))
        assert packed.stage is Stage.RETRAIN
        assert packed.sparsity == fraction
        for old, new, kernel, now in zip(
            owners, owner_maps(packed), before, kernels(packed)
        ):
            released = new == 0
            np.testing.assert_array_equal(old[~released], new[~released])
            np.testing.assert_array_equal(kernel[~released], now[~released])
            assert not now[released].any()
        packed.fit(x, y, batch_size=16, verbose=0)
        packed.freeze_task()
        pools = [int((owner == 0).sum()) for owner in owner_maps(packed)]
    assert list(packed.verify()) == ["one", "two"]


@each_scope
@each_criterion
def test_release_in_steps_keeps_what_was_released(
    criterion, scope, packed, images
):
    chosen = criteria.get(criterion)
    pools = [owner.size for owner in owner_maps(packed)]
    before = flat(owner_maps(packed)) == 0
    for fraction in (0.0, 0.2, 0.2, 0.5):
        packed.prune(fraction, chosen, scope, images)
        assert free(packed, scope) == shares(pools, fraction, scope)
        after = flat(owner_maps(packed)) == 0
        assert not np.any(before & ~after)
        before = after


def test_global_release_takes_the_lowest_of_all(packed):
    before = np.abs(flat(kernels(packed)))
    packed.prune(0.4, scope="global")
    expected = np.zeros(before.size, bool)
    count = round(0.4 * before.size)
    expected[np.argsort(before, kind="stable")[:count]] = True
    np.testing.assert_array_equal(flat(owner_maps(packed)) == 0, expected)


def test_global_ties_go_by_the_order_of_the_variables(packed):
    count = packed.prune(
        0.01, ByKernel(lambda kernel: np.zeros(kernel.shape)), "global"
    )
    released = flat(owner_maps(packed)) == 0
    np.testing.assert_array_equal(np.flatnonzero(released), np.arange(count))


@each_scope
def test_taylor_takes_the_lowest_products(scope, packed, images):
    x, y = images
    variables = [entry.variable for entry in packed_entries(packed)]

    @tf.function
    def gradients():
        with tf.GradientTape() as tape:
            loss = packed.compute_loss(y=y, y_pred=packed(x, training=False))
        return tape.gradient(loss, [v.value for v in variables])

    scores = [
        np.abs(kernel * gradient.numpy())
        for kernel, gradient in zip(kernels(packed), gradients())
    ]
    packed.prune(0.4, "taylor", scope, (x, y))
    owners = owner_maps(packed)
    if scope == "global":
        scores, owners = [flat(scores)], [flat(owners)]
    for values, owner in zip(scores, owners):
        assert values[owner == 0].max() <= values[owner == 1].min()


def test_taylor_is_the_same_for_each_kind_of_data(network, images):
    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return images

    found = []
    for data in (
        images,
        tf.data.Dataset.from_tensor_slices(images).batch(32),
        Batches(),
    ):
        keras.utils.set_random_seed(1)
        model = packnet_tf.wrap(network(), task="one")
        compile_model(model)
        model.prune(0.5, "taylor", "global", data)
        found.append(owner_maps(model))
    for other in found[1:]:
        for one, two in zip(found[0], other):
            np.testing.assert_array_equal(one, two)


def test_a_criterion_sees_each_weight_and_its_gradient(packed, images):
    criterion = Slope()
    before = kernels(packed)
    packed.prune(0.5, criterion, "layer", images)
    entries = packed_entries(packed)
    assert [weight.key for weight in criterion.seen] == [e.key for e in entries]
    for weight, kernel in zip(criterion.seen, before):
        np.testing.assert_array_equal(weight.kernel, kernel)
        assert weight.gradient.shape == kernel.shape
        assert (weight.gradient < 0).any()


class Reuse(criteria.Criterion):
    """Writes all its scores to the same memory."""

    def __init__(self, whole):
        self.memory = {} if whole else np.empty(10**5, np.float32)

    def score(self, weight):
        shape = weight.kernel.shape
        if isinstance(self.memory, dict):
            scores = self.memory.setdefault(shape, np.empty(shape, np.float32))
        else:
            scores = self.memory[: np.prod(shape)].reshape(shape)
        return np.abs(weight.kernel, out=scores)


@each_scope
@pytest.mark.parametrize("whole", [True, False])
def test_a_criterion_may_use_its_memory_again(whole, scope):
    found = []
    for criterion in (Reuse(whole), "magnitude"):
        keras.utils.set_random_seed(1)
        layers = [L.Dense(8, "relu") for _ in range(4)]
        model = packnet_tf.wrap(
            keras.Sequential(
                [keras.Input((8,)), *layers, L.Dense(3, "softmax")]
            ),
            task="one",
        )
        model.prune(0.5, criterion, scope)
        found.append(flat(owner_maps(model)))
    np.testing.assert_array_equal(*found)


@each_scope
def test_a_criterion_cannot_change_the_weights(scope, packed):
    before = all_values(packed)
    with pytest.raises(ValueError, match="read-only"):
        packed.prune(0.5, ByKernel(lambda k: np.abs(k, out=k)), scope)
    assert_same_values(before, all_values(packed))
    # One that returns the weights themselves is no harm.
    packed.prune(0.5, ByKernel(lambda kernel: kernel), scope)
    assert_same_values(
        [
            np.where(o == 0, 0, k)
            for o, k in zip(owner_maps(packed), kernels(packed))
        ],
        kernels(packed),
    )


@pytest.mark.parametrize("jit", [False, True])
def test_what_a_criterion_keeps_does_not_change(jit, packed, images):
    criterion = Slope()
    compile_model(packed, jit_compile=jit)
    before = kernels(packed)
    packed.prune(0.5, criterion, "layer", images)
    packed.fit(*images, verbose=0)
    for weight, kernel in zip(criterion.seen, before):
        np.testing.assert_array_equal(weight.kernel, kernel)


def test_random_repeats_with_the_global_seed(network):
    def prune(seed):
        keras.utils.set_random_seed(1)
        model = packnet_tf.wrap(network(), task="one")
        keras.utils.set_random_seed(seed)
        model.prune(0.5, "random")
        return flat(owner_maps(model)).tobytes()

    assert prune(1) == prune(1)
    assert prune(1) != prune(2)


@each_scope
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_taylor_under_mixed_precision(policy, scope, network, images):
    keras.config.set_dtype_policy(policy)
    try:
        model = packnet_tf.wrap(network(), task="one")
    finally:
        keras.config.set_dtype_policy("float32")
    compile_model(model)
    model.fit(*images, verbose=0)
    pools = [owner.size for owner in owner_maps(model)]
    model.prune(0.5, "taylor", scope, images)
    assert free(model, scope) == shares(pools, 0.5, scope)
    model.fit(*images, verbose=0)


@each_scope
def test_taylor_under_a_strategy(scope, network, images):
    strategy = two_devices()
    with strategy.scope():
        model = packnet_tf.wrap(network(), task="one")
        compile_model(model)
    model.fit(*images, batch_size=16, verbose=0)
    pools = [owner.size for owner in owner_maps(model)]
    model.prune(0.5, "taylor", scope, images)
    assert free(model, scope) == shares(pools, 0.5, scope)
    model.fit(*images, batch_size=16, verbose=0)
    assert free(model, scope) == shares(pools, 0.5, scope)


def dense(model):
    return packed_entries(model)[-1].variable


def small_dense(model):
    """Makes all entries of one weight the lowest."""
    dense(model).assign(dense(model) * 1e-6)


def test_global_release_warns_of_a_weight_that_keeps_nothing(packed):
    small_dense(packed)
    size = int(np.prod(dense(packed).shape))
    total = sum(owner.size for owner in owner_maps(packed))
    fraction = (size + 1) / total
    before = all_values(packed)
    with pytest.raises(UserWarning, match="dense/kernel"):
        packed.prune(fraction, scope="global")
    assert_same_values(before, all_values(packed))
    packed.prune((size - 1) / total, scope="global")
    with pytest.warns(UserWarning, match="keeps no entry") as caught:
        packed.prune(fraction, scope="global")
    assert caught[0].filename == __file__
    assert (owner_maps(packed)[-1] == 0).all()
    packed.prune(fraction + 0.1, scope="global")  # Says it once.


def global_before(model, x, y):
    small_dense(model)
    model.prune(0.5, scope="global")


def without_labels(x, y):
    return tf.data.Dataset.from_tensor_slices(x).batch(8)


REFUSED = {
    "layer_after_global": (
        global_before,
        lambda m, x, y: m.prune(0.55, scope="layer"),
        ArgumentError,
        "global.*in 'dense/kernel' .* below",
    ),
    "unknown_scope": (
        lambda m, x, y: None,
        lambda m, x, y: m.prune(0.5, scope="model"),
        ArgumentError,
        "scope='model'",
    ),
    "no_data": (
        lambda m, x, y: None,
        lambda m, x, y: m.prune(0.5, "taylor"),
        ArgumentError,
        "data=None",
    ),
    "no_labels": (
        lambda m, x, y: None,
        lambda m, x, y: m.prune(0.5, "taylor", data=without_labels(x, y)),
        ArgumentError,
        "x alone",
    ),
    "not_finite": (
        lambda m, x, y: None,
        lambda m, x, y: m.prune(0.5, "taylor", "global", (x * np.inf, y)),
        ArgumentError,
        "finite",
    ),
    "frozen": (
        lambda m, x, y: m.freeze_task(),
        lambda m, x, y: m.prune(0.5, "taylor", "global", (x, y)),
        StageError,
        "frozen",
    ),
    "lower_fraction": (
        lambda m, x, y: m.prune(0.5, scope="global"),
        lambda m, x, y: m.prune(0.4, scope="global"),
        StageError,
        "only grows",
    ),
    "scores_of_another_shape": (
        lambda m, x, y: None,
        lambda m, x, y: m.prune(0.5, ByKernel(np.ravel), "global"),
        ArgumentError,
        "one score per weight",
    ),
    "scores_that_are_no_numbers": (
        lambda m, x, y: None,
        lambda m, x, y: m.prune(
            0.5, ByKernel(lambda kernel: kernel.astype(str)), "global"
        ),
        ArgumentError,
        "returns numbers",
    ),
    "a_criterion_that_fails": (
        lambda m, x, y: None,
        lambda m, x, y: m.prune(0.5, ByKernel(lambda kernel: 1 / 0), "layer"),
        ZeroDivisionError,
        None,
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_prune_changes_nothing(case, packed, images):
    prepare, act, error, match = REFUSED[case]
    prepare(packed, *images)
    before = all_values(packed), packed.get_config()
    with pytest.raises(error, match=match) as caught:
        act(packed, *images)
    if match is not None:
        assert "Received:" in str(caught.value)
    assert_same_values(before[0], all_values(packed))
    assert before[1] == packed.get_config()


def odd_model():
    """Makes a model of two packed weights with three entries each."""
    model = packnet_tf.wrap(
        keras.Sequential(
            [
                keras.Input((3,)),
                L.Dense(1, "relu", name="first"),
                L.Dense(3, "relu", name="second"),
                L.Dense(2, "softmax"),
            ]
        ),
        task="one",
    )
    compile_model(model)
    return model


def test_global_after_layer_refuses_to_take_back_what_rounding_gave():
    model = odd_model()
    assert model.prune(0.5) == 4
    before = all_values(model)
    with pytest.raises(ArgumentError, match=r"global.*, 1 weights below"):
        model.prune(0.5, scope="global")
    assert_same_values(before, all_values(model))
    assert model.prune(0.7, scope="global") == 0
    assert free(model, "global") == 4


def test_taylor_asks_for_compiling(network, images):
    model = packnet_tf.wrap(network(), task="one")
    before = all_values(model)
    with pytest.raises(StageError, match="compile"):
        model.prune(0.5, "taylor", data=images)
    assert_same_values(before, all_values(model))
    assert model.stage is Stage.TRAIN


def test_a_globally_pruned_model_survives_saving(packed, images, tmp_path):
    x, y = images
    packed.prune(0.5, scope="global")
    packed.fit(x, y, verbose=0)
    packed.save(tmp_path / "packed.keras")
    loaded = packnet_tf.load_model(tmp_path / "packed.keras")
    assert_same_values(all_values(packed), all_values(loaded))
    assert loaded.sparsity == 0.5
    for model in (packed, loaded):
        model.prune(0.6, "taylor", "global", images)
    assert_same_values(all_values(packed), all_values(loaded))
    np.testing.assert_array_equal(
        packed.predict(x, verbose=0), loaded.predict(x, verbose=0)
    )


@each_scope
def test_weights_load_whatever_the_scope(scope, packed, images, tmp_path):
    packed.prune(0.5, scope=scope)
    packed.fit(*images, verbose=0)
    packed.save_weights(tmp_path / "packed.weights.h5")
    before = all_values(packed)
    packed.fit(*images, verbose=0)
    packed.load_weights(tmp_path / "packed.weights.h5")
    assert_same_values(before, all_values(packed))
    packed.freeze_task()
    packed.save_weights(tmp_path / "packed.weights.h5")
    packed.load_weights(tmp_path / "packed.weights.h5")


@pytest.mark.parametrize("excess", [1, -1])
@each_scope
def test_weights_with_one_entry_too_many_are_refused(
    excess, scope, packed, tmp_path
):
    packed.prune(0.5, scope=scope)
    owner = packed_entries(packed)[0].owner
    right = owner.numpy()
    wrong = right.copy()
    index = np.flatnonzero(right.reshape(-1) == (1 if excess > 0 else 0))[0]
    wrong.reshape(-1)[index] = 0 if excess > 0 else 1
    owner.assign(wrong)
    packed.save_weights(tmp_path / "wrong.weights.h5")
    owner.assign(right)
    before = all_values(packed)
    with pytest.raises(StageError, match=r"Received: .* expected"):
        packed.load_weights(tmp_path / "wrong.weights.h5")
    assert_same_values(before, all_values(packed))
