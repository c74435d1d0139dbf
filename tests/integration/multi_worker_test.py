"""Several processes that train one packed model, on this machine."""

import itertools
import json
import os
import pathlib
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
NETWORKS = ("plain", "normalized")
ROUNDING = 5e-6  # What adding up in another order makes of weights about 1.


def free_ports(count):
    """Returns ports that nobody listens to, as long as nobody takes them."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("localhost", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start(folder, workers=1, flags=(), kill=None):
    """Runs `workers.py` to its end; returns codes, outputs and results.

    Args:
        folder: Where the results go.
        workers: How many processes.
        flags: For all of them.
        kill: Number of a worker, and flags for it alone.
    """
    folder.mkdir(exist_ok=True)
    addresses = [f"localhost:{port}" for port in free_ports(workers)]
    processes = []
    for worker in range(workers):
        own = kill[1] if kill and kill[0] == worker else []
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TF_CPP_MIN_LOG_LEVEL": "2",
        }
        if workers > 1:
            environment["TF_CONFIG"] = json.dumps(
                {
                    "cluster": {"worker": addresses},
                    "task": {"type": "worker", "index": worker},
                }
            )
        processes.append(
            subprocess.Popen(
                [
                    sys.executable,
                    str(ROOT / "tests" / "workers.py"),
                    str(folder),
                    *flags,
                    *own,
                ],
                env=environment,
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        outputs = [each.communicate(timeout=500)[0] for each in processes]
    finally:
        for each in processes:
            each.kill()
    codes = [each.returncode for each in processes]
    paths = [folder / f"results_{worker}.json" for worker in range(workers)]
    found = [json.loads(p.read_text()) for p in paths if p.exists()]
    return codes, outputs, found


def succeed(*args, **kwargs):
    codes, outputs, found = start(*args, **kwargs)
    assert not any(codes), "\n".join(outputs)[-5000:]
    return found


def assert_follows(folder, whole, replicas):
    """Checks that replicas did what one process did, but for rounding."""
    one, other = (np.load(each / "values_0.npz") for each in (whole, folder))
    assert one.files == other.files
    for name in one.files:
        np.testing.assert_allclose(
            one[name], other[name], rtol=0, atol=ROUNDING
        )
    found = json.loads((folder / "results_0.json").read_text())
    expected = json.loads((whole / "results_0.json").read_text())
    assert found["replicas"] == replicas
    for logs, alone in zip(
        itertools.chain(*found["plain"]["history"]),
        itertools.chain(*expected["plain"]["history"]),
        strict=True,
    ):
        assert logs == pytest.approx(alone, abs=1e-5)


def assert_agree(found):
    """Checks that all workers hold the same tasks, and can prove it."""
    for results in found:
        for name in NETWORKS:
            assert len(results[name]["fingerprints"]) == 2
            assert results[name] == found[0][name]
            assert results[name]["proved"] == results[name]["fingerprints"]
            assert results[name]["predicted"] == [48, 3]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What one process does with whole batches."""
    folder = tmp_path_factory.mktemp("whole")
    succeed(folder)
    return folder


def test_two_workers_do_what_one_does_and_agree(whole, tmp_path):
    found = succeed(tmp_path, 2)
    assert_agree(found)
    assert_follows(tmp_path, whole, 2)
    # When Keras no longer fails in one of them, `distribute.py` can lose it.
    assert set(found[0]["seams"]) == {"build", "logs"}, keras.__version__
    # The first one alone writes checkpoints.
    for name in NETWORKS:
        files = sorted(path.name for path in (tmp_path / name).iterdir())
        assert len(files) == 2
        assert files[1] == "progress.json"


@pytest.mark.slow
def test_three_workers_do_what_one_does_and_agree(whole, tmp_path):
    assert_agree(succeed(tmp_path, 3))
    assert_follows(tmp_path, whole, 3)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 4])
def test_devices_of_one_process_do_what_one_does(devices, whole, tmp_path):
    succeed(tmp_path, flags=[f"--devices={devices}"])
    assert_follows(tmp_path, whole, devices)


@pytest.mark.slow
@pytest.mark.parametrize("worker", [0, 1])
def test_a_worker_that_dies_ends_the_job_which_goes_on(worker, tmp_path):
    undisturbed = succeed(tmp_path / "undisturbed", 2)
    folder = tmp_path / "disturbed"
    codes, outputs, found = start(folder, 2, kill=(worker, ["--kill=1"]))
    assert codes[worker] == -9
    assert codes[1 - worker] not in (0, -9)
    assert "WorkerError" in outputs[1 - worker], outputs[1 - worker][-3000:]
    assert "last completed epoch" in outputs[1 - worker]
    assert not found
    assert succeed(folder, 2) == undisturbed
