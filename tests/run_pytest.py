"""Runs pytest as a program, which is how Bazel runs a test."""

import sys

import pytest

if __name__ == "__main__":
    # A sandbox is read-only, so pytest must not keep its cache there.
    sys.exit(pytest.main(["-p", "no:cacheprovider", *sys.argv[1:]]))
