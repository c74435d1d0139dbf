"""Runs the examples in the docstrings of packnet_tf."""

import doctest
import re

import pytest
from sources import MODULES
from sources import load


@pytest.mark.parametrize("path", MODULES, ids=[path.stem for path in MODULES])
def test_examples_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tests = doctest.DocTestFinder().find(load(path))
    found = sum(len(test.examples) for test in tests)
    written = re.findall(r"^ *>>> ", path.read_text("utf-8"), re.MULTILINE)
    assert found == len(written), "an example stands where doctest never looks"
    output = []
    runner = doctest.DocTestRunner(verbose=False)
    for test in tests:
        runner.run(test, out=output.append)
    assert runner.failures == 0, "".join(output)
