import io
import re
import zipfile

import numpy as np
import pytest
from reporting import predictions
from run_results import arrays
from run_results import make_repeat
from run_results import make_results
from run_results import make_whole
from run_results import save_predictions
from run_results import write


@pytest.fixture
def whole(tmp_path):
    return make_whole(tmp_path)


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
    monkeypatch.setattr(predictions, "_MAX_FILE_BYTES", 1000)
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
