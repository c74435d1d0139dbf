"""Batches of several tasks: how many images of each, and which."""

import dataclasses

import experiments
import numpy as np
import pytest
from loading import pipelines
from methods import mixing

STEPS = (3, 1, 2)


@pytest.fixture(scope="module")
def data():
    """A large task and two small ones, the last of as few as a batch."""
    found = [experiments.make_data(name, 2 + i) for i, name in enumerate("abc")]
    return [
        found[0],
        *(
            dataclasses.replace(
                task, train=dataclasses.replace(task.train, rows=rows)
            )
            for task, rows in zip(found[1:], (np.arange(5), np.arange(8)))
        ),
    ]


@pytest.fixture(scope="module")
def pipeline():
    return pipelines.Pipeline(experiments.SIZE, 8, "flip", None, 3)


def read(batches, count):
    return list(batches.take(count).as_numpy_iterator())


def task_of(labels):
    """Returns the task of each label, of two, three and four classes."""
    return np.digitize(labels, [2, 5])


def test_an_epoch_has_as_many_images_of_each_task_as_it_has_alone(
    pipeline, data
):
    batches = read(mixing.training(pipeline, data, STEPS), 24)
    assert {len(y) for _, y in batches} == {8}
    for epoch in range(4):
        labels = [y for _, y in batches[6 * epoch : 6 * epoch + 6]]
        counts = np.bincount(task_of(np.concatenate(labels)))
        assert counts.tolist() == [8 * steps for steps in STEPS]
    # They are mixed, each epoch in another way.
    assert any(len(set(task_of(y))) > 1 for _, y in batches)
    tasks = [task_of(y).tolist() for _, y in batches]
    assert tasks[:6] != tasks[6:12]


def test_images_of_a_task_are_those_of_its_own_batches(pipeline, data):
    batches = read(mixing.training(pipeline, data, STEPS), 12)
    x, y = (np.concatenate(parts) for parts in zip(*batches))
    for index, (task, offset) in enumerate(zip(data, (0, 2, 5))):
        alone = read(pipeline.training(task), 2 * STEPS[index])
        images, labels = (np.concatenate(parts) for parts in zip(*alone))
        chosen = task_of(y) == index
        np.testing.assert_array_equal(x[chosen], images)
        np.testing.assert_array_equal(y[chosen], labels + offset)


@pytest.mark.parametrize("start", [1, 5, 6, 7, 16])
def test_a_later_start_goes_on_where_it_would_be(start, pipeline, data):
    whole = read(mixing.training(pipeline, data, STEPS), start + 3)
    later = read(mixing.training(pipeline, data, STEPS, start), 3)
    for (x, y), (same, label) in zip(later, whole[start:]):
        np.testing.assert_array_equal(x, same)
        np.testing.assert_array_equal(y, label)


def test_another_seed_mixes_otherwise(pipeline, data):
    other = dataclasses.replace(pipeline, seed=4)
    one, two = (
        np.concatenate([y for _, y in read(found, 6)])
        for found in (
            mixing.training(pipeline, data, STEPS),
            mixing.training(other, data, STEPS),
        )
    )
    assert (task_of(one) != task_of(two)).any()
