import pytest
from program import image_options

from packnet_tf.errors import ArgumentError


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (dict(tasks=["mnist", "digits"]), (28, 32)),
        (dict(tasks=["mnist", "digits"], augmentation="flip"), (28, 28)),
        (dict(tasks=["mnist", "npz:a.npz"]), (224, 256)),
        (dict(tasks=["npz:a.npz"], image_size=32, padding=4), (32, 32)),
        (dict(tasks=["npz:a.npz"], image_size=32, resize=36), (32, 36)),
    ],
)
def test_sizes_follow_from_the_tasks_and_the_crops(values, expected, flags):
    flags(**values)
    settings = image_options.settings(3)
    assert (image_options.size(), settings.size) == expected


@pytest.mark.parametrize(
    "values",
    [
        dict(padding=2, augmentation="flip"),
        dict(padding=32, augmentation="crop_flip"),
    ],
)
def test_padding_that_does_nothing_or_too_much_is_refused(values, flags):
    flags(image_size=32, **values)
    with pytest.raises(ArgumentError, match=f"--padding={values['padding']}"):
        image_options.padding()
    flags(padding=31, augmentation="randaugment")
    assert image_options.padding() == 31
