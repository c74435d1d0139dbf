import json
import os
import pathlib
import struct
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from limits import within

import packnet_tf
from packnet_tf import cli_inputs
from packnet_tf import keras_file
from packnet_tf.errors import FileError

L = keras.layers
NAMES = ["metadata.json", "config.json", "model.weights.h5"]


@pytest.fixture
def saved(packed, tmp_path):
    """A saved model and its members."""
    packed.save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    return tmp_path / "model.keras", members


def rewrite(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def refused(path, match):
    with pytest.raises(FileError, match=match) as info:
        packnet_tf.load_model(path)
    assert f"{str(path)!r}" in str(info.value)


def test_check_tells_the_bytes_of_the_weights(saved, packed):
    count = sum(
        variable.numpy().nbytes
        for variable in [*packed.variables, *packed.optimizer.variables]
    )
    assert count <= keras_file.check(saved[0]) <= count + 2**12


def test_check_takes_what_was_packed_again(saved):
    path, members = saved
    rewrite(path, dict(reversed(members.items())))
    packnet_tf.load_model(path)


def test_a_folder_is_looked_at_as_well(saved, packed, tmp_path):
    folder = tmp_path / "folder"
    packed.save(folder, zipped=False)
    assert keras_file.check(folder) == keras_file.check(saved[0])
    assert packnet_tf.load_model(folder).task_names == packed.task_names
    (folder / "more").write_text("more")
    refused(folder, "it has a member 'more'")
    (folder / "more").unlink()
    (folder / "config.json").rename(tmp_path / "config.json")
    refused(folder, "no file 'config.json'")
    (folder / "config.json").symlink_to(tmp_path / "config.json")
    refused(folder, "'config.json' is no file")


def test_a_folder_of_other_things_is_not_walked(tmp_path):
    refused(pathlib.Path("/"), "no file 'config.json'")


@pytest.mark.parametrize("name", ["model.h5", "model", "model.weights.h5"])
def test_only_keras_files_are_read(saved, tmp_path, name):
    saved[0].rename(tmp_path / name)
    refused(tmp_path / name, "does not end in `.keras`")


def test_a_pipe_is_not_waited_for(packed, tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("pipe.keras", "run/packed.keras", "pipe.weights.h5"):
        os.mkfifo(tmp_path / name)
    with within(30):
        refused(tmp_path / "pipe.keras", "it is no file")
        with pytest.raises(FileError, match="it is no file"):
            cli_inputs.load(tmp_path / "run")
        for name in ("pipe.keras", "pipe.weights.h5"):
            with pytest.raises(FileError, match="it is no file"):
                packed.load_weights(tmp_path / name)


@pytest.mark.parametrize("name", NAMES)
def test_every_member_must_be_there(saved, name):
    path, members = saved
    del members[name]
    rewrite(path, members)
    refused(path, "it has no member")


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "/x",
        "x",
        "assets/../../x",
        "assets//x",
        "assets/",
        "assets/c:\\x",
        "Config.json",
        "model.weights.npz",
    ],
)
def test_no_other_member_may_be_there(saved, name):
    path, members = saved
    rewrite(path, {**members, name: b"x"})
    refused(path, "it has a member")


def test_no_member_may_be_there_twice(saved):
    path, members = saved
    with (
        zipfile.ZipFile(path, "a") as archive,
        pytest.warns(UserWarning, match="Duplicate name"),
    ):
        archive.writestr("config.json", members["config.json"])
    refused(path, "it has a member twice")


def test_no_member_is_a_link(saved):
    path, _ = saved
    link = zipfile.ZipInfo("assets/link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    refused(path, "'assets/link' is no file")


def test_no_member_is_compressed(saved):
    path, members = saved
    rewrite(path, members, zipfile.ZIP_DEFLATED)
    refused(path, "is compressed")


def test_members_do_not_overlap(saved):
    path, _ = saved
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        first, *_, last = archive.infolist()
    at = content.rfind(b"PK\1\2")
    struct.pack_into("<I", content, at + 42, first.header_offset)
    path.write_bytes(content)
    refused(path, "overlap")
    assert last.filename == "model.weights.h5"


def test_check_sums_are_compared(saved):
    path, members = saved
    content = path.read_bytes()
    at = content.find(members["model.weights.h5"][-100:])
    path.write_bytes(content[:at] + b"\x55" + content[at + 1 :])
    refused(path, "CRC-32")


def test_a_directory_of_many_members_is_not_read(tmp_path):
    path = tmp_path / "model.keras"
    rewrite(path, {f"assets/{number}": b"" for number in range(20_000)})
    refused(path, "too many members")


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (b"", "Expecting value"),
        (b"[1]", "holds no object"),
        (b"\xff", "ascii"),
        (b'{"a": ' * 10**5, "."),
        (b"[" * 10**5 + b"]" * 10**5, "."),
        (b'{"a": [' + b"[]," * 10**6 + b"[]]}", "values"),
        (b'{"a": ' + b"9" * 10**5 + b"}", "."),
        (b'{"a": "' + b"a" * 2**25 + b'"}', "bytes"),
    ],
    ids=range(8),
)
@pytest.mark.parametrize("name", NAMES[:2])
def test_json_is_bounded(saved, name, config, match):
    path, members = saved
    rewrite(path, {**members, name: config})
    refused(path, match)


def edit(saved, change):
    """Saves the model with another configuration."""
    path, members = saved
    config = json.loads(members["config.json"])
    change(config)
    rewrite(path, {**members, "config.json": json.dumps(config)})
    return path


def layers(config):
    return {
        layer["config"]["name"]: layer
        for layer in config["config"]["backbone"]["config"]["layers"]
    }


def test_a_configuration_that_brings_code_is_refused(saved):
    def change(config):
        layers(config)["dense"]["class_name"] = "Lambda"
        layers(config)["dense"]["module"] = "keras.layers"
        layers(config)["dense"]["registered_name"] = None

    refused(edit(saved, change), "code of its own")


def test_whatever_keras_raises_is_a_file_error(saved):
    def change(config):
        (call,) = layers(config)["dense"]["inbound_nodes"]
        call["args"][0]["config"]["dtype"] = "nothing"

    refused(edit(saved, change), "Cannot load")


PROGRAM = """
import resource, sys
import packnet_tf
from packnet_tf.errors import FileError
packnet_tf.wrap(__import__("keras").Sequential([
    __import__("keras").Input((2,)), __import__("keras").layers.Dense(3),
    __import__("keras").layers.Dense(3)]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    packnet_tf.load_model(sys.argv[1])
except FileError as error:
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(after - before, error)
"""


def test_a_layer_of_terabytes_takes_no_memory(saved):
    def change(config):
        inner = layers(config)["dense"]["config"]["layer"]
        inner["config"]["units"] = 2**40

    path = edit(saved, change)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, path],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    kilobytes, message = done.stdout.split(maxsplit=1)
    assert "more memory" in message
    assert int(kilobytes) < 2 * path.stat().st_size / 2**10 + 2**18


def test_a_larger_model_than_allowed_is_refused(saved):
    path, _ = saved
    size = keras_file.check(path)
    assert packnet_tf.load_model(path, max_bytes=size).task_names == ["one"]
    with pytest.raises(FileError, match="larger than `max_bytes`"):
        packnet_tf.load_model(path, max_bytes=size - 1)


@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5"])
def test_damaged_weights_are_not_loaded(packed, tmp_path, name):
    path = tmp_path / name
    (packed.save if name.endswith(".keras") else packed.save_weights)(path)
    packed.load_weights(path)
    content = path.read_bytes()
    for at in (content.find(b"TREE"), content.find(b"SNOD")):
        path.write_bytes(content[:at] + b"\xff" + content[at + 1 :])
        before = [variable.numpy() for variable in packed.variables]
        with pytest.raises(FileError, match="Received: "):
            packed.load_weights(path)
        for old, variable in zip(before, packed.variables):
            np.testing.assert_array_equal(old, variable.numpy())
