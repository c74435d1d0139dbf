import json
import math
import os
import re
import sys

import numpy as np
import pytest
from matplotlib import image

import packnet_tf
from packnet_tf import inspection
from packnet_tf import inventory
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import PackageError


@pytest.fixture
def three_tasks(network):
    model = packnet_tf.wrap(network(), task="one")
    model.prune(0.5)
    model.freeze_task()
    model.add_task("two", units=3)
    model.prune(0.25)
    model.freeze_task()
    model.add_task("three", units=2)
    return model


def entropy(counts):
    counts = np.array([n for n in counts if n])
    return (counts * np.log2(counts.sum() / counts)).sum()


def test_tasks_are_listed(three_tasks):
    three_tasks.set_task("two")
    found = inspection.inspect(three_tasks)
    assert [task.name for task in found.tasks] == ["one", "two", "three"]
    assert [task.number for task in found.tasks] == [1, 2, 3]
    assert [task.stage for task in found.tasks] == ["FROZEN", "FROZEN", "TRAIN"]
    assert [task.sparsity for task in found.tasks] == [0.5, 0.25, 0.0]
    assert found.active == "two"
    proofs = three_tasks.verify()
    assert found.tasks[0].fingerprint == proofs["one"].fingerprint
    assert found.tasks[2].fingerprint is None
    total = found.capacity.total
    assert sum(task.owned for task in found.tasks) == total
    assert found.tasks[1].share == found.tasks[1].owned / total
    assert found.tasks[1].head == 12 * 3 + 3


def test_sizes_are_those_of_the_variables(three_tasks):
    found = inspection.inspect(three_tasks)
    packed = 54 + 9 * 6 * 8 + 128 * 12
    unpacked = 6 + 4 * 6 + 4 * 4 * 8 + 12  # Biases, normalization, PReLU.
    heads = sum(12 * n + n for n in (4, 3, 2))
    maps = sum(entropy(row) for row in found.capacity.layers.values()) / 8
    seeds = sum(
        e.variable.numpy().nbytes
        for e in three_tasks.summary_protection()
        if e.protection == inventory.SEED
    )
    rest = 4 * (unpacked + heads) + seeds
    assert found.capacity.total == packed
    assert found.sizes.compact == math.ceil(4 * packed + maps + rest)
    assert found.sizes.paper == math.ceil(4 * packed + packed / 4 + rest)
    dense = 4 * (packed + unpacked) + seeds
    assert found.sizes.separate == 3 * dense + 4 * heads


def test_free_weights_are_left_out_of_the_least_size(network):
    model = packnet_tf.wrap(network(), task="one")
    before = inspection.inspect(model).sizes
    model.prune(0.5)
    after = inspection.inspect(model).sizes
    packed = 54 + 9 * 6 * 8 + 128 * 12
    saved = packed * 4 / 2 - packed / 8
    assert before.compact - after.compact == pytest.approx(saved, abs=1)
    assert after.paper - before.paper == math.ceil(packed / 8)


def test_what_each_task_has_of_its_own_counts_for_each(network):
    shared = packnet_tf.wrap(network(), task="one")
    own = packnet_tf.wrap(network(), task="one", normalization="per_task")
    for model in (shared, own):
        model.prune(0.5)
        model.freeze_task()
        model.add_task("two", units=3)
    difference = (
        inspection.inspect(own).sizes.compact
        - inspection.inspect(shared).sizes.compact
    )
    assert difference == 4 * 4 * 6


def test_everything_is_data_and_text(three_tasks, tmp_path):
    three_tasks.save(tmp_path / "three.keras")
    found = inspection.inspect(three_tasks, tmp_path / "three.keras")
    assert found.name == "three.keras"
    assert found.file_size == (tmp_path / "three.keras").stat().st_size
    data = json.loads(json.dumps(found.to_dict()))
    assert [task["name"] for task in data["tasks"]] == ["one", "two", "three"]
    text = str(found)
    assert re.search(r"^three \* +3 +TRAIN +0 ", text, re.MULTILINE)
    assert re.search(r"^two +2 +FROZEN +0\.25 ", text, re.MULTILINE)
    assert str(found.capacity) in text


def test_sizes_stand_below_each_other(three_tasks, tmp_path):
    three_tasks.save(tmp_path / "three.keras")
    found = inspection.inspect(three_tasks, tmp_path / "three.keras")
    lines = [line for line in str(found).splitlines() if line.endswith(" MB")]
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize("rounded", [None, False, True])
def test_rounding_is_told(rounded, three_tasks, tmp_path):
    found = inspection.inspect(three_tasks, rounded=rounded)
    found.write(tmp_path / "report.html")
    assert found.to_dict()["rounded"] is rounded
    for text in (str(found), (tmp_path / "report.html").read_text()):
        assert ("are rounded, which is lossy" in text) == (rounded is True)
        assert ("are not rounded" in text) == (rounded is False)


def test_a_name_that_is_no_text_is_escaped_in_a_page(three_tasks, tmp_path):
    path = tmp_path / os.fsdecode(b"bad\xff.keras")
    three_tasks.save(path)
    inspection.inspect(three_tasks, path).write(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "<h1>bad\\udcff.keras</h1>" in page


def test_the_size_of_a_folder_is_that_of_its_files(three_tasks, tmp_path):
    three_tasks.save(tmp_path / "three", zipped=False)
    (tmp_path / "three" / "more").mkdir()
    (tmp_path / "three" / "more" / "file").write_bytes(bytes(5))
    found = inspection.inspect(three_tasks, tmp_path / "three")
    names = ["config.json", "metadata.json", "model.weights.h5", "more/file"]
    sizes = [(tmp_path / "three" / name).stat().st_size for name in names]
    assert found.file_size == sum(sizes)


def test_a_page_holds_everything_and_escapes_names(three_tasks, tmp_path):
    three_tasks.name = "<b>"
    found = inspection.inspect(three_tasks)
    found.write(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<b>" not in page
    assert "&lt;b&gt;" in page
    assert "data:image/png;base64," in page
    assert found.tasks[0].fingerprint[:16] in page
    for key, row in found.capacity.layers.items():
        assert f">{key}</th><td>{sum(row):,}</td>" in page


def test_a_picture_is_one(three_tasks, tmp_path):
    inspection.inspect(three_tasks).write(tmp_path / "report.png")
    assert image.imread(tmp_path / "report.png").ndim == 3


@pytest.mark.parametrize("name", ["report", "report.none", "report."])
def test_a_report_of_no_known_suffix_is_refused(name, three_tasks, tmp_path):
    with pytest.raises(ArgumentError, match="suffix"):
        inspection.inspect(three_tasks).write(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["report.png", "report.html"])
def test_a_report_asks_for_matplotlib(name, three_tasks, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(PackageError, match=r"packnet_tf\[plot\].*Received: "):
        inspection.inspect(three_tasks).write(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_tasks_can_be_looked_at(network):
    found = inspection.inspect(packnet_tf.wrap(network(classes=0)))
    assert found.tasks == ()
    assert found.active is None
    assert "sparsity" in str(found)
