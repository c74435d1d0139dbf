import dataclasses
import pathlib
import shlex

import numpy as np
import pytest
import tensorflow_datasets as tfds
from loading import datasets
from loading import folders
from loading import images
from loading import npz_files
from loading import specs
from loading import tfds_sets
from loading.datasets import DataError
from PIL import Image


def write_image(path, color, size=(20, 30), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, **options)


def fill(folder, counts, colors=((255, 0, 0), (0, 0, 255), (0, 255, 0))):
    """Writes so many images of one color per class."""
    for (name, count), color in zip(counts.items(), colors):
        for number in range(count):
            write_image(folder / name / f"{number:03}.png", color)


@pytest.fixture
def settings(tmp_path):
    return datasets.Settings(
        size=8, boxed_size=6, channels=3, cache_dir=str(tmp_path / "cache")
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mnist", ("mnist", "bundled", "mnist")),
        ("bundled:digits", ("digits", "bundled", "digits")),
        ("a:bundled:digits", ("a", "bundled", "digits")),
        ("cars196", ("cars196", "tfds", "cars196")),
        ("cars:cars196", ("cars", "tfds", "cars196")),
        ("cars:cars196:2.0.0", ("cars", "tfds", "cars196:2.0.0")),
        ("cars196:2.*.*", ("cars196", "tfds", "cars196:2.*.*")),
        ("cifar10_corrupted/fog_1", None),
        ("folder:/data/birds", ("birds", "folder", "/data/birds")),
        ("b:folder:C:/data", ("b", "folder", "C:/data")),
        ("npz:sets/a.npz", ("a", "npz", "sets/a.npz")),
        ("tfds:mnist", ("mnist", "tfds", "mnist")),
        ("split:0-4:mnist", ("mnist_0-4", "split", "0-4:mnist")),
        ("b:permuted:7:tfds:mnist", ("b", "permuted", "7:tfds:mnist")),
    ],
)
def test_parse_reads_name_and_source(text, expected):
    if expected is None:
        expected = (text.split("/")[0], "tfds", text)
    assert dataclasses.astuple(datasets.parse(text)) == expected


@pytest.mark.parametrize("text", ["", "folder:", "cars:", ":cars196", "a:npz:"])
def test_parse_refuses_empty_parts(text):
    with pytest.raises(DataError, match="NAME:SOURCE"):
        datasets.parse(text)


def test_a_split_folder_keeps_its_parts(tmp_path, settings):
    fill(tmp_path / "set" / "train", {"red": 20, "blue": 20})
    fill(tmp_path / "set" / "test", {"red": 3, "blue": 4})
    data = datasets.load(f"pair:folder:{tmp_path / 'set'}", settings)
    assert data.name == "pair"
    assert data.class_names == ("blue", "red")
    assert [len(p) for p in (data.train, data.val, data.test)] == [36, 4, 7]
    for part in (data.train, data.val, data.test):
        x, y = part.take(np.arange(len(part)))
        assert x.shape[1:] == (8, 8, 3)
        assert x.dtype == np.uint8
        # Labels stand for the sorted names, and images stayed with them.
        np.testing.assert_array_equal(x[:, 0, 0, 0] == 255, y == 1)
    assert set(data.train.rows).isdisjoint(data.val.rows)
    assert len(set(data.val.labels[data.val.rows])) == 2


@pytest.mark.parametrize("name", [*specs.KINDS, "val"])
def test_a_folder_may_have_any_name(name, tmp_path, settings):
    fill(tmp_path / name, {"a": 10, "b": 10})
    text = f"folder:{tmp_path / name}"
    assert datasets.load(text, settings).name == name
    assert datasets.load_test(text, settings).name == name
    derived = datasets.load(f"split:0-1:{text}", settings)
    assert derived.name == f"{name}_0-1"


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ("folder:/nowhere", "/nowhere, which is no folder"),
        ("npz:/nowhere.npz", "which is none"),
        ("split:0-1:folder:/nowhere", "/nowhere, which is no folder"),
        ("nowhere_to_be_found", "nowhere_to_be_found"),
        ("split:0-1:split:0-1:digits", "neither"),
        ("tfds:lm1b", "one label"),
    ],
)
def test_all_tasks_are_there_before_one_is_downloaded_or_decoded(
    last, expected, tmp_path, settings, monkeypatch
):
    def never(*args):
        raise AssertionError("too early")

    fill(tmp_path / "set", {"a": 10, "b": 10})
    monkeypatch.setattr(tfds_sets, "_prepare", never)
    monkeypatch.setattr(folders, "find", never)
    with pytest.raises(DataError, match=expected):
        datasets.load_all(
            ["cars196", f"folder:{tmp_path / 'set'}", last], settings
        )


def test_folders_are_looked_into_before_anything_is_downloaded(
    tmp_path, settings, monkeypatch
):
    fill(tmp_path / "set", {"a": 10})
    monkeypatch.setattr(tfds_sets, "_prepare", None)
    with pytest.raises(DataError, match="1 folders"):
        datasets.load_all(["cars196", f"folder:{tmp_path / 'set'}"], settings)


def test_a_folder_of_classes_is_split_by_the_seed(tmp_path, settings):
    fill(tmp_path / "set", {"a": 10, "b": 20, "c": 30})
    loaded = [
        datasets.load(
            f"folder:{tmp_path / 'set'}",
            dataclasses.replace(settings, seed=seed),
        )
        for seed in (0, 0, 1)
    ]
    counts = np.bincount(loaded[0].test.labels[loaded[0].test.rows])
    np.testing.assert_array_equal(counts, [2, 4, 6])
    assert len(loaded[0].val) == 5
    np.testing.assert_array_equal(loaded[0].test.rows, loaded[1].test.rows)
    assert loaded[0].fingerprint() == loaded[1].fingerprint()
    assert (loaded[0].test.rows != loaded[2].test.rows).any()


def test_images_are_decoded_once(tmp_path, settings, monkeypatch):
    fill(tmp_path / "set", {"a": 10, "b": 10})
    text = f"folder:{tmp_path / 'set'}"
    first = datasets.load(text, settings)
    monkeypatch.setattr(images, "read", None)
    again = datasets.load(text, settings)
    assert again.fingerprint() == first.fingerprint()
    # A file that was changed is decoded again.
    write_image(tmp_path / "set" / "a" / "000.png", "white", (9, 9))
    with pytest.raises(TypeError):
        datasets.load(text, settings)


def test_a_damaged_store_is_made_anew(tmp_path, settings):
    fill(tmp_path / "set", {"a": 10, "b": 10})
    text = f"folder:{tmp_path / 'set'}"
    expected = datasets.load(text, settings).fingerprint()
    (store,) = pathlib.Path(settings.cache_dir).iterdir()
    for name, content in (
        ("images.bin", b"short"),
        ("index.json", b"{}"),
        ("index.json", b'{"labels": [1e99]}'),
    ):
        (store / name).write_bytes(content)
        assert datasets.load(text, settings).fingerprint() == expected


def test_bad_images_are_named_and_left_out_up_to_a_limit(tmp_path, settings):
    fill(tmp_path / "set", {"a": 10, "b": 10})
    (tmp_path / "set" / "a" / "bad.jpg").write_bytes(b"no image at all")
    good = (tmp_path / "set" / "b" / "000.png").read_bytes()
    (tmp_path / "set" / "b" / "cut.png").write_bytes(good[:60])
    text = f"folder:{tmp_path / 'set'}"
    data = datasets.load(text, settings)
    assert len(data.train) + len(data.val) + len(data.test) == 20
    assert [line.split(":")[0] for line in data.skipped] == [
        "a/bad.jpg",
        "b/cut.png",
    ]
    with pytest.raises(DataError, match=r"max_bad_images=1.*bad\.jpg"):
        datasets.load(text, dataclasses.replace(settings, max_bad=1))


def test_a_class_whose_images_are_all_bad_is_named(tmp_path, settings):
    fill(tmp_path / "set", {"a": 10, "b": 10})
    (tmp_path / "set" / "c").mkdir()
    (tmp_path / "set" / "c" / "bad.png").write_bytes(b"no image at all")
    with pytest.raises(DataError, match=r"none for 'c'.*c/bad\.png"):
        datasets.load(f"folder:{tmp_path / 'set'}", settings)


def test_classes_without_images_are_no_task(tmp_path, settings):
    changed = arrays(y_test=np.zeros(6, int))
    np.savez(tmp_path / "own.npz", **changed)
    with pytest.raises(DataError, match="none for test"):
        datasets.load(f"split:1-2:npz:{tmp_path / 'own.npz'}", settings)


def test_another_number_of_classes_is_refused(settings):
    with pytest.raises(DataError, match="'digits' of 10 classes, for 7"):
        datasets.load("digits", settings, classes=7)
    with pytest.raises(DataError, match="of 3 classes, for 7"):
        datasets.load("split:0-2:digits", settings, classes=7)
    assert datasets.load("digits", settings, classes=10).num_classes == 10


def test_tasks_of_one_source_share_its_images(settings):
    one, other = datasets.load_all(
        ["split:0-4:digits", "b:split:5-9:digits"], settings
    )
    assert other.name == "b"
    assert one.train.images is other.train.images


def test_pictures_are_turned_upright_and_bounded(tmp_path, monkeypatch):
    from PIL import ExifTags

    picture = Image.new("RGB", (8, 4), "blue")
    picture.paste((255, 0, 0), (0, 0, 4, 4))  # Red on the left.
    exif = picture.getexif()
    exif[ExifTags.Base.Orientation] = 6  # To be turned clockwise.
    picture.save(tmp_path / "turned.png", exif=exif)
    found = images.read(tmp_path / "turned.png", 4, 3)
    np.testing.assert_array_equal(found[0, 0], [255, 0, 0])
    np.testing.assert_array_equal(found[3, 0], [0, 0, 255])
    gray = images.read(tmp_path / "turned.png", 4, 1)
    assert gray.shape == (4, 4, 1)
    monkeypatch.setattr(images, "MAX_PIXELS", 31)
    with pytest.raises(images.ImageError, match="8 x 4 pixels"):
        images.read(tmp_path / "turned.png", 4, 3)


FOLDERS = {
    "none": (lambda f: None, "no folder"),
    "empty": (lambda f: f.mkdir(), "0 folders"),
    "one_class": (lambda f: fill(f, {"a": 3}), "1 folders"),
    "class_without_images": (
        lambda f: (fill(f, {"a": 3}), (f / "b").mkdir()),
        "has none",
    ),
    "no_test": (lambda f: fill(f / "train", {"a": 3, "b": 3}), "test"),
    "other_classes": (
        lambda f: (
            fill(f / "train", {"a": 3, "b": 3}),
            fill(f / "test", {"a": 3, "c": 3}),
        ),
        "differ in b, c",
    ),
    "too_few": (lambda f: fill(f, {"a": 1, "b": 1}), "none for"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_that_is_none_is_refused(case, tmp_path, settings):
    make, expected = FOLDERS[case]
    make(tmp_path / "set")
    with pytest.raises(DataError, match=expected):
        datasets.load(f"folder:{tmp_path / 'set'}", settings)


def arrays(**changed):
    generator = np.random.default_rng(0)
    found = {
        "x_train": generator.integers(0, 256, (30, 9, 9, 3), np.uint8),
        "y_train": np.arange(30) % 3,
        "x_test": generator.integers(0, 256, (6, 9, 9, 3), np.uint8),
        "y_test": np.arange(6) % 3,
        **changed,
    }
    return {name: value for name, value in found.items() if value is not None}


def test_an_npz_file_is_taken(tmp_path, settings):
    np.savez(tmp_path / "own.npz", **arrays())
    data = datasets.load(f"npz:{tmp_path / 'own.npz'}", settings)
    assert data.name == "own"
    assert data.class_names == ("0", "1", "2")
    assert data.test.images.shape == (6, 8, 8, 3)
    assert [len(p) for p in (data.train, data.val, data.test)] == [27, 3, 6]


def test_floats_of_an_npz_file_equal_bytes(tmp_path, settings):
    settings = dataclasses.replace(settings, size=9)
    whole = arrays()
    floats = {
        name: (whole[name] / 255.0).astype(np.float32)
        for name in ("x_train", "x_test")
    }
    np.savez(tmp_path / "bytes.npz", **whole)
    np.savez_compressed(tmp_path / "floats.npz", **{**whole, **floats})
    one, other = (
        datasets.load(f"npz:{tmp_path / name}.npz", settings).fingerprint()
        for name in ("bytes", "floats")
    )
    assert one == other


NPZ = {
    "missing": (dict(y_test=None), "no array y_test"),
    "half_validation": (dict(x_val=np.zeros((2, 9, 9), "u1")), "without the"),
    "shape": (dict(x_test=np.zeros((6, 9), "u1")), "x_test of shape"),
    "range": (dict(x_test=np.full((6, 9, 9), 2.0)), "within"),
    "nan": (dict(x_test=np.full((6, 9, 9), np.nan)), "within"),
    "labels": (dict(y_test=np.arange(5)), "y_test of shape"),
    "negative": (dict(y_test=np.full(6, -1)), "labels -1"),
    "gap": (dict(y_train=np.arange(30) % 2 * 2), "without class '1'"),
    "names": (dict(class_names=np.array(["a"])), "class_names"),
    "one_class": (
        dict(y_train=np.zeros(30, int), y_test=np.zeros(6, int)),
        "two classes or more",
    ),
    "objects": (dict(y_test=np.array([{}] * 6)), "allow_pickle"),
}


@pytest.mark.parametrize("case", NPZ)
def test_a_malformed_npz_file_is_refused(case, tmp_path, settings):
    changed, expected = NPZ[case]
    np.savez(tmp_path / "own.npz", **arrays(**changed))
    with pytest.raises(DataError, match=expected):
        datasets.load(f"npz:{tmp_path / 'own.npz'}", settings)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and more", b"\0" * 99])
def test_a_damaged_npz_file_is_refused(content, tmp_path, settings):
    (tmp_path / "own.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"own\.npz"):
        datasets.load(f"npz:{tmp_path / 'own.npz'}", settings)


def test_a_large_npz_file_is_refused_before_it_is_read(
    tmp_path, settings, monkeypatch
):
    np.savez_compressed(tmp_path / "own.npz", **arrays())
    monkeypatch.setattr(npz_files, "MAX_BYTES", 1000)
    with pytest.raises(DataError, match="of at most 1,000"):
        datasets.load(f"npz:{tmp_path / 'own.npz'}", settings)


SETS = [
    ("cubs:caltech_birds2011", True, 200),
    ("cubs:caltech_birds2011", False, 200),
    ("cars:cars196", True, 196),
    ("flowers:oxford_flowers102", False, 102),
    ("imagenet:imagenet2012", False, 1000),
    ("places:places365_small", False, 365),
    ("pets:oxford_iiit_pet", False, 37),
    ("textures:dtd", False, 47),
    ("tfds:cifar10", False, 10),
    ("tfds:mnist", False, 10),
]


@pytest.mark.parametrize(("text", "boxed", "classes"), SETS)
def test_sets_of_tfds_are_taken(text, boxed, classes, settings):
    if boxed:
        name = text.partition(":")[0]
        settings = dataclasses.replace(settings, boxed=(name,), max_bad=20)
    with tfds.testing.mock_data(num_examples=20):
        data = datasets.load(text, settings)
    assert data.num_classes == classes
    assert data.train.images.shape[1:] == ((6, 6, 3) if boxed else (8, 8, 3))
    assert len(data.test) + len(data.skipped) >= 20 or boxed
    assert data.boxed == boxed


def test_the_sets_that_configs_name_are_among_those():
    named = set()
    for path in (pathlib.Path(__file__).parents[1] / "configs").glob("*.cfg"):
        for line in path.read_text().splitlines():
            flag, _, value = line.partition("=")
            if flag in ("--tasks", "--keep_train"):
                named |= set(value.split(","))
    found = [datasets.parse(text).base for text in named]
    names = {spec.place for spec in found if spec.kind == "tfds"}
    assert "cars196" in names
    assert names <= {datasets.parse(text).place for text, _, _ in SETS}


def test_the_classes_of_imagenet_are_in_the_order_of_keras():
    """Which is that of the sorted WordNet ids."""
    with tfds.testing.mock_data():
        found = tfds_sets.find("imagenet2012", None, True, False)
    assert len(found.class_names) == 1000
    assert list(found.class_names) == sorted(found.class_names)
    assert found.class_names[0] == "n01440764"  # The tench comes first.


def test_an_unknown_set_of_tfds_is_refused(settings):
    with pytest.raises(DataError, match="nowhere_to_be_found"):
        datasets.load("a:nowhere_to_be_found", settings)


def test_a_set_that_is_not_there_names_the_command(
    settings, tmp_path, monkeypatch
):
    settings = dataclasses.replace(
        settings, tfds_dir=str(tmp_path), download=False
    )
    with pytest.raises(DataError, match="python -c") as caught:
        datasets.load("cars:cars196", settings)
    code = shlex.split(str(caught.value).split("`")[1])[2]
    asked = []

    class Builder:
        def __init__(self, name, **kwargs):
            asked.append((name, kwargs))

        def download_and_prepare(self):
            asked.append("prepared")

    monkeypatch.setattr(tfds, "builder", Builder)
    exec(code)
    assert asked == [("cars196", {"data_dir": str(tmp_path)}), "prepared"]


def test_boxes_are_for_sets_that_have_them(settings, tmp_path):
    settings = dataclasses.replace(settings, boxed=("mnist", "flowers"))
    with pytest.raises(DataError, match="bounding"):
        datasets.load("mnist", settings)
    with (
        tfds.testing.mock_data(),
        pytest.raises(DataError, match="file_name"),
    ):
        datasets.load("flowers:oxford_flowers102", settings)


def colors(height, width):
    """A picture that is smooth, and another at each place."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack(
        [255 * rows // height, 255 * columns // width, 0 * rows + 9], axis=-1
    ).astype(np.uint8)


@pytest.mark.parametrize("shape", [(20, 33), (33, 20), (20, 20)])
def test_images_keep_their_proportions(shape, tmp_path):
    picture = colors(*shape)
    top, left = ((edge - 20) // 2 for edge in shape)
    middle = picture[top : top + 20, left : left + 20]
    # The shorter edge as it is, and by half.
    np.testing.assert_array_equal(images.resize(picture, 20, 3), middle)
    found = images.resize(picture, 10, 3)
    mean = middle.reshape(10, 2, 10, 2, 3).mean((1, 3))
    np.testing.assert_allclose(found[1:-1, 1:-1], mean[1:-1, 1:-1], atol=1)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    read = images.read(tmp_path / "picture.png", 10, 3)
    np.testing.assert_array_equal(read, found)


def test_a_box_is_scaled_in_both_directions():
    picture = colors(20, 32)
    found = images.resize(picture, 8, 3, (0.0, 0.0, 1.0, 1.0))
    assert found[0, 0, 1] < 20
    assert found[-1, -1, 1] > 230
    assert found[0, 0, 0] < 20
    assert found[-1, -1, 0] > 220


def test_images_that_were_decoded_another_way_are_not_taken(
    tmp_path, settings, monkeypatch
):
    fill(tmp_path / "set", {"a": 10, "b": 10})
    text = f"folder:{tmp_path / 'set'}"
    streamed = dataclasses.replace(settings, store_gigabytes=0.0)
    before = datasets.load(text, streamed).fingerprint()
    datasets.load(text, settings)
    monkeypatch.setattr(images, "VERSION", images.VERSION + 1)
    assert datasets.load(text, streamed).fingerprint() != before
    monkeypatch.setattr(images, "read", None)
    with pytest.raises(TypeError):
        datasets.load(text, settings)


def test_a_box_is_cut_out():
    picture = np.zeros((10, 20, 3), np.uint8)
    picture[5:10, 10:20] = 200
    found = images.resize(picture, 4, 3, (0.5, 0.5, 1.0, 1.0))
    np.testing.assert_array_equal(found, 200)
    with pytest.raises(images.ImageError, match="empty box"):
        images.resize(picture, 4, 3, (0.5, 0.5, 0.5, 1.0))


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, float("nan")])
def test_a_fraction_that_is_none_is_refused(fraction, settings):
    with pytest.raises(DataError, match="--val_fraction"):
        datasets.load(
            "mnist", dataclasses.replace(settings, val_fraction=fraction)
        )


def test_some_classes_become_a_task_of_their_own(settings):
    whole = datasets.load("digits", settings)
    data = datasets.load("low:split:3-5:digits", settings)
    assert data.name == "low"
    assert data.class_names == ("3", "4", "5")
    for one, other in ((data.train, whole.train), (data.test, whole.test)):
        x, y = one.take(np.arange(len(one)))
        labels = other.labels[other.rows]
        kept = np.flatnonzero((labels >= 3) & (labels <= 5))
        np.testing.assert_array_equal(y, labels[kept] - 3)
        np.testing.assert_array_equal(x, other.take(kept)[0])


def test_pixels_are_permuted_the_same_way_in_all_parts(settings):
    whole = datasets.load("digits", settings)
    data = datasets.load("permuted:4:digits", settings)
    assert data.name == "digits_4"
    for name in ("train", "val", "test"):
        one, other = getattr(data, name), getattr(whole, name)
        x, y = one.take(np.arange(5))
        before, labels = other.take(np.arange(5))
        np.testing.assert_array_equal(y, labels)
        flat = before.reshape(5, 64, 3)
        np.testing.assert_array_equal(
            x.reshape(5, 64, 3), flat[:, data.test.order]
        )
        assert (x != before).any()
    assert sorted(data.test.order) == list(range(64))
    same = datasets.load("permuted:0:digits", settings)
    assert same.fingerprint() == whole.fingerprint() != data.fingerprint()


@pytest.mark.parametrize(
    "text",
    [
        "split:3:digits",
        "split:5-3:digits",
        "split:3-10:digits",
        "permuted:x:digits",
        "split:0-1:split:0-3:digits",
        "permuted:1:",
    ],
)
def test_a_source_made_of_none_is_refused(text, settings):
    with pytest.raises(DataError, match="Received"):
        datasets.load(text, settings)
