import os
import pathlib

import pytest

from packnet_tf import files
from packnet_tf.errors import FileError
from packnet_tf.errors import PackNetError


def _write_folder(path, text):
    (path / "variables").mkdir(parents=True)
    (path / "saved_model.pb").write_text(text)
    (path / "variables" / "index").write_text(text)


def _tree(path):
    """Returns the content of every file below a folder, hidden ones too."""
    return {
        str(p.relative_to(path)): p.read_text() if p.is_file() else None
        for p in path.rglob("*")
    }


def test_replacing_writes_a_new_file(tmp_path):
    target = tmp_path / "model.keras"
    with files.replacing(target) as new:
        new.write_text("new")
        assert not target.exists()
    assert _tree(tmp_path) == {"model.keras": "new"}


def test_replacing_writes_a_new_folder(tmp_path):
    with files.replacing(tmp_path / "served") as new:
        _write_folder(new, "new")
    assert _tree(tmp_path / "served") == {
        "saved_model.pb": "new",
        "variables": None,
        "variables/index": "new",
    }
    assert [p.name for p in tmp_path.iterdir()] == ["served"]


@pytest.mark.parametrize("convert", [str, pathlib.Path, os.fspath])
def test_replacing_takes_strings_and_paths(tmp_path, convert):
    with files.replacing(convert(tmp_path / "model.keras")) as new:
        new.write_text("new")
    assert _tree(tmp_path) == {"model.keras": "new"}


def test_replacing_takes_relative_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with files.replacing("model.keras") as new:
        new.write_text("new")
    assert _tree(tmp_path) == {"model.keras": "new"}


@pytest.mark.parametrize("name", ["model.keras", "a.tar.gz", "served", ".rc"])
def test_replacing_yields_a_free_path_beside_the_target(tmp_path, name):
    target = tmp_path / name
    with files.replacing(target) as new:
        assert not new.exists()
        assert new.name == name
        assert new != target
        assert tmp_path in new.parents
        new.write_text("new")


def test_replacing_makes_missing_folders(tmp_path):
    with files.replacing(tmp_path / "a" / "b" / "model.keras") as new:
        new.write_text("new")
    assert (tmp_path / "a" / "b" / "model.keras").read_text() == "new"


def test_replacing_replaces_a_file_at_the_end(tmp_path):
    target = tmp_path / "model.keras"
    target.write_text("old")
    with files.replacing(target) as new:
        new.write_text("new")
        assert target.read_text() == "old"
    assert _tree(tmp_path) == {"model.keras": "new"}


def test_replacing_replaces_a_folder_as_a_whole(tmp_path):
    target = tmp_path / "served"
    _write_folder(target, "old")
    (target / "leftover").write_text("old")
    with files.replacing(target) as new:
        _write_folder(new, "new")
        assert (target / "leftover").read_text() == "old"
    assert _tree(tmp_path) == {
        "served": None,
        "served/saved_model.pb": "new",
        "served/variables": None,
        "served/variables/index": "new",
    }


def test_replacing_replaces_a_folder_of_any_name(tmp_path):
    target = tmp_path / "replaced"
    _write_folder(target, "old")
    with files.replacing(target) as new:
        _write_folder(new, "new")
    assert (target / "saved_model.pb").read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("kind", ["file", "folder", "nothing"])
def test_replacing_keeps_the_old_when_writing_fails(tmp_path, kind, error):
    target = tmp_path / "target"
    if kind == "file":
        target.write_text("old")
    elif kind == "folder":
        _write_folder(target, "old")
    before = _tree(tmp_path)
    write = _write_folder if kind == "folder" else pathlib.Path.write_text

    def fail_halfway():
        with files.replacing(target) as new:
            write(new, "half")
            raise error

    with pytest.raises(error):
        fail_halfway()
    assert _tree(tmp_path) == before


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_replacing_keeps_the_old_when_nothing_is_written(tmp_path, kind):
    target = tmp_path / "target"
    if kind == "file":
        target.write_text("old")
    else:
        _write_folder(target, "old")
    before = _tree(tmp_path)
    with pytest.raises(OSError, match="target"), files.replacing(target):
        pass
    assert _tree(tmp_path) == before


def test_replacing_keeps_the_old_folder_when_renaming_fails(
    tmp_path, monkeypatch
):
    target = tmp_path / "served"
    _write_folder(target, "old")
    before = _tree(tmp_path)
    replace = os.replace
    into_place = []

    def fail_at_first(source, destination):
        if pathlib.Path(destination) == target and not into_place:
            into_place.append(source)
            raise OSError("the disk is gone")
        replace(source, destination)

    monkeypatch.setattr(os, "replace", fail_at_first)
    with pytest.raises(OSError, match="the disk"):
        with files.replacing(target) as new:
            _write_folder(new, "new")
    monkeypatch.undo()
    assert _tree(tmp_path) == before


@pytest.mark.parametrize("path", ["", ".", "..", "a/..", "a\0b"])
def test_replacing_refuses_a_path_that_names_nothing(
    tmp_path, path, monkeypatch
):
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileError, match="Received: path="):
        with files.replacing(path) as new:
            _write_folder(new, "new")
    assert _tree(tmp_path) == {"a": None}


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_replacing_refuses_another_kind(tmp_path, kind):
    target = tmp_path / "target"
    if kind == "file":
        target.write_text("old")
    else:
        _write_folder(target, "old")
    before = _tree(tmp_path)
    write = _write_folder if kind == "file" else pathlib.Path.write_text
    with pytest.raises(FileError) as info:
        with files.replacing(target) as new:
            write(new, "new")
    assert f"There is a {kind} of that name" in str(info.value)
    assert f"Received: path={str(target)!r}" in str(info.value)
    assert _tree(tmp_path) == before


@pytest.mark.parametrize("below", ["model.keras", "a/b/model.keras"])
def test_replacing_refuses_a_path_below_a_file(tmp_path, below):
    (tmp_path / "file").write_text("old")
    target = tmp_path / "file" / below
    entered = False
    with pytest.raises(FileError) as info, files.replacing(target):
        entered = True
    assert not entered
    assert isinstance(info.value, PackNetError)
    assert isinstance(info.value, OSError)
    message = str(info.value)
    assert f"'{target.parent}'" in message
    assert f"Received: path={str(target)!r}" in message
    assert _tree(tmp_path) == {"file": "old"}


def test_replacing_refuses_a_folder_where_nothing_can_be_made(
    tmp_path, monkeypatch
):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.tempfile, "mkdtemp", refuse)
    with pytest.raises(FileError, match="Permission denied"):
        with files.replacing(tmp_path / "model.keras"):
            pass
    assert _tree(tmp_path) == {}


def test_replacing_follows_no_link_to_what_it_replaces(tmp_path):
    _write_folder(tmp_path / "release_1", "old")
    target = tmp_path / "latest"
    target.symlink_to(tmp_path / "release_1", target_is_directory=True)
    with files.replacing(target) as new:
        _write_folder(new, "new")
    assert not target.is_symlink()
    assert (target / "saved_model.pb").read_text() == "new"
    assert (tmp_path / "release_1" / "saved_model.pb").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "release_1"]
