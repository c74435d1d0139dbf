import csv
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

import packnet_tf
from packnet_tf import locks

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


def read_methods(run_dir):
    (repeat,) = read_results(run_dir)["repeats"]
    return repeat["methods"]


TASKS = ["textures", "fashion", "mnist", "digits"]


def test_no_task_changes_after_it_was_learned(finished):
    run_dir, _ = finished
    results = read_results(run_dir)
    assert [task["name"] for task in results["tasks"]] == TASKS
    packed, alone = (
        read_methods(run_dir)[name] for name in ("packnet", "individual")
    )
    for place, task in enumerate(TASKS):
        column = [row[place] for row in packed["matrix"]]
        assert column[:place] == [None] * place
        assert len(set(column[place:])) == 1
        assert 0 <= column[-1] <= 1
        assert 0 <= alone["matrix"][place][place] <= 1
        assert len(packed["fingerprints"][task]) == 64
        assert packed["phases"][task][0] == ["train", 1]


def test_the_run_folder_holds_what_the_table_says(finished):
    run_dir, output = finished
    assert {path.name for path in run_dir.iterdir()} == {
        "baselines",
        "capacity.png",
        "export",
        "log.jsonl",
        "methods",
        "packed.keras",
        "predictions",
        "progress",
        "report.html",
        "results.csv",
        "results.json",
        "results_summary.csv",
        "run.json",
        "tensorboard",
    }
    methods = read_methods(run_dir)
    packed, alone = methods["packnet"], methods["individual"]
    with (run_dir / "results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [
        float(line["at_end"]) for line in lines if line["method"] == "packnet"
    ] == packed["matrix"][-1]
    with (run_dir / "results_summary.csv").open(newline="") as file:
        summary = {line["method"]: line for line in csv.DictReader(file)}
    (repeat,) = read_results(run_dir)["repeats"]
    for method, measures in repeat["measures"].items():
        for name, value in measures.items():
            told = summary[method][name]
            assert (None if told == "" else float(told)) == value
    assert repeat["measures"]["packnet"]["forgetting"] == 0.0
    assert packed["bytes"] == (run_dir / "packed.keras").stat().st_size
    assert alone["bytes"] == sum(
        path.stat().st_size for path in run_dir.glob("baselines/*/*.keras")
    )
    for place, task in enumerate(TASKS):
        assert packed["export_bytes"][task] == sum(
            path.stat().st_size
            for path in (run_dir / "export" / task).rglob("*")
            if path.is_file()
        )
        with np.load(run_dir / "predictions/packnet" / f"{task}.npz") as kept:
            right = np.mean(kept["labels"] == kept["predicted"])
            assert kept["images"].shape[1:] == (28, 28, 1)
        assert right == packed["matrix"][-1][place]
        assert f"{100 * right:.2f} %" in output
    assert sum(packed["shares"].values()) == pytest.approx(1)
    assert str(run_dir / "report.html") in output


def test_every_epoch_is_logged(finished):
    run_dir, _ = finished
    lines = [
        json.loads(line)
        for line in (run_dir / "log.jsonl").read_text().splitlines()
    ]
    assert [
        (line["task"], line["phase"], line["epoch"])
        for line in lines
        if line["method"] == "packnet"
    ] == [
        *((task, "train", 1) for task in TASKS[:1]),
        *((task, "retrain", 2) for task in TASKS[:1]),
        ("fashion", "train", 1),
        ("fashion", "retrain", 2),
        ("mnist", "train", 1),
        ("mnist", "retrain", 2),
        ("digits", "train", 1),
    ]
    history = read_methods(run_dir)["packnet"]["history"]["textures"]
    assert lines[0]["val_accuracy"] == history[0]["val_accuracy"]
    tags = set()
    for path in (run_dir / "tensorboard/packnet/textures").iterdir():
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            tags |= {value.tag for value in event.summary.value}
    assert {"epoch/val_accuracy", "epoch/loss"} < tags
    assert {name for name in tags if name.startswith("sparsity/conv2d")}, tags


def test_every_artifact_computes_the_same(finished):
    run_dir, _ = finished
    model = packnet_tf.load_model(run_dir / "packed.keras")
    raw = np.random.default_rng(0).integers(0, 256, (4, 28, 28, 1), "uint8")
    for task in read_results(run_dir)["tasks"]:
        name = task["name"]
        exported = tf.saved_model.load(str(run_dir / "export" / name))
        expected = tf.function(
            lambda raw, name=name: model(
                tf.cast(raw, "float32") / 255.0, training=False, task=name
            )
        )(raw)
        served = exported.serve(raw)
        np.testing.assert_array_equal(served["scores"], expected)
        assert served["labels"].numpy().tolist() == [
            task["class_names"][best].encode()
            for best in np.argmax(expected, axis=-1)
        ]
        alone = keras.saving.load_model(
            run_dir / "baselines" / "individual" / f"{name}.keras"
        )
        assert alone.output_shape == (None, task["classes"])
    assert list(model.verify()) == model.task_names


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(
            [
                "--strategy=mirrored",
                "--precision=mixed_float16",
                "--methods=packnet",
            ],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--strategy=mirrored", "--precision=mixed_float16"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--jit_compile=true", "--precision=mixed_bfloat16"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_is_for_gpus_runs_without(flags, tmp_path):
    done = run(
        *QUICK,
        "--tasks=mnist,digits",
        "--sparsities=0.5,0",
        "--methods=packnet,lwf,ewc",
        "--warmup_epochs=1",
        "--ewc_samples=5",
        f"--run_dir={tmp_path}",
        *flags,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    methods = read_methods(tmp_path)
    alone = "--methods=packnet" in flags
    assert set(methods) == ({"packnet"} if alone else {"packnet", "lwf", "ewc"})
    for found in methods.values():
        for history in found["history"].values():
            assert all(np.isfinite(epoch["loss"]) for epoch in history)
    matrix = methods["packnet"]["matrix"]
    assert matrix[0][0] == matrix[1][0]


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(tmp_path):
    done = run(*QUICK, f"--run_dir={tmp_path / 'run'}", "--dry_run")
    assert done.returncode == 0, done.stderr[-3000:]
    header, *lines = done.stdout.splitlines()
    assert header.split()[:3] == ["task", "classes", "train"]
    assert [line.split()[0] for line in lines[:4]] == TASKS
    assert lines[1].split()[2:5] == ["3,600", "400", "1,000"]
    assert all("25.00 %" in line or "24.99 %" in line for line in lines[:4])
    assert "packed weights" in lines[5]
    assert "A step takes about" in lines[6]
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_only_reported(finished):
    run_dir, output = finished
    before = (run_dir / "results.json").read_bytes()
    (run_dir / "report.html").unlink()
    (run_dir / ".lock").touch()  # As of one that was killed at its end.
    done = run(*QUICK, f"--run_dir={run_dir}", "--data_dir=nowhere")
    assert not (run_dir / ".lock").exists()
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() in output
    assert (run_dir / "report.html").exists()
    assert (run_dir / "results.json").read_bytes() == before


TINY = [
    "--network=mlp",
    "--width=4",
    "--image_size=28",
    "--augmentation=none",
    "--epochs=1",
    "--retrain_epochs=1",
    "--steps_per_epoch=2",
    "--tasks=digits,mnist",
    "--sparsities=0.5,0",
]


def run_tiny(run_dir, seeds, methods):
    """Returns the repeats that the results have after a tiny run, by name."""
    done = run(
        *TINY,
        f"--run_dir={run_dir}",
        f"--seeds={seeds}",
        f"--methods={methods}",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = {
        repeat["name"]: repeat for repeat in read_results(run_dir)["repeats"]
    }
    return found, done.stdout


def test_seeds_and_methods_are_added_and_none_is_taken_for_another(tmp_path):
    first, _ = run_tiny(tmp_path / "run", "0", "classifier")
    alone, _ = run_tiny(tmp_path / "alone", "5", "classifier")
    second, output = run_tiny(tmp_path / "run", "5,0", "classifier")
    assert output.count("classifier, digits: train") == 1
    assert second["seed0"] == first["seed0"]
    assert second["seed5"]["folder"] == "seed5"
    for key in ("matrix", "history"):
        expected = alone["seed5"]["methods"]["classifier"][key]
        assert second["seed5"]["methods"]["classifier"][key] == expected
    # What is finished stays in the results, whatever is asked for.
    third, output = run_tiny(tmp_path / "run", "5", "finetune")
    assert list(third["seed0"]["methods"]) == ["classifier"]
    assert list(third["seed5"]["methods"]) == ["classifier", "finetune"]
    assert "classifier, digits" not in output
    again, _ = run_tiny(tmp_path / "run", "0", "classifier")
    assert again == third
    versions = read_results(tmp_path / "run")["versions"]
    assert "tensorflow-model-optimization" in versions
    assert (
        json.loads((tmp_path / "run/run.json").read_text())["versions"]
        == versions
    )


def test_another_run_does_not_take_the_folder(finished):
    run_dir, _ = finished
    before = (run_dir / "results.json").read_bytes()
    done = run(*QUICK, f"--run_dir={run_dir}", "--epochs=2")
    assert_one_clear_line(done, "epochs was 1 and is 2")
    assert (run_dir / "results.json").read_bytes() == before


def test_two_runs_do_not_share_a_folder(finished):
    run_dir, _ = finished

    def contents():
        paths = [path for path in run_dir.rglob("*") if path.is_file()]
        return {path: path.read_bytes() for path in paths}

    with locks.locked(run_dir):
        before = contents()
        done = run(*QUICK, f"--run_dir={run_dir}", "--overwrite")
        assert contents() == before
    assert_one_clear_line(done, "Another process is at work")


def what_was_found(run_dir):
    """What must not depend on restarts: all but times and sizes of files."""
    return {
        method: {
            key: found[key]
            for key in ("matrix", "history", "phases", "fingerprints")
            if key in found
        }
        for method, found in read_methods(run_dir).items()
    }


def kill_after(lines, run_dir):
    """Kills a run when it has logged so many epochs."""
    child = subprocess.Popen(
        [
            sys.executable,
            "examples/fine_grained.py",
            *QUICK,
            f"--run_dir={run_dir}",
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    log = run_dir / "log.jsonl"
    while child.poll() is None:
        if log.exists() and log.read_text().count("\n") >= lines:
            child.kill()
        time.sleep(0.05)
    assert child.wait() == -signal.SIGKILL


@pytest.mark.parametrize(
    "moments",
    [
        pytest.param([9], marks=pytest.mark.slow),
        pytest.param(list(range(1, 14)), marks=pytest.mark.slow),
    ],
    ids=["once", "after_every_epoch"],
)
def test_a_killed_run_finds_the_same(moments, finished, tmp_path):
    for lines in moments:
        kill_after(lines, tmp_path)
        assert not (tmp_path / "results.json").exists()
    done = run(*QUICK, f"--run_dir={tmp_path}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert what_was_found(tmp_path) == what_was_found(finished[0])


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
    "no_room": (
        lambda tmp: ["--sparsities=0.5,0,0.5,0"],
        "There is not enough capacity",
    ),
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


# Refused where others in the list are.
SLOW = (
    "unexpected_argument",
    "unknown_flag",
    "task_twice",
    "missing_data",
    "missing_flagfile",
)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=pytest.mark.slow) if case in SLOW else case
        for case in BAD_INPUT
    ],
)
def test_bad_input_is_one_clear_line_and_leaves_nothing(case, tmp_path):
    make, expected = BAD_INPUT[case]
    run_dir = tmp_path / "run"
    done = run(*QUICK, f"--run_dir={run_dir}", *make(tmp_path))
    assert_one_clear_line(done, expected)
    assert not run_dir.exists()


def test_another_backend_is_one_clear_line():
    done = run(*QUICK, KERAS_BACKEND="jax")
    assert_one_clear_line(done, "KERAS_BACKEND=tensorflow")
