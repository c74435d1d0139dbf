import csv
import json
import os
import pathlib
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import packnet_tf

ROOT = pathlib.Path(__file__).resolve().parents[2]
QUICK = [
    "--flagfile=configs/quickstart.cfg",
    "--epochs=1",
    "--retrain_epochs=1",
    "--steps_per_epoch=3",
    "--width=4",
]


def run(*arguments, **environment):
    """Runs the program as a user does, from the project's folder."""
    return subprocess.run(
        [sys.executable, "examples/fine_grained.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished short run of the quickstart: its folder and its output."""
    run_dir = tmp_path_factory.mktemp("runs") / "quick"
    done = run(*QUICK, f"--run_dir={run_dir}")
    assert done.returncode == 0, done.stderr[-3000:]
    return run_dir, done.stdout


def read_results(run_dir):
    return json.loads((run_dir / "results.json").read_text())


def test_no_task_changes_after_it_was_learned(finished):
    run_dir, _ = finished
    tasks = read_results(run_dir)["tasks"]
    assert [task["name"] for task in tasks] == [
        "textures",
        "fashion",
        "mnist",
        "digits",
    ]
    for task in tasks:
        assert task["at_end"] == task["after_learning"]
        assert 0 <= task["individual"] <= 1
        assert len(task["fingerprint"]) == 64


def test_the_run_folder_holds_what_the_table_says(finished):
    run_dir, output = finished
    results = read_results(run_dir)
    assert {path.name for path in run_dir.iterdir()} == {
        "capacity.png",
        "export",
        "individual",
        "packed.keras",
        "report.html",
        "results.csv",
        "results.json",
    }
    with (run_dir / "results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["name"] for line in lines] == [
        task["name"] for task in results["tasks"]
    ]
    assert [float(line["at_end"]) for line in lines] == [
        task["at_end"] for task in results["tasks"]
    ]
    packed = run_dir / "packed.keras"
    assert results["packed_bytes"] == packed.stat().st_size
    for task in results["tasks"]:
        alone = run_dir / "individual" / f"{task['name']}.keras"
        assert task["individual_bytes"] == alone.stat().st_size
        folder = run_dir / "export" / task["name"]
        assert task["export_bytes"] == sum(
            path.stat().st_size for path in folder.rglob("*") if path.is_file()
        )
        assert f"{100 * task['at_end']:.2f} %" in output
        assert f"{task['individual_bytes']:,}" in output
    assert sum(task["share"] for task in results["tasks"]) == pytest.approx(1)
    assert f"{results['packed_bytes']:,}" in output
    assert str(run_dir / "report.html") in output


def test_every_artifact_computes_the_same(finished):
    run_dir, _ = finished
    model = packnet_tf.load_model(run_dir / "packed.keras")
    x = np.random.default_rng(0).random((4, 28, 28, 1)).astype("float32")
    for task in read_results(run_dir)["tasks"]:
        name = task["name"]
        exported = tf.saved_model.load(str(run_dir / "export" / name))
        expected = tf.function(
            lambda x, name=name: model(x, training=False, task=name)
        )(x)
        np.testing.assert_array_equal(exported.serve(x), expected)
        alone = keras.saving.load_model(
            run_dir / "individual" / f"{name}.keras"
        )
        assert alone.output_shape == (None, task["classes"])
    assert list(model.verify()) == model.task_names


def test_the_report_stands_alone(finished):
    run_dir, _ = finished
    page = (run_dir / "report.html").read_text()
    results = read_results(run_dir)
    for task in results["tasks"]:
        assert f"{100 * task['at_end']:.2f} %" in page
        assert task["fingerprint"] in page
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page.replace("http-equiv", "")
    assert "configs/quickstart.cfg" not in page


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(tmp_path):
    done = run(*QUICK, f"--run_dir={tmp_path / 'run'}", "--dry_run")
    assert done.returncode == 0, done.stderr[-3000:]
    header, *lines = done.stdout.splitlines()
    assert header.split()[:3] == ["task", "classes", "train"]
    assert [line.split()[0] for line in lines] == [
        "textures",
        "fashion",
        "mnist",
        "digits",
    ]
    assert lines[1].split()[2:5] == ["3,600", "400", "1,000"]
    assert all("25.00 %" in line or "24.99 %" in line for line in lines)
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_not_overwritten_by_accident(finished):
    run_dir, _ = finished
    before = (run_dir / "results.json").read_bytes()
    done = run(*QUICK, f"--run_dir={run_dir}", "--nooverwrite")
    assert_one_clear_line(done, "--overwrite")
    assert (run_dir / "results.json").read_bytes() == before


def assert_one_clear_line(done, expected):
    assert done.returncode != 0
    lines = [
        line
        for line in done.stderr.splitlines()
        if line.startswith(("error:", "FATAL"))
    ]
    assert len(lines) == 1, done.stderr[-3000:]
    assert expected in lines[0]
    assert "Traceback" not in done.stderr


def data_without(name, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(ROOT / "examples" / "data", folder)
    (folder / name).unlink()
    return folder


def corrupt_data(name, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(ROOT / "examples" / "data", folder)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(bytes(data))
    return folder


BAD_INPUT = {
    "unknown_flag": (lambda tmp: ["--epoch=3"], "epoch"),
    "unexpected_argument": (lambda tmp: ["mnist"], "mnist"),
    "unknown_task": (
        lambda tmp: ["--tasks=mnist,cats", "--sparsities=0.5"],
        "cats",
    ),
    "task_twice": (
        lambda tmp: ["--tasks=mnist,mnist", "--sparsities=0.5"],
        "own name",
    ),
    "percentage": (lambda tmp: ["--sparsities=75"], "0.75"),
    "no_number": (lambda tmp: ["--sparsities=half"], "half"),
    "too_many": (lambda tmp: ["--sparsities=0.5,0.5"], "2 for 4"),
    "missing_data": (
        lambda tmp: [f"--data_dir={data_without('mnist.npz', tmp)}"],
        "mnist.npz",
    ),
    "corrupt_data": (
        lambda tmp: [f"--data_dir={corrupt_data('mnist.npz', tmp)}"],
        "mnist.npz",
    ),
    "unwritable": (
        lambda tmp: [f"--run_dir={ROOT / 'README.md' / 'run'}"],
        "Cannot write",
    ),
    "missing_flagfile": (lambda tmp: ["--flagfile=nowhere.cfg"], "nowhere.cfg"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_clear_line_and_leaves_nothing(case, tmp_path):
    make, expected = BAD_INPUT[case]
    run_dir = tmp_path / "run"
    done = run(*QUICK, f"--run_dir={run_dir}", *make(tmp_path))
    assert_one_clear_line(done, expected)
    assert not run_dir.exists()


def test_another_backend_is_one_clear_line():
    done = run(*QUICK, KERAS_BACKEND="jax")
    assert_one_clear_line(done, "KERAS_BACKEND=tensorflow")
