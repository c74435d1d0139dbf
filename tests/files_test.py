import contextlib
import os
import pathlib
import resource
import sys

import pytest
from helpers import tree

from packnet_tf import files
from packnet_tf import locks
from packnet_tf.errors import FileError
from packnet_tf.errors import PackNetError


def _write_folder(path, text):
    (path / "variables").mkdir(parents=True)
    (path / "saved_model.pb").write_text(text)
    (path / "variables" / "index").write_text(text)


def test_replacing_writes_a_new_file(tmp_path):
    target = tmp_path / "model.keras"
    with files.replacing(target) as new:
        new.write_text("new")
        assert not target.exists()
    assert tree(tmp_path) == {"model.keras": "new"}


def test_replacing_writes_a_new_folder(tmp_path):
    with files.replacing(tmp_path / "served") as new:
        _write_folder(new, "new")
    assert tree(tmp_path / "served") == {
        "saved_model.pb": "new",
        "variables": None,
        "variables/index": "new",
    }
    assert [p.name for p in tmp_path.iterdir()] == ["served"]


@pytest.mark.parametrize("convert", [str, pathlib.Path, os.fspath])
def test_replacing_takes_strings_and_paths(tmp_path, convert):
    with files.replacing(convert(tmp_path / "model.keras")) as new:
        new.write_text("new")
    assert tree(tmp_path) == {"model.keras": "new"}


def test_replacing_takes_relative_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with files.replacing("model.keras") as new:
        new.write_text("new")
    assert tree(tmp_path) == {"model.keras": "new"}


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
    assert tree(tmp_path) == {"model.keras": "new"}


def test_replacing_replaces_a_folder_as_a_whole(tmp_path):
    target = tmp_path / "served"
    _write_folder(target, "old")
    (target / "leftover").write_text("old")
    with files.replacing(target) as new:
        _write_folder(new, "new")
        assert (target / "leftover").read_text() == "old"
    assert tree(tmp_path) == {
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
    before = tree(tmp_path)
    write = _write_folder if kind == "folder" else pathlib.Path.write_text

    def fail_halfway():
        with files.replacing(target) as new:
            write(new, "half")
            raise error

    with pytest.raises(error):
        fail_halfway()
    assert tree(tmp_path) == before


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_replacing_keeps_the_old_when_nothing_is_written(tmp_path, kind):
    target = tmp_path / "target"
    if kind == "file":
        target.write_text("old")
    else:
        _write_folder(target, "old")
    before = tree(tmp_path)
    with pytest.raises(OSError, match="target"), files.replacing(target):
        pass
    assert tree(tmp_path) == before


def test_replacing_keeps_the_old_folder_when_renaming_fails(
    tmp_path, monkeypatch
):
    target = tmp_path / "served"
    _write_folder(target, "old")
    before = tree(tmp_path)
    replace = os.replace
    into_place = []

    def fail_at_first(source, destination):
        if pathlib.Path(destination) == target and not into_place:
            into_place.append(source)
            raise OSError("the disk is gone")
        replace(source, destination)

    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    monkeypatch.setattr(os, "replace", fail_at_first)
    with pytest.raises(OSError, match="the disk"):
        with files.replacing(target) as new:
            _write_folder(new, "new")
    monkeypatch.undo()
    assert tree(tmp_path) == before


@pytest.mark.parametrize("path", ["", ".", "..", "a/..", "a\0b"])
def test_replacing_refuses_a_path_that_names_nothing(
    tmp_path, path, monkeypatch
):
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileError, match="Received: path="):
        with files.replacing(path) as new:
            _write_folder(new, "new")
    assert tree(tmp_path) == {"a": None}


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_replacing_refuses_another_kind(tmp_path, kind):
    target = tmp_path / "target"
    if kind == "file":
        target.write_text("old")
    else:
        _write_folder(target, "old")
    before = tree(tmp_path)
    write = _write_folder if kind == "file" else pathlib.Path.write_text
    with pytest.raises(FileError) as info:
        with files.replacing(target) as new:
            write(new, "new")
    assert f"There is a {kind} of that name" in str(info.value)
    assert f"Received: path={str(target)!r}" in str(info.value)
    assert tree(tmp_path) == before


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
    assert tree(tmp_path) == {"file": "old"}


def test_replacing_refuses_a_folder_where_nothing_can_be_made(
    tmp_path, monkeypatch
):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.tempfile, "mkdtemp", refuse)
    with pytest.raises(FileError, match="Permission denied"):
        with files.replacing(tmp_path / "model.keras"):
            pass
    assert tree(tmp_path) == {}


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


def leave_scratch(path, lock=True):
    """Leaves what a killed process leaves."""
    scratch, held = files._make_scratch(path)
    (scratch / "new").mkdir()
    (scratch / "new" / path.name).write_text("half")
    os.close(held)
    if not lock:
        (scratch / "lock").unlink()
    return scratch


def test_replacing_removes_what_a_kill_has_left(tmp_path):
    target = tmp_path / "model.keras"
    for _ in range(3):
        leave_scratch(target)
    with files.replacing(target) as new:
        new.write_text("new")
    assert tree(tmp_path) == {"model.keras": "new"}


@pytest.mark.parametrize("event", range(1, 40))
def test_a_kill_at_any_step_leaves_nothing_for_ever(tmp_path, event):
    """Ends a write at its n-th step in the folder, whatever that is."""
    target = tmp_path / "served"
    _write_folder(target, "old")
    held, left = [], [event]

    class Killed(BaseException):
        pass

    def step(function):
        def run(*args, **kwargs):
            left[0] -= 1
            if left[0] <= 0:
                raise Killed  # Nothing that follows is done either.
            result = function(*args, **kwargs)
            if function is os_open:
                held.append(result)
            return result

        return run

    os_open = os.open
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_exchange", lambda one, other: False)
        for name in ("open", "mkdir", "unlink", "rmdir", "replace", "rename"):
            patch.setattr(os, name, step(getattr(os, name)))
        try:
            with files.replacing(target) as new:
                _write_folder(new, "new")
        except Killed:
            pass
        patch.undo()
    for file in held:  # As the system does.
        with contextlib.suppress(OSError):
            os.close(file)
    with files.replacing(tmp_path / "served") as new:
        assert target.exists()
        assert (target / "saved_model.pb").read_text() in ("old", "new")
        _write_folder(new, "newer")
    assert [path.name for path in tmp_path.iterdir()] == ["served"]


def test_replacing_leaves_alone_what_is_in_use(tmp_path):
    target = tmp_path / "model.keras"
    with files.replacing(target) as first:
        first.write_text("first")
        with files.replacing(target) as second:
            second.write_text("second")
        assert target.read_text() == "second"
        assert first.read_text() == "first"
    assert tree(tmp_path) == {"model.keras": "first"}


def test_replacing_leaves_alone_what_it_does_not_know(tmp_path):
    target = tmp_path / "model.keras"
    unlocked = leave_scratch(target, lock=False)
    other = leave_scratch(tmp_path / "other.keras")
    (tmp_path / ".model.keras.notes").mkdir()
    (tmp_path / ".model.keras.12345678").write_text("a file")
    elsewhere = leave_scratch(tmp_path / "elsewhere")
    (tmp_path / ".model.keras.abcdefgh").symlink_to(elsewhere)
    before = tree(tmp_path)
    with files.replacing(target) as new:
        new.write_text("new")
    assert unlocked.exists()
    assert other.exists()
    assert tree(tmp_path) == {**before, "model.keras": "new"}


@pytest.mark.parametrize("able", [False, True])
def test_replacing_brings_back_a_folder_that_a_kill_has_moved(
    tmp_path, able, monkeypatch
):
    target = tmp_path / "served"
    scratch = leave_scratch(target)
    _write_folder(scratch / "old", "old")
    if not able:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)

    def fail():
        with files.replacing(target):
            assert (target / "saved_model.pb").read_text() == "old"
            raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        fail()
    assert tree(tmp_path / "served")["saved_model.pb"] == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["served"]


def test_replacing_brings_back_no_folder_of_another_name(tmp_path):
    name = "a" * 64
    scratch = leave_scratch(tmp_path / f"{name}_one")
    _write_folder(scratch / "old", "old")
    with pytest.raises(FileError), files.replacing(tmp_path / f"{name}_two"):
        pass
    assert tree(tmp_path) == {}


@pytest.mark.skipif(sys.platform != "linux", reason="what Linux can")
def test_a_folder_is_there_at_every_moment(tmp_path, monkeypatch):
    target = tmp_path / "served"
    _write_folder(target, "old")

    def refuse(*args):
        raise AssertionError("the folder was moved aside")

    with files.replacing(target) as new:
        _write_folder(new, "new")
        monkeypatch.setattr(os, "replace", refuse)
    assert (target / "saved_model.pb").read_text() == "new"


def test_replacing_flushes_before_it_renames(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(file):
        done.append(os.readlink(f"/proc/self/fd/{file}"))
        fsync(file)

    def note_replace(source, destination):
        done.append("renamed")
        replace(source, destination)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    with files.replacing(tmp_path / "model.keras") as new:
        new.write_text("new")
    assert done == [str(new), "renamed", str(tmp_path)]
    done.clear()
    with files.replacing(tmp_path / "served") as new:
        _write_folder(new, "new")
    assert done[-2:] == ["renamed", str(tmp_path)]
    assert {str(p) for p in (new, new / "variables" / "index")} <= set(done)


def test_replacing_tells_of_a_full_disk(tmp_path):
    target = tmp_path / "model.keras"
    target.write_text("old")

    def fill():
        with files.replacing(target), open("/dev/full", "w") as full:
            full.write("content")

    with pytest.raises(FileError, match="No space left") as info:
        fill()
    assert f"Received: path={str(target)!r}" in str(info.value)
    assert tree(tmp_path) == {"model.keras": "old"}


def test_a_disk_without_room_for_anything_is_told(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(FileError, match="Make room"):
            with files.replacing(tmp_path / "model.keras"):
                pass
        with locks.locked(tmp_path):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert tree(tmp_path) == {}


def test_replacing_tells_of_a_folder_that_takes_no_file(tmp_path):
    with pytest.raises(FileError, match="Received: path="):
        with files.replacing("/proc/model.keras"):
            pass


@pytest.mark.parametrize(
    "path",
    [
        "gs://bucket/folder/model.keras",
        pathlib.Path("gs://bucket/folder/model.keras"),
        "s3://bucket/model.keras",
        "file:///model.keras",
    ],
)
def test_replacing_refuses_what_is_not_local(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    entered = False
    with pytest.raises(FileError, match=r"copy that.*Received: path="):
        with files.replacing(path):
            entered = True
    with pytest.raises(FileError, match="local path"):
        files.check_replaceable(path, MODEL)
    assert not entered
    assert tree(tmp_path) == {}


@pytest.mark.parametrize(
    "path", ["C:/models/model.keras", "a/b:/c", "a:b", "./run:/c", "/gs:/a"]
)
def test_colons_are_allowed_in_local_paths(path):
    files.check_local(path)
    files.check_local(pathlib.Path("x") / path)


MODEL = files.Folder(
    marks=("saved_model.pb",), others=("variables",), kept=("extra", "note")
)


@pytest.mark.parametrize("extra", ["", "extra"])
def test_an_older_version_of_a_folder_is_replaceable(tmp_path, extra):
    target = tmp_path / "served"
    files.check_replaceable(target, MODEL)
    target.mkdir()
    if extra:
        (target / extra).mkdir()
    files.check_replaceable(target, MODEL)
    _write_folder(target, "old")
    files.check_replaceable(target, MODEL)
    (tmp_path / "file").write_text("a file")
    files.check_replaceable(tmp_path / "file", MODEL)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda path: (path / "zoo.txt").write_text(""), "has 'zoo.txt'"),
        (lambda path: (path / ".hidden").mkdir(), "has '.hidden'"),
        (
            lambda path: (path / "saved_model.pb").unlink(),
            "has no file 'saved_model.pb'",
        ),
        (
            lambda path: (
                (path / "saved_model.pb").unlink(),
                (path / "saved_model.pb").mkdir(),
            ),
            "has no file 'saved_model.pb'",
        ),
    ],
    ids="more hidden less folder".split(),
)
def test_a_folder_of_other_things_is_not_replaced(tmp_path, change, told):
    target = tmp_path / "served"
    _write_folder(target, "old")
    change(target)
    before = tree(tmp_path)
    with pytest.raises(FileError, match=f"which {told}$"):
        files.check_replaceable(target, MODEL)
    # Nor if it came there in between.
    with pytest.raises(FileError, match=f"which {told}$"):
        with files.replacing(target, MODEL) as new:
            _write_folder(new, "new")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("able", [False, True])
def test_what_users_put_into_a_folder_is_kept(tmp_path, able, monkeypatch):
    if not able:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    target = tmp_path / "served"
    _write_folder(target, "old")
    (target / "extra" / "more").mkdir(parents=True)
    (target / "extra" / "more" / "requests").write_text("mine")
    (target / "extra" / "shared").symlink_to("../../shared")
    (target / "note").write_text("mine too")
    for text in ("new", "newer"):
        with files.replacing(target, MODEL) as new:
            _write_folder(new, text)
            assert (target / "note").read_text() == "mine too"
        assert (target / "extra" / "shared").readlink() == pathlib.Path(
            "../../shared"
        )
        assert tree(target) == {
            "saved_model.pb": text,
            "variables": None,
            "variables/index": text,
            "extra": None,
            "extra/more": None,
            "extra/more/requests": "mine",
            "extra/shared": None,
            "note": "mine too",
        }
    assert [path.name for path in tmp_path.iterdir()] == ["served"]


def test_nothing_is_replaced_if_what_is_kept_cannot_be_copied(tmp_path):
    target = tmp_path / "served"
    _write_folder(target, "old")
    (target / "extra").mkdir()
    os.mkfifo(target / "extra" / "pipe")
    before = tree(tmp_path)
    with pytest.raises(FileError, match="named pipe"):
        with files.replacing(target, MODEL) as new:
            _write_folder(new, "new")
    assert tree(tmp_path) == before
