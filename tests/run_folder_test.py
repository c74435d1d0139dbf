"""The folder of a run: whose it is, and what may be removed."""

import json

import pytest
from program import run_folder
from program.repetition import Repeat

from packnet_tf.errors import FileError

CONFIG = {"epochs": 2, "tasks": ["a", "b"], "width": None, "rate": 0.1}
DATA = {"a": "1" * 64, "b": "2" * 64}


FILES = {"--network": "3" * 64}
VERSIONS = {"keras": "3.15"}


def make(path, read=FILES, **changed):
    return run_folder.RunFolder(path / "run", {**CONFIG, **changed}, read)


def seeds(*numbers, order=(0, 1), start="seed"):
    """Makes repeats as the flags ask for them, the first in the folder."""
    names = [f"{start}{number}" for number in numbers]
    return [
        Repeat(name, name if place else ".", number, order)
        for place, (name, number) in enumerate(zip(names, numbers))
    ]


def begin(path, repeats=None, **changed):
    folder = make(path, **changed)
    folder.check()
    placed = folder.place(seeds(0) if repeats is None else repeats)
    folder.begin(placed, DATA, VERSIONS)
    return folder


def places(folder):
    return {repeat.name: repeat.folder for repeat in folder.repeats()}


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
        folder.begin(seeds(0), {**DATA, "b": "3" * 64})
    assert "data of a" not in str(error.value)
    with pytest.raises(FileError, match="the data of c has changed"):
        folder.begin(seeds(0), {**DATA, "c": "3" * 64})


def test_another_file_under_the_same_name_is_refused(tmp_path):
    begin(tmp_path)
    changed = make(tmp_path, {"--network": "4" * 64})
    with pytest.raises(FileError, match="the file of --network has changed"):
        changed.check()
    with pytest.raises(FileError, match="the file of --weights has changed"):
        make(tmp_path, {**FILES, "--weights": "4" * 64}).check()
    # A finished run can be reported without it.
    make(tmp_path, {}).check()


def test_what_a_run_began_with_is_on_record(tmp_path):
    begin(tmp_path, seeds(3, 5))
    known = json.loads((tmp_path / "run" / "run.json").read_text())
    assert known["versions"] == VERSIONS
    assert known["data"] == DATA
    assert known["files"] == FILES
    assert [repeat["seed"] for repeat in known["repeats"]] == [3, 5]
    # A later version that goes on with it is not what it began with.
    folder = make(tmp_path)
    folder.begin(folder.place(seeds(3)), DATA, {"keras": "4"})
    assert folder.run() == known


def test_the_folder_itself_stays_with_the_seed_that_began_it(tmp_path):
    begin(tmp_path, seeds(0))
    folder = begin(tmp_path, seeds(5))
    assert places(folder) == {"seed0": ".", "seed5": "seed5"}
    wanted = seeds(7, 5, 0)
    assert [r.folder for r in folder.place(wanted)] == ["seed7", "seed5", "."]
    begin(tmp_path, wanted)
    assert places(folder) == {"seed0": ".", "seed5": "seed5", "seed7": "seed7"}


def test_the_same_name_for_another_order_is_refused(tmp_path):
    begin(tmp_path, seeds(0, order=(1, 0), start="order1_seed"))
    with pytest.raises(FileError, match=r"order of order1_seed0 was \(1, 0\)"):
        begin(tmp_path, seeds(0, start="order1_seed"))


def test_a_folder_that_was_begun_meanwhile_is_not_shared(tmp_path):
    late = make(tmp_path)
    placed = late.place(seeds(5))
    begin(tmp_path, seeds(0))
    with pytest.raises(FileError, match="Another process has begun"):
        late.begin(placed, DATA, VERSIONS)
    assert places(late) == {"seed0": "."}


def test_a_run_that_does_not_say_its_seeds_is_refused(tmp_path):
    folder = begin(tmp_path)
    known = folder.run()
    del known["repeats"]
    (folder.path / "run.json").write_text(json.dumps(known))
    with pytest.raises(FileError, match="another version of this one"):
        folder.check()


@pytest.mark.parametrize(
    "repeats",
    [3, [3], [{}], [{"name": "../x", "seed": 0, "order": [0]}]],
)
def test_damaged_repeats_are_told(repeats, tmp_path):
    folder = begin(tmp_path)
    known = {**folder.run(), "repeats": repeats}
    (folder.path / "run.json").write_text(json.dumps(known))
    with pytest.raises(FileError, match=r"damaged.*run\.json"):
        folder.repeats()


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
        "results_summary.csv",
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
