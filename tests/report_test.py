import base64
import copy
import csv
import html.parser
import io
import json
import re
import zipfile

import numpy as np
import pictures
import pytest
import report
from PIL import Image

HOSTILE = "<script>alert('1')</script> & \"quoted\" $\\frac$"
TASKS = {"a": ["cat", "dog"], "b": [HOSTILE, "猫", "x" * 60]}


def make_task(name, class_names):
    return {
        "name": name,
        "source": f"npz:{name}.npz",
        "classes": len(class_names),
        "class_names": class_names,
        "examples": {"train": 4000, "val": 40, "test": 8},
        "data_fingerprint": "ab" * 32,
        "skipped": ["bad.jpg: cannot be read <b>"] if name == "b" else [],
    }


def make_method(method, matrix, order):
    entry = {
        "matrix": matrix,
        "history": {
            task: [{"loss": 1.0, "val_accuracy": 0.1 * i} for i in range(1, 6)]
            for task in order
        },
        "phases": {task: [["train", 3], ["retrain", 2]] for task in order},
        "bytes": 3000 if method == "individual" else 1000,
        "seconds": 12.3,
    }
    if method == "packnet":
        entry |= {
            "shares": dict.fromkeys(order, 0.5),
            "owned": dict.fromkeys(order, 50),
            "sparsities": {order[0]: 0.5, order[1]: 0.0},
            "fingerprints": {task: task * 64 for task in order},
            "export_bytes": dict.fromkeys(order, 1500),
            "capacity": {},
        }
    return entry


MATRICES = {
    "packnet": [[0.75, None], [0.75, 0.5]],
    "individual": [[0.5, None], [None, 0.875]],
    "finetune": [[0.75, None], [0.25, 0.5]],
    "joint": [[None, None], [1.0, 0.5]],
}


def make_repeat(methods, number=0, order=("a", "b"), folder="."):
    return {
        "name": f"seed{number}",
        "seed": number,
        "order": list(order),
        "folder": folder,
        "methods": {
            method: make_method(
                method, copy.deepcopy(MATRICES[method]), list(order)
            )
            for method in methods
        },
    }


def make_results(*methods, repeats=None):
    return {
        "flags": {"tasks": ["a", "b"], "run_dir": "<run>", "weights": None},
        "versions": {"keras": "3.15"},
        "seconds": 123.4,
        "tasks": [make_task(*item) for item in TASKS.items()],
        "repeats": repeats or [make_repeat(methods)],
    }


def arrays(**changed):
    """The predictions on task a: three of four are right."""
    found = {
        "labels": np.array([0, 0, 1, 1], np.int32),
        "predicted": np.array([0, 1, 1, 1], np.int32),
        "images": np.arange(2 * 6 * 5, dtype=np.uint8).reshape(2, 6, 5, 1),
        "places": np.array([0, 1], np.int64),
        **changed,
    }
    return {name: value for name, value in found.items() if value is not None}


def save_predictions(folder, task="a", save=np.savez, **changed):
    path = folder / "predictions" / "packnet" / f"{task}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path, **arrays(**changed))
    return path


class Page(html.parser.HTMLParser):
    """What a browser would see: text by section, pictures, elements."""

    def __init__(self, text):
        super().__init__()
        self.tags = set()
        self.attributes = []
        self.images = []
        self.sections = {"": ""}
        self.open = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            return
        if self.open and self.open[-1] == "h2":
            self.sections[data] = ""
            return
        last = list(self.sections)[-1]
        self.sections[last] += data + "\n"


def write(results, run_dir):
    report.write(results, run_dir)
    return Page((run_dir / "report.html").read_text(encoding="utf-8"))


def test_the_packed_network_alone():
    assert report.to_text(make_results("packnet")).splitlines() == [
        "task          after learning  at the end  individual  "
        "share of weights  bytes exported",
        "-" * 86,
        "a                    75.00 %     75.00 %           -  "
        "         50.00 %           1,500",
        "b                    50.00 %     50.00 %           -  "
        "         50.00 %           1,500",
        "-" * 86,
        "mean / total         62.50 %     62.50 %           -  "
        "        100.00 %           3,000",
        "",
        "Accuracy on the test part. No task changed after it was learned.",
        "One file for all tasks: 1,000 bytes.",
        "The run took 123 seconds.",
    ]


def test_the_packed_network_next_to_individual_ones():
    results = make_results("packnet", "individual")
    lines = report.to_text(results).splitlines()
    assert [row[3] for row in report.to_rows(results)] == [
        "individual",
        "50.00 %",
        "87.50 %",
        "68.75 %",
    ]
    assert lines[-4:] == [
        "Accuracy on the test part. No task changed after it was learned.",
        "One file for all tasks: 1,000 bytes, 33 % of 2 separate networks "
        "(3,000 bytes).",
        "Mean accuracy against individual networks: -6.25 points.",
        "The run took 123 seconds.",
    ]
    # One table only: there is nothing else to compare with.
    assert not any(line.startswith("method") for line in lines)


def test_methods_are_compared():
    results = make_results(*MATRICES)
    rows = report.to_method_rows(results)
    assert [" ".join(row) for row in rows] == [
        "method mean a b forgetting backward forward bytes seconds",
        "packnet 62.50 % 75.00 % 50.00 % 0 0 -37.50 1,000 12",
        "individual 68.75 % 50.00 % 87.50 % - - - 3,000 12",
        "finetune 37.50 % 25.00 % 50.00 % 50.00 -50.00 -37.50 1,000 12",
        "joint 75.00 % 100.00 % 50.00 % - - - 1,000 12",
    ]
    text = report.to_text(results)
    assert text.index("task  ") < text.index("method  ")
    for row in rows:
        assert any(
            line.split() == " ".join(row).split() for line in text.splitlines()
        )


def test_the_packed_network_need_not_be_there(tmp_path):
    results = make_results("finetune", "joint")
    text = report.to_text(results)
    assert text.startswith("method")
    assert "One file" not in text
    assert "CHANGED" not in text
    assert "changed" not in text
    page = write(results, tmp_path)
    assert "Methods" in page.sections
    assert "The packed network" not in page.sections
    assert "Fingerprints" not in page.sections


def test_a_packed_task_that_changed_is_shouted(tmp_path):
    results = make_results("packnet")
    matrix = results["repeats"][0]["methods"]["packnet"]["matrix"]
    matrix[1][0] = float(np.nextafter(0.75, 0))
    assert "A TASK CHANGED AFTER IT WAS LEARNED." in report.to_text(results)
    assert "Changed: a (seed0)." in report.to_text(results)
    assert "No task changed" not in report.to_text(results)
    assert "A TASK CHANGED" in write(results, tmp_path).sections[""]


def test_one_repeat_that_changed_is_enough():
    results = make_results(
        repeats=[make_repeat(["packnet"], number) for number in range(3)]
    )
    assert "No task changed" in report.to_text(results)
    results["repeats"][2]["methods"]["packnet"]["matrix"][1][0] = 1.0
    assert "A TASK CHANGED" in report.to_text(results)
    assert "Changed: a (seed2)." in report.to_text(results)


def test_what_is_not_known_is_not_called_unchanged():
    results = make_results("packnet")
    results["repeats"][0]["methods"]["packnet"]["matrix"][1][0] = None
    text = report.to_text(results)
    assert "No task changed" not in text
    assert "TASK CHANGED" not in text
    assert "Not known whether it changed" in text
    assert "a (seed0)" in text


def test_repeats_are_averaged_by_the_names_of_their_tasks():
    repeats = [
        make_repeat(["packnet", "finetune"], 0, ["b", "a"], "seed0"),
        make_repeat(["packnet"], 1, ["a", "b"], "seed1"),
    ]
    results = make_results(repeats=repeats)
    table = report.to_rows(results)
    assert [row[0] for row in table[1:-1]] == ["a", "b"]
    rows = {row[0]: row for row in table}
    # 0.75 and 0.5 have mean 0.625 and deviation 0.125 * sqrt(2).
    assert rows["a"][1:4] == ["62.50 ± 17.68 %"] * 2 + ["-"]
    assert rows["b"][2] == "62.50 ± 17.68 %"
    assert rows["mean / total"][2] == "62.50 ± 0.00 %"
    header, packed, finetune = report.to_method_rows(results)
    assert header[-1] == "repeats"
    assert [packed[-1], finetune[-1]] == ["2", "1"]
    assert finetune[1] == "37.50 %"
    assert packed[header.index("forgetting")] == "0"
    text = report.to_text(results)
    assert "over 2 repeats: seed0, seed1." in text


def test_tasks_are_listed_as_they_were_learned():
    repeats = [make_repeat(["packnet"], 0, ["b", "a"])]
    table = report.to_rows(make_results(repeats=repeats))
    assert [row[0] for row in table[1:-1]] == ["b", "a"]


def test_wide_tables_are_folded():
    names = [f"task{number}" for number in range(20)]
    repeat = make_repeat(["finetune"])
    repeat["order"] = names
    repeat["methods"]["finetune"]["matrix"] = np.tril(
        np.full((20, 20), 0.5)
    ).tolist()
    results = make_results(repeats=[repeat])
    results["tasks"] = [make_task(name, ["x", "y"]) for name in names]
    lines = report.to_text(results).splitlines()
    tables = [line for line in lines if line.startswith("method")]
    assert len(tables) > 1
    assert max(len(line) for line in tables) <= 120
    assert " ".join(tables).split().count("task13") == 1


def test_a_kept_network_is_told_of():
    results = make_results("packnet", "finetune")
    methods = results["repeats"][0]["methods"]
    methods["packnet"]["kept"] = {
        "name": "imagenet",
        "agreement": 0.9,
        "sparsity": 0.3,
        "accuracy": 0.6,
        "accuracy_before": 0.7,
    }
    methods["finetune"]["kept"] = {"name": "imagenet", "agreement": 0.2}
    text = report.to_text(results)
    assert "imagenet, kept as the first task with 70.00 %" in text
    assert "90.00 % of the tasks' test images." in text
    assert "own: 60.00 %, where the network as it was has 70.00 %." in text
    assert "imagenet, with finetune, chooses" in text
    assert "20.00 % of the tasks' test images." in text


def test_plan_to_text_lays_columns_out():
    rows = [{"task": "a", "steps": "1,000"}, {"task": "bcdef", "steps": "2"}]
    assert report.plan_to_text(rows).splitlines() == [
        "task   steps",
        "a      1,000",
        "bcdef      2",
    ]


def test_the_csv_has_a_line_per_repeat_method_and_task(tmp_path):
    repeats = [
        make_repeat(list(MATRICES), 3, ["b", "a"]),
        make_repeat(["packnet"], 4),
    ]
    report.write_csv(make_results(repeats=repeats), tmp_path)
    with (tmp_path / "results.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * len(MATRICES) + 2
    assert lines[0] == {
        "repeat": "seed3",
        "seed": "3",
        "method": "packnet",
        "place": "1",
        "task": "b",
        "source": "npz:b.npz",
        "classes": "3",
        "sparsity": "0.5",
        "share": "0.5",
        "after_learning": "0.75",
        "at_end": "0.75",
        "fingerprint": "b" * 64,
    }
    joint = [line for line in lines if line["method"] == "joint"]
    assert [line["after_learning"] for line in joint] == ["", ""]
    assert [line["at_end"] for line in joint] == ["1.0", "0.5"]
    assert joint[0]["fingerprint"] == joint[0]["sparsity"] == ""
    alone = [line for line in lines if line["method"] == "individual"]
    assert [line["at_end"] for line in alone] == ["0.5", "0.875"]


@pytest.fixture
def whole(tmp_path):
    """Results of which all files are there, and their folder."""
    save_predictions(tmp_path)
    save_predictions(
        tmp_path,
        "b",
        labels=np.array([0, 1, 2, 2], np.int32),
        predicted=np.array([1, 1, 2, 2], np.int32),
        images=np.zeros((2, 300, 200, 3), np.uint8),
    )
    Image.new("RGB", (4, 4)).save(tmp_path / "capacity.png")
    return make_results(*MATRICES), tmp_path


def test_the_page_stands_alone_and_is_whole(whole):
    page = write(*whole)
    assert list(page.sections) == [
        "",
        "Methods",
        "The packed network",
        "Accuracy over the tasks",
        "Learning curves",
        "Capacity",
        "Which classes are confused",
        "Examples",
        "Fingerprints",
        "Data",
        "Settings",
        "Versions",
    ]
    # One over the tasks, two of curves, one of capacity, two matrices, and
    # the four examples.
    assert len(page.images) == 10
    for image in page.images:
        assert image["alt"].strip()
        start = "data:image/png;base64,"
        assert image["src"].startswith(start)
        png = io.BytesIO(base64.b64decode(image["src"][len(start) :]))
        assert Image.open(png).size[0] > 0
    for tag, name, value in page.attributes:
        assert name not in ("href", "action", "style"), tag
        assert not name.startswith("on")
        assert name != "src" or value.startswith("data:")
    assert ("meta", "name", "viewport") in page.attributes
    assert "a" * 64 in page.sections["Fingerprints"]
    assert "<run>" in page.sections["Settings"]
    assert "3.15" in page.sections["Versions"]
    assert "4,000" in page.sections["Data"]
    assert "ab" * 32 in page.sections["Data"]
    assert "bad.jpg: cannot be read <b>" in page.sections["Data"]


def test_hostile_names_stay_text(whole):
    results, run_dir = whole
    results["flags"][HOSTILE] = HOSTILE
    results["repeats"][0]["name"] = HOSTILE
    results["repeats"].append(make_repeat(["packnet"], 1))
    page = write(results, run_dir)
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert HOSTILE in page.sections["Data"]
    examples = page.sections[f"Examples ({HOSTILE})"]
    assert HOSTILE in examples
    assert "猫" in examples
    assert any(HOSTILE in image["alt"] for image in page.images)


def test_wrong_examples_are_marked_by_words_and_by_their_frame(whole):
    results, run_dir = whole
    page = write(results, run_dir)
    lines = page.sections["Examples"].split("\n")
    assert lines.count("✓ right") == 2
    assert lines.count("✗ wrong") == 2
    place = lines.index("✗ wrong")
    assert lines[place - 2 : place] == ["is cat", "predicted dog"]
    kinds = [v for t, n, v in page.attributes if t == "figure" and v]
    assert kinds == ["right", "wrong", "wrong", "right"]


def test_many_classes_are_listed_by_what_is_confused_most(tmp_path):
    results = make_results("packnet")
    results["tasks"][0]["class_names"] = [f"kind {i}" for i in range(40)]
    save_predictions(
        tmp_path,
        labels=np.array([7, 7, 7, 7, 9, 30], np.int32),
        predicted=np.array([8, 8, 8, 7, 30, 30], np.int32),
    )
    section = write(results, tmp_path).sections["Which classes are confused"]
    lines = section.split("\n")
    assert "a: 2 of 6 right (33.33 %)" in lines
    place = lines.index("kind 7")
    assert lines[place : place + 4] == ["kind 7", "kind 8", "3", "75.0 %"]
    assert lines[place + 4 : place + 6] == ["kind 9", "kind 30"]


def test_few_classes_need_no_list(whole):
    section = write(*whole).sections["Which classes are confused"]
    assert "Most often confused" not in section


def test_too_many_classes_for_a_matrix_keep_the_list(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_MAX_MATRIX_CLASSES", 30)
    results = make_results("packnet")
    results["tasks"][0]["class_names"] = [f"kind {i}" for i in range(40)]
    save_predictions(tmp_path)
    page = write(results, tmp_path)
    assert "kind 1" in page.sections["Which classes are confused"]
    assert not any("Confusion" in image["alt"] for image in page.images)


def test_missing_files_leave_their_parts_out(tmp_path):
    page = write(make_results("packnet"), tmp_path)
    for name in ("Capacity", "Which classes are confused", "Examples"):
        assert name not in page.sections
    save_predictions(tmp_path, images=None, places=None)
    page = write(make_results("packnet"), tmp_path)
    assert "Which classes are confused" in page.sections
    assert "Examples" not in page.sections


def test_a_history_may_lack_tasks_and_accuracies(tmp_path):
    results = make_results("packnet", "individual")
    methods = results["repeats"][0]["methods"]
    del methods["individual"]["history"]["a"]
    methods["packnet"]["history"] = {
        "a": [{"loss": 1.0}, {"val_accuracy": None}],
        "b": [{"loss": 1.0}, {"val_accuracy": 0.5}],
    }
    page = write(results, tmp_path)
    curves = [i for i in page.images if i["alt"].startswith("Validation")]
    assert len(curves) == 1
    assert "packnet over 2 epochs" in curves[0]["alt"]
    for entry in methods.values():
        del entry["history"]
    assert "Learning curves" not in write(results, tmp_path).sections


def test_a_finished_run_is_reported_again_the_same(whole):
    results, run_dir = whole
    report.write(results, run_dir)
    first = (run_dir / "report.html").read_bytes()
    report.write(json.loads(json.dumps(results)), run_dir)
    assert (run_dir / "report.html").read_bytes() == first


def huge(path):
    """Declares more than is there, as a bomb would."""
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        member,
        {"descr": "<i4", "fortran_order": False, "shape": (1 << 29,)},
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("labels.npy", member.getvalue() + b"\0" * 4)
        archive.writestr("predicted.npy", member.getvalue() + b"\0" * 4)


DAMAGED = {
    "empty": (lambda p: p.write_bytes(b""), "zip"),
    "cut": (lambda p: p.write_bytes(p.read_bytes()[:-99]), "zip"),
    "one_bit": (
        lambda p: p.write_bytes(
            p.read_bytes().replace(b"\1\0\0\0\1\0\0\0", b"\1\0\0\0\0\0\0\0", 1)
        ),
        "CRC",
    ),
    "compressed": (
        lambda p: np.savez_compressed(p, **arrays()),
        "compressed",
    ),
    "bomb": (huge, r"of shape \(536870912,\), int32, 4 bytes"),
    "no_labels": (lambda p: np.savez(p, **arrays(labels=None)), "labels"),
    "objects": (
        lambda p: np.savez(p, **arrays(labels=np.array([{}] * 4))),
        "header",
    ),
    "floats": (
        lambda p: np.savez(p, **arrays(labels=np.zeros(4))),
        "header",
    ),
    "lengths": (
        lambda p: np.savez(p, **arrays(predicted=np.zeros(3, np.int32))),
        r"\(3,\)",
    ),
    "class": (
        lambda p: np.savez(p, **arrays(labels=np.full(4, 2, np.int32))),
        "2 of 2",
    ),
    "negative": (
        lambda p: np.savez(p, **arrays(labels=np.full(4, -1, np.int32))),
        "-1",
    ),
    "none": (
        lambda p: np.savez(
            p,
            **arrays(
                labels=np.zeros(0, np.int32), predicted=np.zeros(0, np.int32)
            ),
        ),
        r"\(0,\)",
    ),
    "place": (
        lambda p: np.savez(p, **arrays(places=np.array([0, 4], np.int64))),
        "places",
    ),
    "places": (
        lambda p: np.savez(p, **arrays(places=np.array([0], np.int64))),
        "places",
    ),
    "channels": (
        lambda p: np.savez(p, **arrays(images=np.zeros((2, 6, 5, 2), "u1"))),
        "images",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_predictions_are_left_out_and_named(case, whole):
    results, run_dir = whole
    path = run_dir / "predictions" / "packnet" / "a.npz"
    results["repeats"] = [make_repeat(["packnet"])]
    results["repeats"][0]["methods"]["packnet"]["history"] = {}
    before = path.read_bytes()
    damage, expected = DAMAGED[case]
    damage(path)
    assert path.read_bytes() != before
    page = write(results, run_dir)
    section = page.sections["Which classes are confused"]
    assert "a: predictions/packnet/a.npz cannot be used" in section
    assert re.search(expected, section)
    # The other task is shown.
    assert "b: 3 of 4 right (75.00 %)" in section
    assert "a" not in page.sections["Examples"].split("\n")
    assert "b" in page.sections["Examples"].split("\n")


def test_a_large_file_is_refused_before_it_is_read(whole, monkeypatch):
    results, run_dir = whole
    monkeypatch.setattr(report, "_MAX_FILE_BYTES", 1000)
    page = write(results, run_dir)
    assert "more than 1,000" in page.sections["Which classes are confused"]
    assert "Examples" not in page.sections


def test_images_may_lie_in_any_order_in_memory(tmp_path):
    images = np.asfortranarray(arrays()["images"])
    assert images.flags.f_contiguous
    save_predictions(tmp_path)
    straight = write(make_results("packnet"), tmp_path).images
    save_predictions(tmp_path, images=images)
    assert write(make_results("packnet"), tmp_path).images == straight


@pytest.mark.parametrize("folder", ["..", "../other", "/", "a/../..", "\0"])
def test_nothing_outside_of_the_run_folder_is_read(folder, whole):
    results, run_dir = whole
    inner = run_dir / "other"
    inner.mkdir()
    results["repeats"][0]["folder"] = folder
    page = write(results, inner)
    for name in ("Capacity", "Which classes are confused", "Examples"):
        assert name not in page.sections


def test_tasks_are_no_way_out_of_the_run_folder(whole):
    results, run_dir = whole
    inner = run_dir / "inner"
    (inner / "predictions" / "packnet").mkdir(parents=True)
    name = "../../../predictions/packnet/a"
    results["tasks"][0]["name"] = name
    repeat = results["repeats"][0]
    repeat["order"] = [name, "b"]
    assert "Examples" not in write(results, inner).sections


def test_a_repeat_is_read_from_its_own_folder(tmp_path):
    save_predictions(tmp_path / "seed1")
    repeats = [
        make_repeat(["finetune"], 0, folder="seed0"),
        make_repeat(["packnet"], 1, folder="seed1"),
    ]
    page = write(make_results(repeats=repeats), tmp_path)
    assert "Examples (seed1)" in page.sections


def test_what_is_no_picture_of_the_capacity_is_left_out(whole):
    results, run_dir = whole
    (run_dir / "capacity.png").write_bytes(b"<svg onload='alert(1)'>")
    assert "Capacity" not in write(results, run_dir).sections


def size(png):
    return Image.open(io.BytesIO(png)).size


@pytest.mark.parametrize("classes", [2, 12, 13, 25, 26, 300])
def test_a_confusion_matrix_of_any_size_is_drawn(classes):
    generator = np.random.default_rng(0)
    counts = generator.integers(0, 9, (classes, classes))
    counts[1] = 0  # No example of this class.
    names = ["$\\frac$", "", HOSTILE, "日本"] * classes
    width, height = size(pictures.draw_confusion(counts, names[:classes]))
    assert 300 < width < 1200
    assert 300 < height < 1200


def test_a_confusion_matrix_shows_shares_of_rows():
    names = ["x", "y"]
    one = pictures.draw_confusion(np.array([[3, 1], [0, 5]]), names)
    tenfold = pictures.draw_confusion(np.array([[30, 10], [0, 50]]), names)
    other = pictures.draw_confusion(np.array([[1, 3], [0, 5]]), names)
    assert one == tenfold
    assert one != other


def test_small_examples_keep_their_pixels_and_large_ones_shrink():
    gray = np.arange(30, dtype=np.uint8).reshape(6, 5, 1)
    stored = np.array(Image.open(io.BytesIO(pictures.encode_image(gray))))
    np.testing.assert_array_equal(stored, gray[..., 0])
    large = np.zeros((400, 200, 3), np.uint8)
    assert size(pictures.encode_image(large)) == (64, 128)
