"""Files that may come from anyone: read as they were, or refused."""

import json
import pathlib
import random
import subprocess
import sys

import damage
import hypothesis
import keras
import numpy as np
import pytest
from helpers import all_values
from helpers import compile_model
from hypothesis import strategies as st
from layer_networks import CASES
from layer_networks import build

import packnet_tf
from packnet_tf import configurations
from packnet_tf.errors import FileError
from packnet_tf.errors import FingerprintError

# Name of the file, how it is written and read, and what may happen to it.
READERS = {
    "model.keras": (
        lambda model, path: model.save(path),
        lambda path: packnet_tf.load_model(path),
        damage.KERAS,
    ),
}

each_damage = pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, id=f"{name}-{kind.__name__}")
        for name, (_, _, kinds) in READERS.items()
        for kind in kinds
    ],
)


@pytest.mark.parametrize("name", CASES)
def test_no_layer_of_keras_is_refused(name):
    model = packnet_tf.wrap(build(name), head=None)
    config = keras.saving.serialize_keras_object(model)
    configurations.check(json.loads(json.dumps(config, default=list)))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A trained model of two tasks, and the bytes of each kind of file."""
    keras.utils.set_random_seed(3)
    layers = [
        keras.Input((4,)),
        keras.layers.Dense(5, "tanh", name="first"),
        keras.layers.Dense(3, "softmax", name="top"),
    ]
    model = packnet_tf.wrap(keras.Sequential(layers), task="one")
    compile_model(model, run_eagerly=True)
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    model.fit(x, np.arange(8) % 3, verbose=0)
    model.prune(0.5)
    model.freeze_task()
    model.add_task("two", units=2)
    model.fit(x, np.arange(8) % 2, verbose=0)
    folder = tmp_path_factory.mktemp("written")
    contents = {}
    for name, (write, _, _) in READERS.items():
        write(model, folder / name)
        contents[name] = (folder / name).read_bytes()
    return model, contents


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A folder for the file and one for scratch files; both are watched."""
    folder, scratch = tmp_path / "folder", tmp_path / "scratch"
    folder.mkdir()
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    return tmp_path, folder


def listing(folder):
    return sorted(str(path) for path in folder.rglob("*"))


def outcome(read, path, around):
    """Reads a file, and checks that it leaves no trace if it is refused."""
    before, message = listing(around), "Received: "
    try:
        found = read(path)
        found.verify()
    except (FileError, FingerprintError) as error:
        found, message = None, str(error)
    assert "Received: " in message
    assert listing(around) == before
    assert not list(around.parent.glob("outside*"))
    keras.backend.clear_session(free_memory=False)
    return found


def check_one(written, places, name, kind, seed):
    model, contents = written
    around, folder = places
    path = folder / name
    content = kind(contents[name], random.Random(seed))
    path.write_bytes(content)
    found = outcome(READERS[name][1], path, around)
    if found is None:
        return
    assert isinstance(found, packnet_tf.PackNetModel)
    if content == contents[name] or kind in damage.ARCHIVE:
        # What the model is made of has not changed, or its check sum shows it.
        values = [value.tobytes() for value in all_values(found)]
        assert values == [value.tobytes() for value in all_values(model)]


seeds = hypothesis.given(seed=st.integers(0, 2**64))
fixed = hypothesis.HealthCheck.function_scoped_fixture


@pytest.mark.parametrize("name", READERS)
def test_an_undamaged_file_is_the_same(written, places, name):
    def leave(content, draw):
        return content

    check_one(written, places, name, leave, 0)
    assert READERS[name][1](places[1] / name).task_names == ["one", "two"]


@each_damage
@seeds
@hypothesis.settings(
    max_examples=25,
    deadline=None,
    database=None,
    suppress_health_check=[fixed],
)
def test_a_damaged_file_is_refused_or_the_same(
    written, places, name, kind, seed
):
    check_one(written, places, name, kind, seed)


@pytest.mark.slow
@each_damage
@seeds
@hypothesis.settings(
    max_examples=400,
    deadline=None,
    database=None,
    suppress_health_check=[fixed],
)
def test_thousands_of_damaged_files(written, places, name, kind, seed):
    check_one(written, places, name, kind, seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*READERS, "pack", "delta"])
def test_damaged_files_take_little_time_and_memory(tmp_path, name):
    # A process of its own: a file that takes too much may end it.
    path = pathlib.Path(__file__).parent.with_name("bounded_reads.py")
    done = subprocess.run(
        [sys.executable, path, name, tmp_path, "300"],
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    # What it says at last is which example it was.
    assert done.returncode == 0, done.stdout[-500:]
    assert f"{name}: " in done.stdout
