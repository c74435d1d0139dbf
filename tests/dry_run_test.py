"""What a dry run says, and that it can be had of any network."""

import experiments
import keras
import pytest
from absl.testing import flagsaver
from methods import networks
from program import dry_run
from program import options


@pytest.fixture(autouse=True)
def flags():
    """Sets the flags of two tasks."""
    flags = options.FLAGS
    if not flags.is_parsed():
        flags(["test"])
    with flagsaver.flagsaver(
        tasks=["one:mnist", "two:digits"], sparsities=["0.5"]
    ):
        yield


def say(setting, *methods):
    return dry_run.describe(setting, list(methods), 1, {})


@pytest.mark.parametrize("name", ["dense", "one"])
def test_a_layer_may_have_any_name(name, tmp_path):
    def build():
        return keras.Sequential(
            [
                keras.Input((experiments.SIZE, experiments.SIZE, 3)),
                keras.layers.Flatten(),
                keras.layers.Dense(6, name=name),
            ]
        )

    setting = experiments.make(tmp_path, network=networks.Network(build))
    keras.backend.clear_session()
    assert "A step takes about" in say(setting, "packnet")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("method", "keeps", "expected"),
    [
        # Two tasks of 4 epochs of 3 steps; kept are 2 epochs of 6.
        ("packnet", None, 24),
        ("classifier", None, 0.4 * 24),
        ("joint", None, 24),
        ("lwf", None, 1.35 * 24),
        ("packnet", "imitating", 1.35 * 12 + 24),
        ("packnet", "labelled", 2 * 3 + 24),
        ("individual", "imitating", 24),
        ("joint", "imitating", 1.35 * 24),
    ],
)
def test_what_imitates_takes_longer(
    method, keeps, expected, tmp_path, monkeypatch
):
    keep = None
    if keeps:
        labelled = experiments.make_data("all", 4)
        train = labelled if keeps == "labelled" else None
        keep = experiments.make_keeping(train=train)
    setting = experiments.make(tmp_path, keep=keep)
    monkeypatch.setattr(dry_run, "_time_step", lambda setting: 1.0)
    assert f"{method}: about {expected:.0f} seconds" in say(setting, method)
