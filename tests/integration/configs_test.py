"""Every config, for a few steps."""

import json
import os
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import PIL.Image
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
    "vgg_bn": ([200, 196, 102], [0.25, 0.1875, 0.5625]),
    "places": ([365], [1.0]),
    "wikiart_sketch": ([200, 196, 102, 3, 3], [0.2] * 5),
    "split_cifar10": ([2] * 2, [0.2] * 2),
    # The first two tasks: of equal shares, so that there can be any number.
    "mobilenet": ([102, 47], [0.5] * 2),
    "mobilenet_four": ([3] * 2, [0.5] * 2),
    "permuted_mnist": ([10] * 2, [0.0885] * 2),
    "split_mnist": ([2] * 2, [0.5] * 2),
}
# With a small network in place of theirs, they do what others do.
LIKE_OTHERS = (
    "densenet121",
    "mobilenet",
    "mobilenet_four",
    "places",
    "resnet50",
    "split_cifar10",
    "split_mnist",
    "vgg_bn",
    "wikiart_sketch",
)
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
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    (repeat,) = results["repeats"]
    return results, repeat["methods"]["packnet"]


def fill(folder):
    """Makes a folder of images: three classes, split in two parts."""
    generator = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in "abc":
            (folder / part / name).mkdir(parents=True)
            for number in range(8):
                pixels = generator.integers(0, 256, (30, 30, 3), np.uint8)
                image = PIL.Image.fromarray(pixels)
                image.save(folder / part / name / f"{number}.png")


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
    "config",
    [
        pytest.param(
            path.stem,
            marks=[pytest.mark.slow] if path.stem in LIKE_OTHERS else [],
        )
        for path in CONFIGS
        if path.stem != "quickstart"
    ],
)
def test_a_config_runs(config, tmp_path):
    classes, shares = EXPECTED[config]
    # Of few classes each has to have an example.
    count = 400 if "split" in config or "mnist" in config else 24
    lines = (ROOT / "configs" / f"{config}.cfg").read_text().splitlines()
    tasks, sparsities = (
        ",".join(line.split(",")[: len(classes)])
        for flag in ("--tasks=", "--sparsities=")
        for line in lines
        if line.startswith(flag)
    )
    for name in re.findall(r"folder:data/(\w+)", tasks):
        fill(tmp_path / name)
    tasks = tasks.replace("folder:data/", f"folder:{tmp_path}/")
    results, packed = run(
        *(config, tmp_path, *SMALL, tasks, sparsities),
        *("--methods=packnet", "--seeds=0"),
        count=count,
    )
    assert [task["classes"] for task in results["tasks"]] == classes
    assert list(packed["shares"].values()) == pytest.approx(shares, abs=0.01)
    for place, task in enumerate(results["tasks"]):
        assert packed["matrix"][-1][place] == packed["matrix"][place][place]
        assert len(task["data_fingerprint"]) == 64


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A file of a network with a classifier of ImageNet's classes."""
    keras.utils.set_random_seed(0)
    network = keras.applications.MobileNet(
        weights=None, input_shape=(32, 32, 3), alpha=0.25
    )
    path = tmp_path_factory.mktemp("network") / "network.keras"
    network.save(path)
    return path


@pytest.mark.slow
def test_a_pretrained_network_is_kept_by_its_own_data(pretrained, tmp_path):
    results, packed = run(
        "places",
        tmp_path,
        *FEW,
        f"--network={pretrained}",
        "--weights=none",
        "--keep_epochs=1",
        "--image_size=32",
        "--resize=36",
        "--max_bad_images=24",
    )
    kept = packed["kept"]
    assert 0 <= kept["accuracy"] <= 1
    assert 0 <= kept["accuracy_before"] <= 1
    assert packed["shares"]["places"] == pytest.approx(0.5, abs=0.01)
    assert results["tasks"][0]["classes"] == 365


@pytest.mark.slow
def test_a_pretrained_network_is_kept_as_the_first_task(pretrained, tmp_path):
    _, packed = run(
        "vgg",
        tmp_path,
        *FEW,
        f"--network={pretrained}",
        "--weights=none",
        "--tasks=mnist,digits",
        "--boxed=",
        "--sparsities=0.5,0",
        "--channels=3",
        "--image_size=32",
        "--resize=36",
        "--keep_epochs=1",
        "--methods=packnet",
        "--jit_compile=false",
    )
    kept = packed["kept"]
    assert kept["name"] == "imagenet"
    assert 0 <= kept["agreement"] <= 1
    assert len(packed["fingerprints"]["imagenet"]) == 64
    assert list(packed["shares"].values()) == pytest.approx(
        [0.25, 0.25], abs=0.01
    )
