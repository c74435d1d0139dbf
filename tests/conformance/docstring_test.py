"""Runs the examples in the docstrings of packnet_tf."""

import doctest

import pytest
from sources import MODULES
from sources import load

PARSER = doctest.DocTestParser()


def examples_of(path):
    """Returns the examples in a file, wherever they stand."""
    return PARSER.get_examples(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", MODULES, ids=[path.stem for path in MODULES])
def test_examples_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tests = doctest.DocTestFinder().find(load(path))
    # An example that doctest does not find would never run.
    assert sum(len(test.examples) for test in tests) == len(examples_of(path))
    output = []
    runner = doctest.DocTestRunner(verbose=False)
    for test in tests:
        runner.run(test, out=output.append)
    assert runner.failures == 0, "".join(output)
