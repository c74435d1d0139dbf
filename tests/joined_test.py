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


def make_larger(dtype=np.float32):
    """Makes a task of six images of 11 pixels."""
    images = np.random.default_rng(0).random((6, 11, 11, 3), np.float32)
    if dtype == np.uint8:
        images = (images * 255).astype(np.uint8)
    part = datasets.Part.whole(images, np.arange(6, dtype=np.int32) % 2)
    return datasets.Dataset("large", "x", ("a", "b"), part, part, part)


def test_smaller_images_are_in_the_middle_and_floats_win(data):
    other = make_larger()
    train = joined.join([data[0], other], "both").train
    assert train.images.shape == (30, 11, 11, 3)
    assert joined.join(data, "both").train.sides is None
    np.testing.assert_array_equal(train.sides, [8] * 24 + [11] * 6)
    x, y = train.take(np.array([0, 29]))
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x[1], other.train.images[5])
    np.testing.assert_array_equal(
        x[0, 1:9, 1:9], data[0].train.take([0])[0][0] / np.float32(255)
    )
    assert x[0].sum() == pytest.approx(x[0, 1:9, 1:9].sum())
    assert list(y) == [0, 3]


def windows(image, size, padding):
    """Returns where each cut of an image is, by its bytes."""
    sides = [(padding, padding)] * 2
    image = np.pad(image, [*sides, (0, 0)], "reflect")
    places = range(len(image) - size + 1)
    return {
        np.ascontiguousarray(
            image[i : i + size, j : j + size][:, ::step]
        ).tobytes(): (i, j)
        for i in places
        for j in places
        for step in (1, -1)
    }


@pytest.mark.parametrize(("size", "padding"), [(8, 0), (7, 0), (8, 2)], ids=str)
def test_each_image_is_cut_at_random_from_its_own_size(size, padding, data):
    whole = joined.join([data[0], make_larger(np.uint8)], "both")
    pipeline = pipelines.Pipeline(
        size, 30, "crop_flip", seed=3, padding=padding
    )
    found = list(pipeline.training(whole).take(4).as_numpy_iterator())
    known = {8: {}, 11: {}}
    for row, side in enumerate(whole.train.sides):
        (image,), _ = whole.train.take([row])
        start = (11 - side) // 2
        own = image[start : start + side, start : start + side]
        known[int(side)] |= windows(own, size, padding)
    places = {8: set(), 11: set()}
    for x, y in found:
        for cut, label in zip(np.rint(x * 255).astype(np.uint8), y):
            side = 8 if label < 2 else 11
            places[side].add(known[side][cut.tobytes()])
    for side, seen in places.items():
        count = side + 2 * padding - size + 1
        assert len(seen) > min(count**2, 24) / 2
    # From a later start they are those that would follow.
    (later,) = pipeline.training(whole, 3).take(1).as_numpy_iterator()
    np.testing.assert_array_equal(later[0], found[3][0])


@pytest.mark.parametrize("augmentation", ["none", "flip"])
def test_nothing_around_an_image_is_seen_without_crops(augmentation, data):
    part = datasets.Part.whole(
        np.full((4, 8, 8, 3), 255, np.uint8), np.zeros(4, np.int32)
    )
    white = dataclasses.replace(data[0], train=part, val=part, test=part)
    whole = joined.join([white, make_larger(np.uint8)], "both")
    pipeline = pipelines.Pipeline(8, 10, augmentation)
    for batches in (
        pipeline.training(whole).take(1),
        pipeline.evaluation(whole, whole.test),
    ):
        ((x, y),) = batches.as_numpy_iterator()
        assert x.shape == (10, 8, 8, 3)
        np.testing.assert_array_equal(x[y < 2], 1.0)


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
