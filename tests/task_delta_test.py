import json

import keras
import numpy as np
import pytest
from helpers import Unchanged
from helpers import compile_model
from helpers import same_bits
from helpers import two_devices
from pack_files import describe
from pack_files import put_together
from pack_files import take_apart
from pack_files import with_description

import packnet_tf
from packnet_tf import byte_planes
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import FileError
from packnet_tf.errors import FingerprintError
from packnet_tf.errors import StageError
from packnet_tf.errors import TaskError

L = keras.layers
NAMES = ("one", "two", "three")
OWN = ("frozen", "per_task")


def fill(model):
    """Gives the newest task weights, as if it had trained."""
    number = len(model.task_names)
    generator = np.random.default_rng(number)
    for entry in model._entries:
        values = entry.variable.numpy()
        noise = generator.uniform(0.1, 1, values.shape).astype(values.dtype)
        if entry.owner is not None:
            mine = entry.owner.numpy() == number
            entry.variable.assign(np.where(mine, noise, values))
        elif entry.protection == "per task":
            entry.variable.assign(noise)


@pytest.fixture
def pair(network, tmp_path):
    """Returns a model of three tasks, and one of the first alone."""

    def make(own="frozen"):
        model = packnet_tf.wrap(
            network(), task="one", biases=own, normalization=own
        )
        fill(model)
        model.prune(0.5)
        model.freeze_task()
        packnet_tf.save_pack(model, tmp_path / "base.packnet")
        for name, sparsity in (("two", 0.5), ("three", 0.25)):
            model.add_task(name, units=3)
            fill(model)
            model.prune(sparsity)
            model.freeze_task()
        return model, packnet_tf.load_pack(tmp_path / "base.packnet")

    return make


def save(model, name, folder):
    path = folder / f"{name}.packtask"
    packnet_tf.save_task(model, name, path)
    return path


@pytest.mark.parametrize("own", OWN)
def test_a_device_ends_as_the_origin(own, pair, images, tmp_path):
    x, _ = images
    model, device = pair(own)
    paths = [save(model, name, tmp_path) for name in NAMES[1:]]
    for count, path in enumerate(paths, start=2):
        packnet_tf.load_task(device, path)
        assert device.task_names == list(NAMES[:count])
        assert device.task == NAMES[count - 1]
        assert device.stage is packnet_tf.Stage.FROZEN
        proofs = model.verify()
        for task in device.task_names:
            assert device.verify()[task] == proofs[task]
            for other in (model, device):
                assert other._tasks.find(task).record.sketches
            np.testing.assert_array_equal(
                model.predict(x, verbose=0, task=task),
                device.predict(x, verbose=0, task=task),
            )
    assert json.dumps(model.get_config()) == json.dumps(device.get_config())
    ours = {part.key: part.variable for part in device._parts()}
    for part in model._parts():
        if not part.key.endswith("seed_generator_state"):
            same = same_bits(part.variable.numpy(), ours[part.key].numpy())
            assert same, part.key
    for one, other in zip(model._packed(), device._packed()):
        assert same_bits(one.owner.numpy(), other.owner.numpy())


def test_a_delta_does_not_hold_what_others_own(pair, tmp_path):
    model, _ = pair()
    _, sections = take_apart(save(model, "two", tmp_path).read_bytes())
    found = {part for kind, part in sections if kind == 3}
    values = [e.variable.numpy()[e.owner.numpy() == 2] for e in model._packed()]
    values += [variable.numpy() for variable in model.heads["two"].variables]
    assert found == {
        b"".join(byte_planes.encode(value.tobytes(), 4)) for value in values
    }


def test_a_device_trains_on(pair, images, tmp_path):
    x, y = images
    model, device = pair("per_task")
    compile_model(device)
    optimizer = device.optimizer
    packnet_tf.load_task(device, save(model, "two", tmp_path))
    assert device.compiled
    assert device.optimizer is not optimizer
    device.evaluate(x, y % 3, verbose=0)
    with pytest.raises(StageError):
        device.fit(x, y % 3, verbose=0)
    before = device.predict(x, verbose=0)
    device.add_task("four", units=4)
    device.fit(x, y, verbose=0)
    device.prune(0.5)
    device.freeze_task()
    np.testing.assert_array_equal(
        before, device.predict(x, verbose=0, task="two")
    )
    device.save(tmp_path / "device.keras")
    loaded = packnet_tf.load_model(tmp_path / "device.keras")
    assert loaded.verify() == device.verify()
    packnet_tf.load_task(
        packnet_tf.load_pack(tmp_path / "base.packnet"),
        save(loaded, "two", tmp_path),
    )


def test_memory_for_what_a_task_has_of_its_own_is_bounded(pair, tmp_path):
    model, device = pair("per_task")
    path = save(model, "two", tmp_path)
    for most in (0, True, 1.5):
        with pytest.raises(ArgumentError, match="Received: max_bytes="):
            packnet_tf.load_task(device, path, max_bytes=most)
    own = sum(v.numpy().nbytes for v in model.heads["two"].variables)
    own += sum(
        entry.variable.numpy().nbytes
        for entry in model._entries
        if entry.protection == "per task"
    )
    with Unchanged(device), pytest.raises(FileError, match=f"={own}`"):
        packnet_tf.load_task(device, path, max_bytes=own - 1)
    packnet_tf.load_task(device, path, max_bytes=own)
    assert device.task_names == ["one", "two"]


def test_a_task_without_a_weight_of_its_own(network, images, tmp_path):
    model = packnet_tf.wrap(network(), task="one")
    model.freeze_task()
    packnet_tf.save_pack(model, tmp_path / "base.packnet")
    with pytest.warns(UserWarning, match="owns no weight"):
        model.add_task("two", units=3)
    model.freeze_task()
    device = packnet_tf.load_pack(tmp_path / "base.packnet")
    packnet_tf.load_task(device, save(model, "two", tmp_path))
    assert device.verify() == model.verify()
    assert json.dumps(model.get_config()) == json.dumps(device.get_config())


def test_replicas_all_get_the_task(pair, tmp_path):
    model, _ = pair("per_task")
    with two_devices().scope():
        device = packnet_tf.load_pack(tmp_path / "base.packnet")
    packnet_tf.load_task(device, save(model, "two", tmp_path))
    assert device.verify()["two"] == model.verify()["two"]
    for variable in device.variables:
        one, other = (replica.numpy() for replica in variable.value.values)
        assert same_bits(one, other)


def refuse(device, path, error, words):
    with Unchanged(device), pytest.raises(error, match=words) as caught:
        packnet_tf.load_task(device, path)
    assert "Received: " in str(caught.value)


@pytest.mark.parametrize("own", OWN)
def test_the_wrong_moment_is_refused(own, pair, images, tmp_path):
    model, device = pair(own)
    two, three = (save(model, name, tmp_path) for name in NAMES[1:])
    refuse(device, three, FileError, "is task 3 of a model.*in their order")
    packnet_tf.load_task(device, two)
    refuse(device, two, FileError, "is task 2 of a model.*each once")
    device.add_task("other", units=3)
    refuse(device, three, StageError, r"Call `freeze_task\(\)` first")
    device.freeze_task()
    refuse(device, three, FileError, "is task 3 of a model")
    backbone = packnet_tf.wrap(model.unwrap("one"), head=None)
    refuse(backbone, two, StageError, "needs a task")


def test_another_base_is_refused(pair, network, tmp_path):
    model, _ = pair()
    two = save(model, "two", tmp_path)
    other = packnet_tf.wrap(network(), task="one")
    fill(other)
    other.prune(0.25)
    other.freeze_task()
    refuse(other, two, FileError, "on top of other tasks")


def test_inside_of_fit_is_refused(pair, images, tmp_path):
    model, _ = pair()
    two = save(model, "two", tmp_path)
    model.add_task("four", units=4)
    compile_model(model)

    class Load(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            packnet_tf.load_task(self.model, two)

    with pytest.raises(StageError, match=r"waits for the end of `fit\(\)`"):
        model.fit(*images, callbacks=[Load()], verbose=0)


def test_what_cannot_be_saved_is_refused(pair, network, tmp_path):
    model, _ = pair()
    path = tmp_path / "file"
    with pytest.raises(TaskError, match="save_pack"):
        packnet_tf.save_task(model, "one", path)
    with pytest.raises(TaskError, match="no such task"):
        packnet_tf.save_task(model, "ten", path)
    model.add_task("four", units=2)
    with pytest.raises(StageError, match=r"freeze_task.*stage=TRAIN"):
        packnet_tf.save_task(model, "four", path)
    with pytest.raises(ArgumentError, match="Received"):
        packnet_tf.save_task(network(), "two", path)
    with pytest.raises(ArgumentError, match=r"pathlib.Path.*Received"):
        packnet_tf.save_task(model, "two", None)
    with pytest.raises(ArgumentError, match="Received"):
        packnet_tf.load_task(network(), path)
    kernel = model.backbone.get_layer("dense").layer.kernel
    kernel.assign(kernel * 2.0)
    with pytest.raises(FingerprintError, match="dense/kernel"):
        packnet_tf.save_task(model, "two", path)
    assert not path.exists()


def test_a_base_that_has_changed_is_refused(pair, tmp_path):
    model, device = pair()
    two = save(model, "two", tmp_path)
    bias = device.backbone.get_layer("dense").layer.bias
    bias.assign(bias + 1.0)
    refuse(device, two, FingerprintError, "dense/bias")
    bias.assign(bias - 1.0)
    kernel = device.backbone.get_layer("dense").layer.kernel
    value = kernel.numpy()
    kernel.assign(np.where(value == 0.0, np.float32(1), value))
    refuse(device, two, StageError, "have to be zero")


@pytest.mark.parametrize("own", OWN)
def test_other_values_are_undone(own, pair, tmp_path):
    model, device = pair(own)
    path = save(model, "two", tmp_path)
    kind, sections = take_apart(path.read_bytes())
    for place, (what, part) in enumerate(sections):
        if what != 3 or not part:
            continue
        # A length comes first, then the lowest bytes of the values.
        other = part[:4] + bytes([part[4] ^ 1]) + part[5:]
        changed = [*sections[:place], (3, other), *sections[place + 1 :]]
        path.write_bytes(put_together(kind, changed))
        refuse(device, path, FingerprintError, "'two' has changed")
    last = sections[-1][1]
    for part in (last[:-4], last + bytes(4)):
        path.write_bytes(put_together(kind, [*sections[:-1], (3, part)]))
        refuse(device, path, FileError, "a section")
    owners = sections[1][1]
    changed = [sections[0], (2, owners[:-1] + b"\xff"), *sections[2:]]
    path.write_bytes(put_together(kind, changed))
    refuse(device, path, FileError, "owner map")
    path.write_bytes(put_together(kind, sections))
    packnet_tf.load_task(device, path)


def last(description):
    """Returns the configuration of the last layer of the head."""
    return description["head"]["config"]["layers"][-1]["config"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["task"].update(name="one"), "name"),
        (lambda d: d["task"].update(name="../two"), "name"),
        (lambda d: d["task"].update(name="other"), "head"),
        (lambda d: d["task"].update(name=7), "no such task"),
        (lambda d: d["task"].update(number=3), "is task 3"),
        (lambda d: d["task"].update(number=1), "is task 1"),
        (lambda d: d["task"].update(number=True), "no such task"),
        (lambda d: d["task"].update(stage="TRAIN", record=None), "not frozen"),
        (lambda d: d["task"].update(record=None), "without a record"),
        (lambda d: d["task"].update(record={}), "record of a task"),
        (lambda d: d["task"].update(record=0), "record of a task"),
        (lambda d: d["task"].update(sparsity=1.0), "no such task"),
        (lambda d: d["task"].update(sparsity=float("nan")), "no such task"),
        (lambda d: d["task"]["record"].update(base=7), "record of a task"),
        (lambda d: d.update(base=[]), "other tasks"),
        (lambda d: d.update(base=None), "other tasks"),
        (lambda d: d.update(task=None), "record of a task"),
        (lambda d: d.update(head=None), "head"),
        (lambda d: d["head"].update(class_name="Lambda"), "configuration"),
        (lambda d: d["head"]["config"].update(name="else"), "head"),
        (lambda d: last(d).update(units=2**40), "more memory"),
        (lambda d: d.pop("variables"), "no list of variables"),
        (lambda d: d["variables"].reverse(), "variables|size|sections"),
        (lambda d: d["variables"].pop(), "sections"),
    ],
)
def test_other_descriptions_are_refused(change, words, pair, tmp_path):
    model, device = pair()
    path = save(model, "two", tmp_path)
    content = path.read_bytes()
    description = describe(content)
    change(description)
    path.write_bytes(with_description(content, description))
    refuse(device, path, FileError, words)


def test_a_pack_is_no_delta(pair, tmp_path):
    model, device = pair()
    two = save(model, "two", tmp_path)
    refuse(device, tmp_path / "base.packnet", FileError, "packnet_tf.load_pack")
    with pytest.raises(FileError, match=r"packnet_tf\.load_task"):
        packnet_tf.load_pack(two)
