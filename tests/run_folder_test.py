"""The folder of a run: whose it is, and what may be removed."""

import json

import pytest
from program import run_folder

from packnet_tf.errors import FileError

CONFIG = {"epochs": 2, "tasks": ["a", "b"], "width": None, "rate": 0.1}
DATA = {"a": "1" * 64, "b": "2" * 64}


def make(path, **changed):
    return run_folder.RunFolder(path / "run", {**CONFIG, **changed})


def begin(path, **changed):
    folder = make(path, **changed)
    folder.check()
    folder.check_data(DATA)
    return folder


def test_a_run_goes_on_in_its_folder(tmp_path):
    begin(tmp_path)
    again = begin(tmp_path)
    assert again.results() is None
    again.write_results({"repeats": []})
    assert begin(tmp_path).results() == {"repeats": []}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"epochs": 3}, "epochs was 2 and is 3"),
        ({"tasks": ["b", "a"]}, "tasks was "),
        ({"width": 4}, "width was None and is 4"),
        ({"new": True}, "new was None and is True"),
        ({"epochs": 3, "rate": 0.2}, "epochs was 2 and is 3; rate was 0.1"),
    ],
)
def test_another_configuration_is_refused(changed, expected, tmp_path):
    begin(tmp_path)
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(FileError, match=expected):
        make(tmp_path, **changed).check()
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_other_data_is_refused(tmp_path):
    folder = begin(tmp_path)
    with pytest.raises(FileError, match="the data of b has changed") as error:
        folder.check_data({**DATA, "b": "3" * 64})
    assert "data of a" not in str(error.value)
    with pytest.raises(FileError, match="the data of c has changed"):
        folder.check_data({**DATA, "c": "3" * 64})


def test_results_of_another_program_are_refused(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    make(tmp_path).check()
    (tmp_path / "run" / "results.json").write_text("{}")
    with pytest.raises(FileError, match="another program"):
        make(tmp_path).check()


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\udcff"])
def test_a_damaged_file_is_told(text, tmp_path):
    folder = begin(tmp_path)
    path = folder.path / "run.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(FileError, match=r"damaged.*run\.json"):
        folder.check()


def test_one_run_at_a_time_has_the_folder(tmp_path):
    folder = begin(tmp_path)
    before = left(tmp_path)
    with folder.locked():
        with pytest.raises(FileError, match="Another process"):
            with make(tmp_path).locked():
                pass
    with make(tmp_path).locked():
        pass
    assert left(tmp_path) == before


def fill(path):
    """Writes a bit of what a run leaves."""
    for name in (
        "results.json",
        "results.csv",
        "report.html",
        "log.jsonl",
        "packed.keras",
        "capacity.png",
        "methods/packnet.json",
        "baselines/individual/a.keras",
        "predictions/packnet/a.npz",
        "progress/lwf.npz",
        "tensorboard/packnet/a/events",
        "export/a/saved_model.pb",
    ):
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({}))


def left(path):
    return sorted(
        str(file.relative_to(path))
        for file in path.rglob("*")
        if file.is_file()
    )


def test_clearing_removes_what_is_its_own(tmp_path):
    folder = begin(tmp_path)
    # The last is of an order and a seed that are not asked for any more.
    for repeat in (".", "seed1", "order2_seed13"):
        fill(folder.path / repeat)
    mine = [
        "notes.txt",
        "seed1/notes.txt",
        "seeds/methods/x.json",
        "more/log.jsonl",
    ]
    for name in mine:
        file = folder.path / name
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_text("mine")
    folder.clear()
    assert left(folder.path) == sorted(mine)
    begin(tmp_path, epochs=3)


def test_a_folder_that_holds_no_run_is_left_alone(tmp_path):
    folder = make(tmp_path)
    folder.clear()
    mine = ["export/house.txt", "methods/paper.txt", "seed1/results.json"]
    for name in mine:
        file = folder.path / name
        file.parent.mkdir(parents=True)
        file.write_text("mine")
    folder.clear()
    assert left(folder.path) == sorted(mine)
