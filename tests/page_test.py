import base64
import io
import json

import numpy as np
import pytest
from PIL import Image
from reporting import page
from reporting import pictures
from run_results import HOSTILE
from run_results import make_repeat
from run_results import make_results
from run_results import make_whole
from run_results import save_predictions
from run_results import write


@pytest.fixture
def whole(tmp_path):
    return make_whole(tmp_path)


def test_the_page_stands_alone_and_is_whole(whole):
    shown = write(*whole)
    assert list(shown.sections) == [
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
    assert len(shown.images) == 10
    for image in shown.images:
        assert image["alt"].strip()
        start = "data:image/png;base64,"
        assert image["src"].startswith(start)
        png = io.BytesIO(base64.b64decode(image["src"][len(start) :]))
        assert Image.open(png).size[0] > 0
    for tag, name, value in shown.attributes:
        assert name not in ("href", "action", "style"), tag
        assert not name.startswith("on")
        assert name != "src" or value.startswith("data:")
    assert ("meta", "name", "viewport") in shown.attributes
    assert "a" * 64 in shown.sections["Fingerprints"]
    assert "<run>" in shown.sections["Settings"]
    assert "3.15" in shown.sections["Versions"]
    assert "4,000" in shown.sections["Data"]
    assert "ab" * 32 in shown.sections["Data"]
    assert "bad.jpg: cannot be read <b>" in shown.sections["Data"]


def test_hostile_names_stay_text(whole):
    results, run_dir = whole
    results["flags"][HOSTILE] = HOSTILE
    results["repeats"][0]["name"] = HOSTILE
    results["repeats"].append(make_repeat(["packnet"], 1))
    shown = write(results, run_dir)
    assert "script" not in shown.tags
    assert "b" not in shown.tags
    assert HOSTILE in shown.sections["Data"]
    examples = shown.sections[f"Examples ({HOSTILE})"]
    assert HOSTILE in examples
    assert "猫" in examples
    assert any(HOSTILE in image["alt"] for image in shown.images)


def test_wrong_examples_are_marked_by_words_and_by_their_frame(whole):
    results, run_dir = whole
    shown = write(results, run_dir)
    lines = shown.sections["Examples"].split("\n")
    assert lines.count("✓ right") == 2
    assert lines.count("✗ wrong") == 2
    place = lines.index("✗ wrong")
    assert lines[place - 2 : place] == ["is cat", "predicted dog"]
    kinds = [v for t, n, v in shown.attributes if t == "figure" and v]
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
    monkeypatch.setattr(page, "_MAX_MATRIX_CLASSES", 30)
    results = make_results("packnet")
    results["tasks"][0]["class_names"] = [f"kind {i}" for i in range(40)]
    save_predictions(tmp_path)
    shown = write(results, tmp_path)
    assert "kind 1" in shown.sections["Which classes are confused"]
    assert not any("Confusion" in image["alt"] for image in shown.images)


def test_missing_files_leave_their_parts_out(tmp_path):
    shown = write(make_results("packnet"), tmp_path)
    for name in ("Capacity", "Which classes are confused", "Examples"):
        assert name not in shown.sections
    save_predictions(tmp_path, images=None, places=None)
    shown = write(make_results("packnet"), tmp_path)
    assert "Which classes are confused" in shown.sections
    assert "Examples" not in shown.sections


def test_a_history_may_lack_tasks_and_accuracies(tmp_path):
    results = make_results("packnet", "individual")
    methods = results["repeats"][0]["methods"]
    del methods["individual"]["history"]["a"]
    methods["packnet"]["history"] = {
        "a": [{"loss": 1.0}, {"val_accuracy": None}],
        "b": [{"loss": 1.0}, {"val_accuracy": 0.5}],
    }
    shown = write(results, tmp_path)
    curves = [i for i in shown.images if i["alt"].startswith("Validation")]
    assert len(curves) == 1
    assert "packnet over 2 epochs" in curves[0]["alt"]
    for entry in methods.values():
        del entry["history"]
    assert "Learning curves" not in write(results, tmp_path).sections


def test_a_finished_run_is_reported_again_the_same(whole):
    results, run_dir = whole
    page.write(results, run_dir)
    first = (run_dir / "report.html").read_bytes()
    page.write(json.loads(json.dumps(results)), run_dir)
    assert (run_dir / "report.html").read_bytes() == first


def test_a_repeat_is_read_from_its_own_folder(tmp_path):
    save_predictions(tmp_path / "seed1")
    repeats = [
        make_repeat(["finetune"], 0, folder="seed0"),
        make_repeat(["packnet"], 1, folder="seed1"),
    ]
    shown = write(make_results(repeats=repeats), tmp_path)
    assert "Examples (seed1)" in shown.sections


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
