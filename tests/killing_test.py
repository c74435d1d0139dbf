"""Kills a sequence for real, and compares what comes of it."""

import json
import pathlib
import subprocess
import sys

import pytest
from helpers import all_values
from helpers import assert_same_values
from helpers import optimizer_variables

import packnet_tf
from packnet_tf import sequence

PROGRAM = pathlib.Path(__file__).with_name("killed_sequence.py")


def kill_and_compare(folder, kills, seed, *flags):
    """Runs the program, and compares every run with that without a kill."""
    subprocess.run(
        [sys.executable, PROGRAM, folder, str(kills), str(seed), *flags],
        check=True,
        timeout=1800,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    expected = json.loads((folder / "whole" / "results.json").read_text())
    assert [result["name"] for result in expected] == ["one", "two"]
    whole = sequence.restore(folder / "whole")
    assert isinstance(whole, packnet_tf.PackNetModel)
    finished = sorted(folder.glob("finished_*"))
    assert finished
    for each in finished:
        found = json.loads((each / "results.json").read_text())
        assert found == expected
        model = sequence.restore(each)
        assert_same_values(all_values(whole), all_values(model))
        assert_same_values(
            [variable.numpy() for variable in optimizer_variables(whole)],
            [variable.numpy() for variable in optimizer_variables(model)],
        )
        left = {path.name for path in each.iterdir()} - {"results.new"}
        assert len(left) == 3, left
    return expected


def test_a_killed_sequence_ends_as_one_that_was_not(tmp_path):
    kill_and_compare(tmp_path, 4, 5, "--eager")


@pytest.mark.slow
def test_a_sequence_that_is_killed_fifty_times(tmp_path):
    expected = kill_and_compare(tmp_path, 50, 6)
    # All kinds of phases were there to be killed in.
    one, two = expected
    assert (one["train_from"], one["retrain_from"]) == (0, 3)
    assert two["train_from"] == 2
    assert len(two["history"]) > two["retrain_from"]
