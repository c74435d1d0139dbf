"""The bundled demo, killed at random moments and resumed to its end."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
# The quickstart with two of its tasks. A few steps per epoch, but many epochs:
# a third of all moments is then in the middle of a phase.
COMMAND = [
    sys.executable,
    "examples/fine_grained.py",
    "--flagfile=configs/quickstart.cfg",
    "--tasks=mnist,digits",
    "--sparsities=0.5,0",
    "--methods=packnet",
    "--epochs=16",
    "--retrain_epochs=12",
    "--steps_per_epoch=3",
    "--width=4",
]


def start(run_dir):
    """Starts the demo as a user does; its output goes beside its folder."""
    with run_dir.with_suffix(".txt").open("a") as output:
        return subprocess.Popen(
            [*COMMAND, f"--run_dir={run_dir}"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def finish(run_dir):
    """Runs the demo, or what is left of it, to its end."""
    status = start(run_dir).wait()
    assert status == 0, run_dir.with_suffix(".txt").read_text()[-5000:]


def kill_at(moment, run_dir):
    """Kills the demo so many seconds after its start.

    Returns:
        Whether it was still running.
    """
    process = start(run_dir)
    try:
        process.wait(moment)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def read_fingerprints(run_dir):
    found = json.loads((run_dir / "methods" / "packnet.json").read_text())
    return found["fingerprints"]


def read_epochs(run_dir):
    """Lists the epochs that are logged."""
    lines = (run_dir / "log.jsonl").read_text().splitlines()
    return [
        tuple(json.loads(line)[name] for name in ("task", "phase", "epoch"))
        for line in lines
    ]


def list_names(run_dir):
    """Lists what is in the folder, but for logs named by time."""
    return sorted(
        str(path.relative_to(run_dir))
        for path in run_dir.rglob("*")
        if "tensorboard" not in path.parts
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of a run that nobody killed, and the seconds it took."""
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    started = time.monotonic()
    finish(run_dir)
    return run_dir, time.monotonic() - started


@pytest.mark.slow
@pytest.mark.parametrize("kills", [5, 50], ids=["five", "fifty"])
def test_a_demo_killed_at_any_moment_ends_as_if_it_never_was(
    kills, undisturbed, tmp_path
):
    whole, seconds = undisturbed
    expected = read_fingerprints(whole)
    assert list(expected) == ["mnist", "digits"]
    epochs = read_epochs(whole)
    assert len(epochs) == len(set(epochs)) == 16 + 12 + 16
    killed = 0
    # On a busy machine a run may end before its moment has come.
    for number in range(3 * kills):
        run_dir = tmp_path / f"run_{number}"
        moment = random.uniform(0, seconds)
        killed += kill_at(moment, run_dir)
        finish(run_dir)
        told = f"{run_dir}, killed after {moment:.3f} of {seconds:.3f} s"
        assert read_fingerprints(run_dir) == expected, told
        assert read_epochs(run_dir) == epochs, told
        assert list_names(run_dir) == list_names(whole), told
        if killed == kills:
            break
    assert killed == kills
