import dataclasses
import json
import os
import resource
import shutil

import keras
import pytest

import packnet_tf
from packnet_tf import files
from packnet_tf import progress
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import FileError
from packnet_tf.errors import FingerprintError
from packnet_tf.errors import StageError
from packnet_tf.progress import Progress
from packnet_tf.task_plan import TaskResult

PLANS = [{"name": "one", "epochs": 3}, {"name": "two", "epochs": 3}]
LOGS = {"loss": 0.1, "val_loss": float("inf")}


def halfway():
    return Progress(
        plans=PLANS,
        seed=5,
        task=1,
        phase="train",
        epochs=1,
        history=[LOGS],
        results=[TaskResult("one", [LOGS, LOGS], 1, "0" * 64)],
    )


@pytest.fixture
def written(packed, tmp_path):
    """A folder with a checkpoint, of a model in its first task."""
    progress.write(tmp_path, halfway(), packed)
    return tmp_path


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A folder with a checkpoint of a very small model, made once."""
    layers = [keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(2)]
    model = packnet_tf.wrap(keras.Sequential(layers), task="one")
    folder = tmp_path_factory.mktemp("original")
    progress.write(folder, halfway(), model)
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_nothing_is_read_where_nothing_is(tmp_path):
    assert progress.read(tmp_path) is None
    assert progress.read(tmp_path / "missing") is None


def test_what_is_written_is_read(packed, tmp_path):
    folder = tmp_path / "a" / "b"
    state = halfway()
    progress.write(folder, state, packed)
    assert progress.read(folder) == state
    assert names(folder) == ["checkpoint-000001.keras", "progress.json"]
    assert state.size == (folder / state.model).stat().st_size
    assert state.state["tasks"] == ["one"]
    assert packnet_tf.load_model(folder / state.model).stage is packed.stage


def test_the_next_replaces_it(packed, written):
    state = progress.read(written)
    state.epochs += 1
    state.history.append(LOGS)
    progress.write(written, state, packed)
    assert progress.read(written) == state
    assert names(written) == ["checkpoint-000002.keras", "progress.json"]


def test_progress_alone_keeps_the_model(written):
    state = progress.read(written)
    state.next_task()
    state.results.append(state.results[0])
    model = (written / state.model).stat()
    progress.write(written, state)
    assert progress.read(written) == state
    assert (written / state.model).stat().st_mtime_ns == model.st_mtime_ns


def test_what_a_kill_has_left_goes(packed, written):
    for name in ("checkpoint-000002.keras", "progress.json"):
        scratch, lock = files._make_scratch(written / name)
        (scratch / "new").mkdir()
        (scratch / "new" / name).write_text("half")
        os.close(lock)
    (written / "checkpoint-000002.keras").write_text("never named")
    (written / "checkpoint-9.keras").write_text("not ours")
    (written / "notes.txt").write_text("not ours")
    progress.write(written, progress.read(written), packed)
    assert names(written) == [
        "checkpoint-000002.keras",
        "checkpoint-9.keras",
        "notes.txt",
        "progress.json",
    ]
    assert progress.read(written).model == "checkpoint-000002.keras"


def test_what_a_kill_has_left_goes_without_a_write(written):
    before = contents(written)
    _, lock = files._make_scratch(written / "progress.json")
    os.close(lock)
    (written / "checkpoint-000002.keras").write_text("never named")
    progress.clean(written)
    assert contents(written) == before


def test_nothing_goes_where_nothing_can_be_read(written, tmp_path):
    write_text("{")(written)
    before = contents(written)
    progress.clean(written)
    (written / "progress.json").unlink()
    del before["progress.json"]
    progress.clean(written)
    assert contents(written) == before
    progress.clean(tmp_path / "missing")


def test_what_another_is_writing_stays(packed, written):
    with files.replacing(written / "progress.json") as other:
        other.write_text("half")
        progress.write(written, progress.read(written), packed)
        assert other.read_text() == "half"


@pytest.mark.parametrize("call", [1, 2], ids=["model", "json"])
@pytest.mark.parametrize("step", ["_flush", "_flush_folder", "_remove"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_leaves_what_can_be_read(
    step, call, error, original, tmp_path, monkeypatch
):
    folder = tmp_path / "runs"
    shutil.copytree(original, folder)
    before = progress.read(folder)
    model = packnet_tf.load_model(folder / before.model)
    whole, left = getattr(files, step), [call]

    def interrupted(path):
        whole(path)
        left[0] -= 1
        if not left[0]:
            raise error

    state = dataclasses.replace(before, epochs=0, phase="freeze")
    with monkeypatch.context() as patch:
        patch.setattr(files, step, interrupted)
        with pytest.raises(error):
            progress.write(folder, state, model)
    assert left == [0]
    found = progress.read(folder)
    assert found.phase in ("train", "freeze")
    assert packnet_tf.load_model(folder / found.model).task_names == ["one"]
    progress.write(folder, found, model)
    assert names(folder) == [found.model, "progress.json"]


class Untold(keras.losses.Loss):
    """A loss that cannot be saved, for a reason of its own."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def call(self, y_true, y_pred):
        return y_pred

    def get_config(self):
        raise self.error


@pytest.mark.parametrize("kind", [RuntimeError, ValueError])
def test_an_error_that_is_no_want_of_room_is_told_as_it_is(
    kind, packed, written
):
    before = contents(written)
    packed.compile("sgd", Untold(kind("a reason of its own")))
    with pytest.raises(kind, match="a reason of its own") as info:
        progress.write(written, progress.read(written), packed)
    assert info.type is kind
    assert contents(written) == before


def set_entry(name, value):
    def change(folder):
        path = folder / "progress.json"
        data = json.loads(path.read_text())
        data[name] = value
        path.write_text(json.dumps(data))

    return change


def write_text(text):
    return lambda folder: (folder / "progress.json").write_text(text)


def remove_entry(folder):
    path = folder / "progress.json"
    data = json.loads(path.read_text())
    del data["history"]
    path.write_text(json.dumps(data))


def elsewhere(folder):
    """Names a model outside of the folder, which is there."""
    outside = folder.parent / "checkpoint-000001.keras"
    (folder / "checkpoint-000001.keras").rename(outside)
    return outside


def link(folder):
    os.symlink(elsewhere(folder), folder / "checkpoint-000001.keras")


def climb(folder):
    elsewhere(folder)
    set_entry("model", "../checkpoint-000001.keras")(folder)


def absolute(folder):
    set_entry("model", str(elsewhere(folder)))(folder)


def cut_model(folder):
    with open(folder / "checkpoint-000001.keras", "rb+") as file:
        file.truncate(1000)


def be_a_folder(folder):
    (folder / "progress.json").unlink()
    (folder / "progress.json").mkdir()


def be_large(folder):
    with open(folder / "progress.json", "rb+") as file:
        file.truncate(2**30)


RESULT = dataclasses.asdict(TaskResult("one", [], 0, "0"))


@pytest.mark.parametrize(
    "damage",
    [
        write_text(""),
        write_text("{"),
        write_text("[1]"),
        write_text("\x00"),
        write_text("[" * 100_000),
        write_text('{"version": 1}'),
        write_text("9" * 10_000),
        lambda folder: (folder / "progress.json").write_bytes(b"\xff\xfe"),
        be_a_folder,
        be_large,
        remove_entry,
        link,
        climb,
        absolute,
        cut_model,
        lambda folder: (folder / "checkpoint-000001.keras").unlink(),
        set_entry("version", 2),
        set_entry("other", 2),
        set_entry("model", "progress.json"),
        set_entry("model", "checkpoint-000001.keras\n"),
        set_entry("model", None),
        set_entry("size", 3),
        set_entry("seed", "5"),
        set_entry("task", -1),
        set_entry("task", True),
        set_entry("task", 2),
        set_entry("phase", "none"),
        set_entry("phase", ["train"]),
        set_entry("phase", "report"),
        set_entry("epochs", 1.0),
        set_entry("epochs", 2),
        set_entry("history", [{"loss": "0"}]),
        set_entry("history", {"loss": 0.0}),
        set_entry("state", []),
        set_entry("plans", [1, 2]),
        set_entry("plans", []),
        set_entry("results", [RESULT, RESULT]),
        set_entry("results", [{**RESULT, "history": [3]}]),
        set_entry("results", [{**RESULT, "name": 3}]),
        set_entry("results", [{"name": "one"}]),
    ],
)
def test_what_is_damaged_is_refused(damage, original, tmp_path):
    folder = tmp_path / "runs"
    shutil.copytree(original, folder)
    assert progress.read(folder) == progress.read(original)
    damage(folder)
    with pytest.raises(FileError, match="choose another") as info:
        progress.read(folder)
    assert f"Received: checkpoint_dir={str(folder)!r}" in str(info.value)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_a_full_disk_leaves_the_last_one(share, packed, written):
    before = contents(written)
    state = progress.read(written)
    known = dataclasses.replace(state)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * state.size), hard))
    try:
        with pytest.raises(FileError, match="Make room"):
            progress.write(written, state, packed)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(written) == before
    assert state == known
    progress.write(written, state, packed)
    assert progress.read(written) == state


def test_a_disk_that_is_full_after_the_model_leaves_the_last_one(
    packed, written
):
    before = contents(written)
    state = progress.read(written)
    state.history *= 2 * state.size // len(json.dumps(LOGS))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(1.2 * state.size), hard))
    try:
        with pytest.raises(FileError, match="Make room"):
            progress.write(written, state, packed)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(written) == before


def test_a_place_that_cannot_be_written_is_refused(packed, tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "runs"):
        with pytest.raises(FileError, match="Received:"):
            progress.write(folder, halfway(), packed)
    assert contents(tmp_path) == {"file": b"mine"}


def test_a_model_that_was_damaged_is_not_written(
    packed, images, finish_task, written
):
    finish_task(packed, *images)
    bias = packed.backbone.get_layer("dense").layer.bias
    bias.assign(bias + 1.0)
    before = contents(written)
    with pytest.raises(FingerprintError):
        progress.write(written, progress.read(written), packed)
    assert contents(written) == before


def test_the_same_sequence_goes_on(packed, written):
    found = progress.read(written)
    progress.check_continues(found, PLANS, 5, packed)
    more = [*PLANS, {"name": "three", "epochs": 3}]
    progress.check_continues(found, more, 5, packed)


@pytest.mark.parametrize(
    ("plans", "seed", "said"),
    [
        (PLANS, 6, "seed=6, expected 5"),
        (PLANS, None, "seed=None, expected 5"),
        (PLANS[:1], 5, "more tasks"),
        (PLANS[::-1], 5, "name='two' for 'two', expected 'one'"),
        (
            [PLANS[0], {**PLANS[1], "epochs": 4}],
            5,
            "plan 2 .* epochs=4 for 'two', expected 3",
        ),
        ([PLANS[0], {"name": "two"}], 5, "epochs=None for 'two', expected 3"),
    ],
)
def test_another_sequence_does_not_go_on(plans, seed, said, packed, written):
    with pytest.raises(ArgumentError, match=said):
        progress.check_continues(progress.read(written), plans, seed, packed)


def test_another_model_does_not_go_on(packed, images, network, written):
    found = progress.read(written)

    def refused(model, said):
        with pytest.raises(StageError, match=f"Received: .* with {said}"):
            progress.check_continues(found, PLANS, 5, model)

    refused(packnet_tf.wrap(network(classes=None)), r"tasks=\[\]")
    refused(packnet_tf.wrap(network(classes=5), task="one"), "parameters")
    packed.optimizer.build(packed.trainable_variables)
    refused(packed, "updates=0, expected None")
    found.epochs = 0
    progress.check_continues(found, PLANS, 5, packed)
    packed.fit(*images, verbose=0)
    refused(packed, "steps=1, expected 0")
    packed.prune(0.5)
    refused(packed, "stage=RETRAIN, expected TRAIN")
