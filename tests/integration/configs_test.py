"""Every config, for a few steps."""

import json
import os
import pathlib
import re
import subprocess
import sys

import keras
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.cfg"))

# Random images in place of a download; what is not flags is as it is.
PROGRAM = """
import runpy, sys
import tensorflow_datasets as tfds
with tfds.testing.mock_data(num_examples={count}):
    runpy.run_path(sys.argv[0], run_name="__main__")
"""
PAPER = ([200, 196, 102], [0.25, 0.1875, 0.5625])
EXPECTED = {
    "vgg": PAPER,
    "resnet50": PAPER,
    "densenet121": PAPER,
    # The first two tasks: of equal shares, so that there can be any number.
    "mobilenet": ([102, 47], [0.5] * 2),
    "permuted_mnist": ([10] * 2, [0.5] * 2),
    "split_mnist": ([2] * 2, [0.5] * 2),
    "split_cifar10": ([2] * 2, [0.5] * 2),
    "vgg_bn": PAPER,
    "places": ([365], [1.0]),
    # Without those that are folders of a user's own.
    "wikiart_sketch": (PAPER[0], [1 / 3] * 3),
}
FEW = ["--epochs=1", "--retrain_epochs=1", "--steps_per_epoch=2"]
# Nothing that has to be downloaded, and nothing large.
SMALL = [
    *FEW,
    "--keep=",
    "--keep_train=",
    "--filters=",
    "--network=mlp",
    "--weights=none",
    "--channels=3",
    "--width=8",
    "--image_size=28",
    "--resize=32",
    "--max_bad_images=24",
]


def run(config, tmp_path, *arguments, count=24):
    argv = [
        "examples/fine_grained.py",
        f"--flagfile=configs/{config}.cfg",
        f"--run_dir={tmp_path / 'run'}",
        f"--cache_dir={tmp_path / 'cache'}",
        *arguments,
    ]
    program = f"import sys\nsys.argv[:] = {argv!r}\n"
    program += PROGRAM.format(count=count)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'examples'}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((tmp_path / "run" / "results.json").read_text())


@pytest.mark.parametrize("config", [path.stem for path in CONFIGS])
def test_a_config_says_what_it_is(config):
    lines = (ROOT / "configs" / f"{config}.cfg").read_text().splitlines()
    header = "\n".join(line for line in lines if line.startswith("#"))
    for word in ("Method:", "Time:", "Result:"):
        assert word in header
    command = f"python examples/fine_grained.py --flagfile=configs/{config}.cfg"
    assert f"# Command: {command}" in header
    assert f"--run_dir=runs/{config}" in lines
    assert re.search(r"arXiv \d{4}\.\d{5}", header)


@pytest.mark.parametrize(
    "config", [path.stem for path in CONFIGS if path.stem != "quickstart"]
)
def test_a_config_runs(config, tmp_path):
    classes, shares = EXPECTED[config]
    # Of few classes each has to have an example.
    count = 400 if {"mnist", "cifar10"} & {*config.split("_")} else 24
    lines = (ROOT / "configs" / f"{config}.cfg").read_text().splitlines()
    (tasks,) = [line for line in lines if line.startswith("--tasks=")]
    tasks = ",".join(tasks.split(",")[: len(classes)])
    results = run(
        config, tmp_path, *SMALL, tasks, "--noindividual", count=count
    )
    assert [task["classes"] for task in results["tasks"]] == classes
    assert [task["share"] for task in results["tasks"]] == pytest.approx(
        shares, abs=0.01
    )
    for task in results["tasks"]:
        assert task["at_end"] == task["after_learning"]
        assert len(task["data_fingerprint"]) == 64


def test_a_pretrained_network_is_kept_as_the_first_task(tmp_path):
    keras.utils.set_random_seed(0)
    network = keras.applications.MobileNet(
        weights=None, input_shape=(32, 32, 3), alpha=0.25
    )
    path = tmp_path / "network.keras"
    network.save(path)
    results = run(
        "vgg",
        tmp_path,
        *FEW,
        f"--network={path}",
        "--weights=none",
        "--tasks=mnist,digits",
        "--boxed=",
        "--sparsities=0.5,0",
        "--channels=3",
        "--image_size=32",
        "--resize=36",
        "--keep_epochs=1",
        "--noindividual",
    )
    kept = results["kept"]
    assert kept["name"] == "imagenet"
    assert 0 <= kept["agreement"] <= 1
    assert len(kept["fingerprint"]) == 64
    assert results["capacity"]
    assert [task["share"] for task in results["tasks"]] == pytest.approx(
        [0.25, 0.25], abs=0.01
    )
