import io
import json
import os

import keras
import numpy as np
import pytest
from helpers import Unchanged
from helpers import all_values
from helpers import assert_same_values
from helpers import compile_model
from helpers import same_bits
from helpers import two_devices
from pack_files import describe
from pack_files import take_apart
from pack_files import with_description

import packnet_tf
from packnet_tf import archive
from packnet_tf import byte_planes
from packnet_tf import declarations
from packnet_tf import difference
from packnet_tf import entropy_coding
from packnet_tf import fingerprint
from packnet_tf import variables
from packnet_tf.declarations import Spec
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import FileError
from packnet_tf.errors import FingerprintError
from packnet_tf.errors import StageError
from packnet_tf.errors import UnsupportedLayerError

L = keras.layers


def finish(model, sparsity=0.5):
    """Prunes and freezes; what training would change does not matter here."""
    if sparsity:
        model.prune(sparsity)
    model.freeze_task()


def to_trained(model, x, y):
    compile_model(model, run_eagerly=True)
    model.fit(x, y, batch_size=16, verbose=0)


def to_retrain(model, x, y):
    model.prune(0.3)
    model.steps.assign(7)


def to_global_retrain(model, x, y):
    model.prune(0.4, scope="global")


def to_frozen(model, x, y):
    finish(model)


def to_head_only(model, x, y):
    finish(model)
    model.add_task("two", units=6)
    model.head_only = True


def to_second_frozen(model, x, y):
    finish(model)
    model.add_task("two", units=6)
    finish(model)
    model.set_task("one")


def to_no_room(model, x, y):
    finish(model, None)
    with pytest.warns(UserWarning, match="owns no weight"):
        model.add_task("two", units=6)


STAGES = {
    "trained": to_trained,
    "retrain": to_retrain,
    "global_retrain": to_global_retrain,
    "frozen": to_frozen,
    "head_only": to_head_only,
    "second_frozen": to_second_frozen,
    "no_room": to_no_room,
}


def as_json(config):
    return json.loads(json.dumps(config, default=list))


def assert_same_model(one, other, x):
    assert as_json(one.get_config()) == as_json(other.get_config())
    assert one.stage is other.stage
    assert one.task == other.task
    assert one.head_only == other.head_only
    assert_same_values(all_values(one), all_values(other))
    assert [v.trainable for v in one.variables] == [
        v.trainable for v in other.variables
    ]
    assert len(one.trainable_variables) == len(other.trainable_variables)
    assert one.verify() == other.verify()
    for task in one.task_names:
        # Not `predict`, which would trace both for each.
        np.testing.assert_array_equal(one(x, task=task), other(x, task=task))


def save_and_load(model, folder, **kwargs):
    packnet_tf.save_pack(model, folder / "model.packnet", **kwargs)
    return packnet_tf.load_pack(folder / "model.packnet")


@pytest.mark.parametrize("own", ["frozen", "per_task"])
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_comes_back(stage, own, network, images, tmp_path):
    model = packnet_tf.wrap(
        network(), task="one", biases=own, normalization=own
    )
    STAGES[stage](model, *images)
    with Unchanged(model):
        loaded = save_and_load(model, tmp_path)
    assert not loaded.compiled
    assert_same_model(model, loaded, images[0])


def test_a_backbone_without_tasks_comes_back(network, images, tmp_path):
    model = packnet_tf.wrap(network(classes=None))
    loaded = save_and_load(model, tmp_path)
    assert loaded.task is None
    assert_same_model(model, loaded, images[0])
    np.testing.assert_array_equal(model(images[0]), loaded(images[0]))


def test_loaded_and_original_train_on_alike(network, images, tmp_path):
    x, y = images
    model = packnet_tf.wrap(network(), task="one")
    compile_model(model, run_eagerly=True)
    model.fit(x, y, verbose=0)
    loaded = save_and_load(model, tmp_path)
    for each in (model, loaded):
        compile_model(each, run_eagerly=True)
        each.fit(x, y, shuffle=False, verbose=0)
        each.prune(0.5)
        each.freeze_task()
        keras.utils.set_random_seed(3)
        each.add_task("two", units=4)
        each.freeze_task()
    assert_same_values(all_values(model), all_values(loaded))
    assert model.verify() == loaded.verify()
    loaded.save(tmp_path / "model.keras")
    again = packnet_tf.load_model(tmp_path / "model.keras")
    assert as_json(again.get_config()) == as_json(model.get_config())


def test_each_owned_weight_is_in_the_file_once_and_no_free_one(
    packed, images, tmp_path
):
    to_second_frozen(packed, *images)
    path = tmp_path / "model.packnet"
    packnet_tf.save_pack(packed, path)
    _, sections = take_apart(path.read_bytes())
    left = sections[1:]
    for part in packed._parts():
        values = part.variable.numpy()
        if part.owner is not None:
            owner = part.owner.numpy()
            values = values[owner > 0]
            code = left.pop(0)[1][4:]
            read = entropy_coding.decode(code, owner.size, 3)
            assert same_bits(read, owner.reshape(-1))
        content = io.BytesIO(left.pop(0)[1])
        planes = byte_planes.read(content.read, values.size, values.itemsize)
        read = byte_planes.decode(planes, values.size)
        assert read == values.tobytes()
        assert content.read() == b""
    assert not left
    for task in describe(path.read_bytes())["model"]["tasks"]:
        assert not any(task["record"]["sketches"].values())


def test_a_network_of_millions_is_within_a_percent(tmp_path):
    layers = []
    for filters in (32, 64, 128, 128, 256, 256, 512, 512, 1024, 1024):
        layers += [L.Conv2D(filters, 1, use_bias=False), L.BatchNormalization()]
    model = packnet_tf.wrap(
        keras.Sequential(
            [
                keras.Input((1, 1, 3)),
                *layers,
                L.GlobalAveragePooling2D(),
                L.Dense(100),
            ]
        ),
        task="t1",
    )
    generator = np.random.default_rng(0)
    for number, sparsity in enumerate((0.5, 0.75, 0.75, None), start=1):
        if number > 1:
            model.add_task(f"t{number}", units=100)
        for entry in model._packed():
            mine = entry.owner.numpy() == number
            noise = generator.normal(size=mine.shape).astype("float32")
            kernel = entry.variable.numpy()
            entry.variable.assign(np.where(mine, noise, kernel))
        if sparsity:
            model.prune(sparsity)
        model.freeze_task()
    loaded = save_and_load(model, tmp_path)
    assert_same_values(all_values(model), all_values(loaded))
    assert loaded.verify() == model.verify()
    needed = 0
    for part in model._parts():
        values = part.variable.numpy()
        needed += values.nbytes
        if part.owner is not None:
            counts = np.bincount(part.owner.numpy().reshape(-1))
            needed -= 4 * counts[0]
            needed += entropy_coding.entropy(counts) / 8
    size = (tmp_path / "model.packnet").stat().st_size
    assert size <= 1.01 * needed


def test_rounded_values_have_fingerprints_of_their_own(
    network, images, tmp_path
):
    model = packnet_tf.wrap(
        network(), task="one", biases="per_task", normalization="per_task"
    )
    to_second_frozen(model, *images)
    model.add_task("three", units=2)
    model.prune(0.3)
    path = tmp_path / "model.packnet"
    with Unchanged(model):
        packnet_tf.save_pack(model, path, dtype="bfloat16")
    assert describe(path.read_bytes())["rounded"] is True
    with pytest.warns(UserWarning, match="rounded to bfloat16"):
        loaded = packnet_tf.load_pack(path)
    assert loaded.sparsity == model.sparsity == 0.3
    by_key = {part.key: part.variable for part in loaded._parts()}
    for part in model._parts():
        value = part.variable.numpy()
        if not part.exact and value.dtype == np.float32:
            bits = value.view(np.uint32).astype(np.uint64)
            bits += 0x7FFF + ((bits >> 16) & 1)
            bits = bits & 0xFFFF0000
            value = bits.astype(np.uint32).view(np.float32)
        assert same_bits(by_key[part.key].numpy(), value), part.key
    proofs = loaded.verify()
    assert set(proofs) == {"one", "two"}
    assert proofs["one"].fingerprint != model.verify()["one"].fingerprint
    packnet_tf.save_pack(model, tmp_path / "exact.packnet")
    exact = packnet_tf.load_pack(tmp_path / "exact.packnet")
    assert exact.verify() == model.verify()
    save_and_load(loaded, tmp_path)


def test_rounding_is_held_against_the_variables(packed, tmp_path):
    path = tmp_path / "model.packnet"
    for dtype in (None, "bfloat16"):
        packnet_tf.save_pack(packed, path, dtype)
        assert archive.is_rounded(path) == bool(dtype)
        content = path.read_bytes()
        for told in (dtype is None, None, 1, "no"):
            changed = {**describe(content), "rounded": told}
            path.write_bytes(with_description(content, changed))
            for read in (packnet_tf.load_pack, archive.is_rounded):
                with pytest.raises(FileError, match=r"rounded=.*, expected"):
                    read(path)


def test_what_has_nothing_to_round_is_not_rounded(tmp_path):
    keras.config.set_dtype_policy("bfloat16")
    try:
        layers = [keras.Input((3,)), keras.layers.Dense(4)]
        model = packnet_tf.wrap(keras.Sequential(layers), head=None)
    finally:
        keras.config.set_dtype_policy("float32")
    packnet_tf.save_pack(model, tmp_path / "model.packnet", "bfloat16")
    packnet_tf.load_pack(tmp_path / "model.packnet")
    assert not archive.is_rounded(tmp_path / "model.packnet")


def test_loading_takes_no_second_copy_of_what_it_reads(packed, tmp_path):
    finish(packed)
    loaded = save_and_load(packed, tmp_path)
    for variable in loaded.variables:
        one, other = variables.view(variable), variables.view(variable)
        assert np.shares_memory(one, other) or not one.size


@pytest.mark.parametrize("least", [1, 100, 10_000])
def test_sketches_of_large_shares_are_in_the_file(
    packed, images, tmp_path, monkeypatch, least
):
    monkeypatch.setattr(declarations, "_LARGE", least)
    to_second_frozen(packed, *images)
    path = tmp_path / "model.packnet"
    packnet_tf.save_pack(packed, path)
    kept = [
        sketch["entries"]
        for task in describe(path.read_bytes())["model"]["tasks"]
        for of_part in task["record"]["sketches"].values()
        for sketch in of_part.values()
    ]
    assert all(entries >= least for entries in kept)
    assert bool(kept) == (least < 10_000)
    loaded = packnet_tf.load_pack(path)
    for task, other in zip(packed._tasks, loaded._tasks):
        assert task.record.sketches == other.record.sketches


def test_a_sketch_of_another_shape_is_made_again(packed, tmp_path, monkeypatch):
    monkeypatch.setattr(declarations, "_LARGE", 1)
    finish(packed)
    record = packed._tasks.find(packed.task).record
    true = dict(record.sketches["backbone"])
    false = difference.sketch(np.zeros(3, "float32"))
    record.sketches["backbone"]["dense/kernel"] = false
    loaded = save_and_load(packed, tmp_path)
    found = loaded._tasks.find(loaded.task).record
    assert found.sketches["backbone"] == true


def test_sketches_are_made_again(packed, tmp_path):
    finish(packed)
    loaded = save_and_load(packed, tmp_path)
    kernel = loaded.backbone.get_layer("dense").layer.kernel
    kernel.assign(kernel * 2.0)
    with pytest.raises(FingerprintError, match=r"'dense/kernel'.* entries of"):
        loaded.verify()


def test_save_verifies_first(packed, tmp_path):
    path = tmp_path / "model.packnet"
    path.write_bytes(b"before")
    finish(packed)
    kernel = packed.backbone.get_layer("dense").layer.kernel
    kernel.assign(kernel * 2.0)
    with pytest.raises(FingerprintError, match="dense/kernel"):
        packnet_tf.save_pack(packed, path)
    assert path.read_bytes() == b"before"


def test_released_weights_have_to_be_zero(packed, tmp_path):
    packed.prune(0.5)
    kernel = packed.backbone.get_layer("dense").layer.kernel
    kernel.assign(kernel + 1.0)
    with pytest.raises(StageError, match="have to be zero"):
        packnet_tf.save_pack(packed, tmp_path / "model.packnet")
    assert not os.listdir(tmp_path)


def test_other_arguments_are_refused(packed, network, tmp_path):
    path = tmp_path / "model.packnet"
    with pytest.raises(ArgumentError, match=r"packnet_tf.wrap.*Received"):
        packnet_tf.save_pack(network(), path)
    for dtype in ("float16", "float32", 2):
        with pytest.raises(ArgumentError, match="Received: dtype="):
            packnet_tf.save_pack(packed, path, dtype=dtype)
    for no_path in (None, 3, b"x"):
        with pytest.raises(ArgumentError, match=r"pathlib.Path.*Received"):
            packnet_tf.save_pack(packed, no_path)
    packnet_tf.save_pack(packed, path)
    for most in (0, -1, 1.5, True, "1"):
        with pytest.raises(ArgumentError, match="Received: max_bytes="):
            packnet_tf.load_pack(path, max_bytes=most)
    with pytest.raises(FileError, match="max_bytes=") as caught:
        packnet_tf.load_pack(path, max_bytes=100)
    told = str(caught.value).split("`max_bytes=")[1].split("`")[0]
    packnet_tf.load_pack(path, max_bytes=int(told))
    with pytest.raises(FileError, match="max_bytes="):
        packnet_tf.load_pack(path, max_bytes=int(told) - 1)


def test_a_file_that_needs_more_memory_than_usual_says_so(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(declarations, "_PLUS", 0)
    network = keras.Sequential(
        [keras.Input((300,)), L.Dense(1000, name="large"), L.Dense(2)]
    )
    model = packnet_tf.wrap(network, task="one")
    save_and_load(model, tmp_path)
    model.prune(0.8)
    with pytest.warns(UserWarning, match="few weights") as caught:
        packnet_tf.save_pack(model, tmp_path / "model.packnet")
    told = str(caught[0].message).split("max_bytes=")[1].split(")")[0]
    with pytest.raises(FileError, match=f"`max_bytes={told}`"):
        packnet_tf.load_pack(tmp_path / "model.packnet")
    loaded = packnet_tf.load_pack(tmp_path / "model.packnet", int(told))
    assert_same_values(all_values(model), all_values(loaded))


@pytest.mark.parametrize(
    ("stored", "size", "fits"),
    [
        ("float32", 483e6, True),
        ("float32", 100e6, False),
        ("bfloat16", 160e6, True),
        ("bfloat16", 50e6, False),
    ],
)
def test_a_network_of_vgg16s_size_needs_no_leave_to_load(stored, size, fits):
    spec = Spec("kernel", "float32", stored, (138_357_544,), True)
    needed = declarations.more_than_default([spec], int(size))
    assert needed == (None if fits else 5 * 138_357_544)


def test_a_layer_that_keeps_more_than_variables_is_refused(tmp_path):
    inputs = keras.Input((2,), dtype="string")
    x = L.StringLookup(vocabulary=["a", "b"], output_mode="multi_hot")(inputs)
    network = keras.Model(inputs, L.Dense(3, name="dense")(x))
    model = packnet_tf.wrap(network, head=None)
    with pytest.raises(UnsupportedLayerError, match="StringLookup"):
        packnet_tf.save_pack(model, tmp_path / "model.packnet")


def test_normalization_computes_with_what_was_loaded(images, tmp_path):
    normalization = L.Normalization(axis=None)
    normalization.adapt(images[0] * 3.0 + 1.0)
    network = keras.Sequential(
        [keras.Input((8, 8, 1)), normalization, L.Flatten(), L.Dense(3)]
    )
    model = packnet_tf.wrap(network, head=None)
    loaded = save_and_load(model, tmp_path)
    np.testing.assert_array_equal(model(images[0]), loaded(images[0]))


@pytest.mark.parametrize("policy", ["mixed_float16", "bfloat16", "float64"])
def test_other_precisions_come_back(policy, network, images, tmp_path):
    keras.config.set_dtype_policy(policy)
    try:
        model = packnet_tf.wrap(network(), task="one")
    finally:
        keras.config.set_dtype_policy("float32")
    model.prune(0.5)
    model.freeze_task()
    loaded = save_and_load(model, tmp_path)
    assert loaded.dtype_policy.name == model.dtype_policy.name
    assert_same_model(model, loaded, images[0])


def test_large_variables_come_back_without_initial_values(tmp_path):
    network = keras.Sequential(
        [keras.Input((1030,)), L.Dense(1025, name="large"), L.Dense(2)]
    )
    model = packnet_tf.wrap(network, task="one")
    model.prune(0.9)
    loaded = save_and_load(model, tmp_path)
    assert_same_values(all_values(model), all_values(loaded))


def test_replicas_all_come_back(network, images, tmp_path):
    model = packnet_tf.wrap(network(), task="one")
    model.prune(0.5)
    model.freeze_task()
    packnet_tf.save_pack(model, tmp_path / "one.packnet")
    with two_devices().scope():
        loaded = packnet_tf.load_pack(tmp_path / "one.packnet")
    for variable, expected in zip(loaded.variables, model.variables):
        for replica in variable.value.values:
            assert same_bits(replica.numpy(), expected.numpy())
    packnet_tf.save_pack(loaded, tmp_path / "two.packnet")
    one, two = (
        (tmp_path / f"{name}.packnet").read_bytes() for name in ("one", "two")
    )
    assert one == two


def test_what_is_measured_can_be_read_otherwise(packed):
    finish(packed)
    heads = [packed.heads["one"]]
    (same, _), *_ = fingerprint.measure(packed._entries, heads)
    (other, _), *_ = fingerprint.measure(
        packed._entries, heads, lambda variable: variables.view(variable) + 1
    )
    assert same.fingerprint == packed._tasks.find("one").record.fingerprint
    for part in ("backbone", "head"):
        digests, others = getattr(same, part), getattr(other, part)
        assert list(digests) == list(others)
        assert not set(digests.items()) & set(others.items())
