import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from packnet_tf import ownership
from packnet_tf.errors import PackNetError
from packnet_tf.errors import TaskError

_TASKS = st.integers(1, 255)
_SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
_OWNERS = hnp.arrays(np.uint8, _SHAPES, elements=st.integers(0, 255))
_FEW_OWNERS = hnp.arrays(np.uint8, _SHAPES, elements=st.integers(0, 3))
_quick = settings(max_examples=60, deadline=None, database=None)

_MASKS = {
    ownership.visible_mask: lambda entry, task: 1 <= entry <= task,
    ownership.trainable_mask: lambda entry, task: entry == task,
    ownership.frozen_mask: lambda entry, task: 1 <= entry < task,
}
_each_mask = pytest.mark.parametrize(
    "mask_fn", _MASKS, ids=lambda f: f.__name__
)


def _per_entry(fn, owner, dtype):
    """Builds an array from one Python call per entry."""
    flat = [fn(int(entry)) for entry in owner.reshape(-1)]
    return np.array(flat, dtype).reshape(owner.shape)


def _assert_same(actual, expected):
    actual = np.asarray(actual)
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    np.testing.assert_array_equal(actual, expected)


@_each_mask
@given(owner=_OWNERS, task=_TASKS)
@_quick
def test_masks_match_oracle(mask_fn, owner, task):
    expected = _per_entry(
        lambda entry: _MASKS[mask_fn](entry, task), owner, bool
    )
    _assert_same(mask_fn(owner, task), expected)


@_each_mask
@pytest.mark.parametrize("task", [1, 2, 128, 254, 255])
def test_masks_same_for_numpy_and_tensorflow(mask_fn, task):
    owner = np.arange(256, dtype=np.uint8).reshape(2, 4, 8, 4)
    from_tensor = mask_fn(tf.constant(owner), task)
    assert isinstance(from_tensor, tf.Tensor)
    _assert_same(from_tensor, mask_fn(owner, task))


@_each_mask
def test_masks_work_on_variables_inside_functions(mask_fn):
    owner = np.array([[0, 1], [2, 255]], np.uint8)
    variable = tf.Variable(owner)
    traced = tf.function(lambda: mask_fn(variable, 2), jit_compile=True)
    _assert_same(traced(), mask_fn(owner, 2))


@given(owner=_OWNERS, task=_TASKS)
@_quick
def test_masks_split_the_owner_map(owner, task):
    visible = ownership.visible_mask(owner, task)
    trainable = ownership.trainable_mask(owner, task)
    frozen = ownership.frozen_mask(owner, task)
    assert not np.any(trainable & frozen)
    np.testing.assert_array_equal(visible, trainable | frozen)
    assert not np.any(visible[owner == 0])


@given(owner=_OWNERS, task=_TASKS)
@_quick
def test_claim_gives_free_entries_only(owner, task):
    before = owner.copy()
    expected = _per_entry(lambda entry: entry or task, owner, np.uint8)
    _assert_same(ownership.claim(owner, task), expected)
    _assert_same(owner, before)


@pytest.mark.parametrize("task", [0, -1, 256, 1000])
def test_claim_refuses_numbers_outside_of_a_byte(task):
    owner = np.zeros((2, 3), np.uint8)
    with pytest.raises(TaskError, match=f"Received: task={task}"):
        ownership.claim(owner, task)
    assert not owner.any()


@given(data=st.data())
@_quick
def test_release_makes_chosen_entries_free(data):
    owner = data.draw(_OWNERS)
    released = data.draw(hnp.arrays(bool, owner.shape))
    before = owner.copy()
    pairs = zip(owner.reshape(-1), released.reshape(-1))
    flat = [0 if chosen else int(entry) for entry, chosen in pairs]
    expected = np.array(flat, np.uint8).reshape(owner.shape)
    _assert_same(ownership.release(owner, released), expected)
    _assert_same(owner, before)


@given(owner=_OWNERS | _FEW_OWNERS, task=_TASKS)
@_quick
def test_pool_size_counts_owned_and_free(owner, task):
    entries = [int(entry) for entry in owner.reshape(-1)]
    size = ownership.pool_size(owner, task)
    assert isinstance(size, int)
    assert size == sum(entry in (0, task) for entry in entries)


@given(owner=_FEW_OWNERS, tasks=st.integers(3, 255))
@_quick
def test_counts_match_oracle(owner, tasks):
    entries = [int(entry) for entry in owner.reshape(-1)]
    expected = [entries.count(task) for task in range(tasks + 1)]
    _assert_same(ownership.counts(owner, tasks), np.array(expected, np.int64))


def test_counts_without_tasks_counts_free_entries():
    owner = np.zeros((3, 2), np.uint8)
    _assert_same(ownership.counts(owner, 0), np.array([6], np.int64))


def test_counts_reads_owner_maps_that_are_not_contiguous():
    owner = np.arange(6, dtype=np.uint8).reshape(2, 3).T[::-1]
    _assert_same(ownership.counts(owner, 5), np.ones(6, np.int64))


def test_long_maps_are_counted_to_the_end():
    owner = np.random.default_rng(0).integers(0, 4, (3, 50_001), np.uint8)
    expected = np.bincount(owner.reshape(-1), minlength=6)
    _assert_same(ownership.counts(owner, 5), expected)
    for number in range(6):
        assert ownership.count(owner, number) == expected[number]


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("shape", [(0,), (5,), (2, 65_536), (3, 70_001)])
def test_blocks_are_the_arrays_in_order(shape, backwards):
    arrays = [np.arange(np.prod(shape)).reshape(shape), np.ones(shape)]
    blocks = list(ownership.blocks(*arrays, backwards=backwards))
    if backwards:
        blocks.reverse()
    for i, array in enumerate(arrays):
        parts = [np.empty(0), *(block[i] for block in blocks)]
        np.testing.assert_array_equal(np.concatenate(parts), array.reshape(-1))


_ON_MAPS = {
    "claim": lambda owner: ownership.claim(owner, 3),
    "release": lambda owner: ownership.release(owner, owner == 2),
    "pool_size": lambda owner: ownership.pool_size(owner, 2),
    "counts": lambda owner: ownership.counts(owner, 3),
}


@pytest.mark.parametrize(
    "name",
    [
        "claim",
        "release",
        "pool_size",
        "counts",
    ],
)
def test_functions_same_for_numpy_and_tensorflow(name):
    owner = np.array([[0, 1, 2], [3, 2, 0]], np.uint8)
    from_tensor = _ON_MAPS[name](tf.constant(owner))
    _assert_same(from_tensor, np.asarray(_ON_MAPS[name](owner)))


@pytest.mark.parametrize("task", [1, 2, 254, 255, np.int64(7)])
def test_check_task_number_returns_valid_numbers(task):
    assert ownership.check_task_number(task) == task


@pytest.mark.parametrize("task", [0, -1, 256, 10**9, float("nan")])
def test_check_task_number_refuses_numbers_outside_of_a_byte(task):
    with pytest.raises(TaskError, match="1 to 255") as info:
        ownership.check_task_number(task)
    assert isinstance(info.value, PackNetError)
    assert isinstance(info.value, ValueError)
    assert f"Received: task={task}" in str(info.value)


def test_owner_map_holds_255_tasks():
    owner = np.zeros(256, np.uint8)
    for task in range(1, 256):
        owner = ownership.claim(owner, task)
        assert ownership.pool_size(owner, task) == 257 - task
        owner = ownership.release(owner, np.arange(256) >= task)
    np.testing.assert_array_equal(owner, [*range(1, 256), 0])
    np.testing.assert_array_equal(ownership.counts(owner, 255), np.ones(256))
    for task in range(1, 256):
        visible = ownership.visible_mask(owner, task)
        np.testing.assert_array_equal(visible, np.arange(256) < task)
