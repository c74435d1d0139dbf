import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from loading import augmentation
from loading import datasets
from loading import images
from loading import pipelines


@pytest.fixture
def data():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (20, 8, 8, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(20)  # Which one it is.
    labels = np.arange(20, dtype=np.int32) % 4

    def part(rows):
        return datasets.Part(images, labels, np.asarray(rows))

    return datasets.Dataset(
        "set",
        "npz:set.npz",
        tuple("abcd"),
        part(range(12)),
        part([17, 13]),
        part([18, 19, 14]),
    )


def batches(pipeline, data, count):
    found = pipeline.training(data).take(count).as_numpy_iterator()
    return list(found)


def test_an_epoch_has_each_training_example_once(data):
    found = batches(pipelines.Pipeline(8, 4), data, 6)
    for start in (0, 3):
        x = np.concatenate([x for x, _ in found[start : start + 3]])
        y = np.concatenate([y for _, y in found[start : start + 3]])
        which = np.rint(x[:, 0, 0, 0] * 255).astype(int)
        assert sorted(which) == list(range(12))
        np.testing.assert_array_equal(y, which % 4)
        np.testing.assert_array_equal(
            np.rint(x * 255), data.train.images[which]
        )
    assert (found[0][0] != found[3][0]).any()


@pytest.mark.parametrize(
    "augmentation",
    [
        # Slow to trace; those that follow from a later start are the same too.
        pytest.param(name, marks=pytest.mark.slow)
        if name == "randaugment"
        else name
        for name in pipelines.AUGMENTATIONS
    ],
)
def test_the_same_seed_gives_the_same_batches(augmentation, data):
    def run(seed):
        pipeline = pipelines.Pipeline(6, 4, augmentation, seed=seed)
        return [x for x, _ in batches(pipeline, data, 5)]

    one, other, third = run(1), run(1), run(2)
    for first, second in zip(one, other, strict=True):
        assert first.shape == (4, 6, 6, 3)
        assert 0.0 <= first.min() <= first.max() <= 1.0
        np.testing.assert_array_equal(first, second)
    assert any((a != b).any() for a, b in zip(one, third))


def test_crops_and_flips_are_of_the_image(data):
    pipeline = pipelines.Pipeline(6, 12, "crop_flip", seed=3)
    (found,) = [x for x, _ in batches(pipeline, data, 1)]
    windows = {
        (np.rint(view) if not flip else np.rint(view)[:, ::-1]).tobytes()
        for image in data.train.images[:12].astype(np.float32)
        for i in range(3)
        for j in range(3)
        for view in [image[i : i + 6, j : j + 6]]
        for flip in (False, True)
    }
    found = np.rint(found * 255).astype(np.float32)
    assert all(np.ascontiguousarray(x).tobytes() in windows for x in found)


def test_padded_crops_show_the_image_and_its_mirror(data):
    pipeline = pipelines.Pipeline(8, 12, "crop_flip", seed=3, padding=2)
    (found,) = [x for x, _ in batches(pipeline, data, 1)]
    padded = np.pad(
        data.train.images[:12], [(0, 0), (2, 2), (2, 2), (0, 0)], "reflect"
    )
    windows = {
        np.ascontiguousarray(view[:, ::step]).tobytes(): (i, j)
        for image in padded
        for i in range(5)
        for j in range(5)
        for view in [image[i : i + 8, j : j + 8]]
        for step in (1, -1)
    }
    found = np.rint(found * 255).astype(np.uint8)
    places = {windows[np.ascontiguousarray(x).tobytes()] for x in found}
    assert len(places) > 4
    ((tested, _),) = pipelines.Pipeline(
        8, 3, "crop_flip", padding=2
    ).evaluation(data, data.test)
    np.testing.assert_array_equal(
        np.rint(tested * 255), data.test.images[[18, 19, 14]]
    )


def test_evaluation_keeps_the_order_and_cuts_the_middle(data):
    pipeline = pipelines.Pipeline(
        6, 2, "crop_flip", preprocess=lambda x: x * 2.0
    )
    found = list(pipeline.evaluation(data, data.test).as_numpy_iterator())
    assert [len(x) for x, _ in found] == [2, 1]
    x = np.concatenate([x for x, _ in found])
    expected = data.test.images[[18, 19, 14], 1:7, 1:7] / np.float32(255) * 2
    np.testing.assert_allclose(x, expected, rtol=1e-6)
    np.testing.assert_array_equal(
        np.concatenate([y for _, y in found]), [2, 3, 2]
    )


@pytest.mark.parametrize("size", [6, 8])
def test_raw_images_become_what_evaluation_makes_of_them(size, data):
    pipeline = pipelines.Pipeline(size, 3, preprocess=lambda x: x * 2.0 - 1.0)
    ((expected, _),) = pipeline.evaluation(data, data.test)
    inputs = pipeline.inputs(data)
    raw = data.test.images[[18, 19, 14]]
    np.testing.assert_array_equal(inputs(raw, training=False), expected)
    larger = np.repeat(np.repeat(raw, 3, axis=1), 2, axis=2)
    assert inputs(larger, training=False).shape == expected.shape


@pytest.mark.parametrize("boxed", [False, True])
@pytest.mark.parametrize("shape", [(31, 50), (50, 31)])
def test_raw_images_of_any_shape_become_what_is_stored_of_them(
    shape, boxed, data
):
    """Up to the rounding of the stored one to whole numbers."""
    generator = np.random.default_rng(0)
    raw = generator.integers(0, 256, (*shape, 3), np.uint8)
    box = (0.0, 0.0, 1.0, 1.0) if boxed else None
    stored = images.resize(raw, 8, 3, box)
    inputs = pipelines.Pipeline(8, 1).inputs(
        dataclasses.replace(data, boxed=boxed)
    )
    found = np.asarray(inputs(raw[np.newaxis], training=False))[0]
    np.testing.assert_allclose(found * 255, stored, atol=1)


@pytest.mark.parametrize(
    ("augmentation", "seed"),
    [
        pytest.param(name, seed, marks=pytest.mark.slow)
        if (name, seed) == ("randaugment", 0)
        else (name, seed)
        for name in pipelines.AUGMENTATIONS
        for seed in (0, 5)
    ],
)
def test_batches_from_a_later_start_are_those_that_follow(
    augmentation, seed, data
):
    pipeline = pipelines.Pipeline(6, 5, augmentation, seed=seed)
    whole = batches(pipeline, data, 7)
    # What else is drawn in the process has no part in it.
    tf.random.uniform((3,))
    tf.random.get_global_generator().uniform((3,))
    for start in (1, 4):
        later = pipeline.training(data, start).take(7 - start)
        for (x, y), (expected, labels) in zip(
            later.as_numpy_iterator(), whole[start:], strict=True
        ):
            np.testing.assert_array_equal(x, expected)
            np.testing.assert_array_equal(y, labels)


def test_what_is_passed_over_is_not_read(data):
    read = []

    class Noted:
        shape = data.train.images.shape
        dtype = data.train.images.dtype

        def __getitem__(self, rows):
            read.append(rows)
            return data.train.images[rows]

    noted = dataclasses.replace(
        data, train=dataclasses.replace(data.train, images=Noted())
    )
    found = pipelines.Pipeline(8, 4).training(noted, start=10_000).take(1)
    assert len(list(found)) == 1
    assert len(read) < 10


@pytest.mark.parametrize("augmentation", ["flip", "crop_flip", "randaugment"])
def test_images_and_batches_are_changed_each_in_its_own_way(augmentation, data):
    images = np.tile(data.train.images[5:6], (64, 1, 1, 1))
    part = datasets.Part(images, np.zeros(64, np.int32), np.arange(64))
    same = dataclasses.replace(data, train=part)
    (one, _), (other, _) = batches(
        pipelines.Pipeline(6, 64, augmentation), same, 2
    )
    kinds = len(np.unique(one.reshape(64, -1), axis=0))
    assert kinds > {"flip": 1, "crop_flip": 6, "randaugment": 20}[augmentation]
    assert (one != other).any()


def test_flips_mirror_about_half_of_the_images():
    x = np.random.default_rng(0).random((400, 2, 3, 1), np.float32)
    found = augmentation.flip(tf.constant(x), tf.constant([1, 2])).numpy()
    mirrored = (found == x[:, :, ::-1]).all((1, 2, 3))
    assert (mirrored | (found == x).all((1, 2, 3))).all()
    assert 150 < mirrored.sum() < 250


def test_randaugment_draws_from_the_seed_alone():
    change = tf.function(augmentation.make_randaugment())
    graph = change.get_concrete_function(
        tf.TensorSpec((None, 8, 8, 3)), tf.TensorSpec((2,), tf.int64)
    ).graph.as_graph_def()
    used = {node.op for node in graph.node}
    for function in graph.library.function:
        used |= {node.op for node in function.node_def}
    drawing = {op for op in used if "Random" in op or "Rng" in op}
    assert drawing
    assert {op for op in drawing if not op.startswith("Stateless")} == set()
