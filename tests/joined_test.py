"""Several tasks as one."""

import dataclasses

import experiments
import numpy as np
import pytest
from loading import datasets
from loading import joined
from loading import pipelines


@pytest.fixture
def data():
    return [experiments.make_data("one", 2), experiments.make_data("two", 3)]


def test_images_and_labels_stand_side_by_side(data):
    whole = joined.join(data, "both")
    assert whole.name == "both"
    assert whole.class_names == (
        "one/c0",
        "one/c1",
        "two/c0",
        "two/c1",
        "two/c2",
    )
    for which in ("train", "val", "test"):
        parts = [getattr(task, which) for task in data]
        x, y = getattr(whole, which).take(np.arange(2 * len(parts[0])))
        expected = [part.take(np.arange(len(part))) for part in parts]
        np.testing.assert_array_equal(
            x, np.concatenate([images for images, _ in expected])
        )
        np.testing.assert_array_equal(
            y, [*expected[0][1], *(expected[1][1] + 2)]
        )
        assert y.dtype == np.int32
        assert x.dtype == np.uint8


def test_images_can_be_had_in_any_order(data):
    train = joined.join(data, "both").train
    assert len(train) == 48
    everything, labels = train.take(np.arange(48))
    places = np.random.default_rng(0).integers(0, 48, 100)
    x, y = train.take(places)
    np.testing.assert_array_equal(x, everything[places])
    np.testing.assert_array_equal(y, labels[places])
    x, y = train.take(np.zeros(0, np.int64))
    assert x.shape == (0, 8, 8, 3)


def test_pixels_of_a_permuted_task_stay_permuted(data):
    order = np.random.default_rng(0).permutation(64)
    permuted = dataclasses.replace(
        data[1], train=dataclasses.replace(data[1].train, order=order)
    )
    x, _ = joined.join([data[0], permuted], "both").train.take([25])
    np.testing.assert_array_equal(x, permuted.train.take([1])[0])
    assert (x != data[1].train.take([1])[0]).any()


def test_larger_images_are_cut_and_floats_win(data):
    images = np.random.default_rng(0).random((6, 10, 10, 3), np.float32)
    large = datasets.Part.whole(images, np.arange(6, dtype=np.int32) % 2)
    other = datasets.Dataset("large", "x", ("a", "b"), large, large, large)
    train = joined.join([data[0], other], "both").train
    assert train.images.shape == (30, 8, 8, 3)
    x, y = train.take(np.array([0, 29]))
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x[1], images[5, 1:9, 1:9])
    np.testing.assert_array_equal(
        x[0], data[0].train.take([0])[0][0] / np.float32(255)
    )
    assert list(y) == [0, 3]


def test_a_pipeline_reads_them(data):
    whole = joined.join(data, "both")
    pipeline = pipelines.Pipeline(8, 10, "flip", None, 3)
    batches = list(pipeline.evaluation(whole, whole.test))
    labels = np.concatenate([y for _, y in batches])
    np.testing.assert_array_equal(
        labels,
        [
            *data[0].test.take(np.arange(8))[1],
            *data[1].test.take(np.arange(8))[1] + 2,
        ],
    )
    seen = np.concatenate([y for _, y in pipeline.training(whole).take(24)])
    # Five passes over all 48.
    np.testing.assert_array_equal(
        np.bincount(seen), 5 * np.array([12, 12, 8, 8, 8])
    )


def test_steps_are_of_all_tasks(data):
    assert joined.steps_of(data, 48) == 1
    assert joined.steps_of(data, 47) == 2
    assert joined.steps_of(data[:1], 5) == 5
