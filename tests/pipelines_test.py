import datasets
import numpy as np
import pipelines
import pytest


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


@pytest.mark.parametrize("augmentation", pipelines.AUGMENTATIONS)
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
