import dataclasses
import json
import tracemalloc

import keras
import matplotlib.image
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb

import packnet_tf
from packnet_tf import capacity
from packnet_tf import inventory
from packnet_tf import registry
from packnet_tf.capacity import Capacity

_PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def report():
    return Capacity(
        tasks=("birds", "flowers"),
        layers={"conv/kernel": (5, 10, 5), "dense/kernel": (0, 1000, 980)},
        unpacked=1234,
        heads=(2050, 11),
    )


def _entry(name, owner=None, protection=inventory.FROZEN, shape=(4,)):
    if owner is not None:
        owner = keras.Variable(owner, dtype="uint8", trainable=False)
        shape, protection = owner.shape, inventory.PACKED
    variable = keras.Variable(np.zeros(shape))
    return inventory.Entry(
        f"{name}/kernel",
        name,
        None,
        variable,
        registry.Kind.WEIGHT,
        protection,
        "a test",
        owner,
    )


def _head(units):
    layer = keras.layers.Dense(units)
    layer.build((None, 5))
    return layer


def test_capacity_adds_up(report):
    assert report.owned == {"birds": 1010, "flowers": 985}
    assert report.free == 5
    assert report.total == 2000
    assert report.share("birds") == 0.505
    assert report.share("flowers") == 0.4925


@given(
    rows=st.lists(
        st.tuples(*[st.integers(0, 2**40)] * 4), min_size=0, max_size=6
    )
)
@settings(max_examples=60, deadline=None, database=None)
def test_capacity_totals_match_oracle(rows):
    layers = {f"layer_{i}/kernel": row for i, row in enumerate(rows)}
    report = Capacity(("a", "b", "c"), layers, 0, (1, 2, 3))
    columns = [sum(row[i] for row in rows) for i in range(4)]
    assert report.free == columns[0]
    assert list(report.owned.values()) == columns[1:]
    assert report.total == sum(columns)
    shares = [report.share(task) for task in report.tasks]
    assert sum(shares) <= 1 + 1e-9
    assert str(report).count("\n") == len(rows) + 4


def test_capacity_cannot_be_changed(report):
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.unpacked = 0


def test_to_dict_can_be_written_as_json(report):
    assert json.loads(json.dumps(report.to_dict())) == {
        "tasks": ["birds", "flowers"],
        "total": 2000,
        "free": 5,
        "owned": {"birds": 1010, "flowers": 985},
        "unpacked": 1234,
        "heads": {"birds": 2050, "flowers": 11},
        "layers": {
            "conv/kernel": {"free": 5, "owned": {"birds": 10, "flowers": 5}},
            "dense/kernel": {
                "free": 0,
                "owned": {"birds": 1000, "flowers": 980},
            },
        },
    }


def test_str_is_a_table(report):
    assert str(report).split("\n") == [
        "packed weight  entries  birds  flowers   free",
        "---------------------------------------------",
        "conv/kernel         20  50.0%    25.0%  25.0%",
        "dense/kernel     1,980  50.5%    49.5%   0.0%",
        "---------------------------------------------",
        "total            2,000  50.5%    49.2%   0.2%",
        "not packed: 1,234 in the backbone, 2,050 in the head of birds, "
        "11 in the head of flowers",
    ]


@pytest.mark.parametrize(
    "report",
    [
        Capacity((), {}, 0, ()),
        Capacity(("birds",), {}, 3, (4,)),
        Capacity(("birds", "flowers"), {"a/kernel": (0, 0, 0)}, 0, (4, 5)),
    ],
    ids=["nothing", "no_layers", "empty_layer"],
)
def test_capacity_of_zero_packed_weights(report, tmp_path):
    assert report.total == 0
    assert report.free == 0
    assert report.owned == dict.fromkeys(report.tasks, 0)
    assert all(report.share(task) == 0 for task in report.tasks)
    assert "total" in str(report)
    assert "nan" not in str(report)
    json.dumps(report.to_dict(), allow_nan=False)
    report.plot(tmp_path / "capacity.png")
    assert (tmp_path / "capacity.png").read_bytes().startswith(_PNG)


def test_share_of_unknown_task_is_an_error(report):
    with pytest.raises(KeyError):
        report.share("cars")


def test_measure_counts_owners():
    first = np.array([[0, 1, 1], [2, 0, 0]])
    entries = [
        _entry("conv", first),
        _entry("dense", np.full((2, 2), 2)),
        _entry("norm", shape=(7,)),
        _entry("scalar", shape=()),
        _entry("noise", protection=inventory.SEED, shape=(2,)),
    ]
    report = capacity.measure(entries, ["birds", "cars"], [_head(2), _head(3)])
    assert report.tasks == ("birds", "cars")
    assert report.layers == {
        "conv/kernel": (3, 2, 1),
        "dense/kernel": (0, 0, 4),
    }
    assert report.unpacked == 8
    assert report.heads == (12, 18)
    counts = [count for row in report.layers.values() for count in row]
    assert {type(count) for count in [*counts, *report.heads]} == {int}
    json.dumps(report.to_dict())


def test_measure_counts_large_owner_maps_in_little_memory():
    owner = np.random.default_rng(0).integers(0, 101, (2000, 1000))
    entry = _entry("large", owner)
    names = [f"task {n}" for n in range(100)]
    tracemalloc.start()
    try:
        counted = capacity.measure([entry], names, [])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    expected = np.bincount(owner.reshape(-1), minlength=101)
    assert counted.layers["large/kernel"] == tuple(expected.tolist())
    assert peak < 6e6  # As `int64` the owner map takes 16 MB.


def test_measure_without_tasks():
    report = capacity.measure([_entry("conv", np.zeros((2, 3)))], [], [])
    assert report.layers == {"conv/kernel": (6,)}
    assert report.free == report.total == 6
    assert report.owned == {}


def test_plot_writes_a_picture(report, tmp_path):
    path = tmp_path / "pictures" / "capacity.png"
    report.plot(path)
    assert path.read_bytes().startswith(_PNG)
    pixels = matplotlib.image.imread(path)
    assert pixels.shape[1] == 1200
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 10
    assert [p.name for p in path.parent.iterdir()] == ["capacity.png"]


def test_plot_draws_shares(report, tmp_path):
    report.plot(tmp_path / "capacity.png")
    pixels = matplotlib.image.imread(tmp_path / "capacity.png")[..., :3]
    colors = ["C0", "C1", capacity._FREE_COLOR]
    colored = np.array(
        [
            np.all(np.isclose(pixels, to_rgb(color), atol=0.01), axis=-1)
            for color in colors
        ]
    )
    # Bars are runs of rows with much of the first color; the legend has less.
    rows = np.flatnonzero(colored[0].sum(axis=1) > 100)
    bars = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
    drawn = np.array([colored[:, bar[len(bar) // 2]].sum(1) for bar in bars])
    expected = [[0.505, 0.4925, 0.0025], [0.5, 0.25, 0.25], [0.505, 0.495, 0]]
    np.testing.assert_allclose(
        drawn / drawn.sum(axis=1, keepdims=True), expected, atol=0.01
    )


@pytest.mark.parametrize("count", [10, 20, 21, 255])
def test_plot_tells_many_tasks_apart(count, tmp_path):
    row = (count, *[10] * count)
    names = tuple(f"task {number}" for number in range(count))
    many = capacity.Capacity(names, {"dense/kernel": row}, 0, (1,) * count)
    many.plot(tmp_path / "capacity.png")
    pixels = matplotlib.image.imread(tmp_path / "capacity.png")[..., :3]
    # Where a bar is, most of a row has some color.
    colored = np.ptp(pixels, axis=-1) > 0.05
    rows = np.flatnonzero(colored.mean(axis=1) > 0.5)
    bars = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
    assert len(bars) == 2
    bar = pixels[bars[0][len(bars[0]) // 2]][:1150]
    if count <= 20:
        steps = np.flatnonzero(np.abs(np.diff(bar, axis=0)).max(axis=-1) > 0.02)
        middles = (steps[:-1] + steps[1:]) // 2
        middles = middles[np.diff(steps) > 5]
        drawn = bar[middles][colored[bars[0][0]][middles]]
        assert len(np.unique(drawn.round(2), axis=0)) >= count - count // 10
    else:
        drawn = bar[np.ptp(bar, axis=-1) > 0.05]
        assert len(np.unique(drawn.round(2), axis=0)) > 20


@pytest.mark.parametrize("suffix", ["svg", "pdf"])
def test_plot_takes_the_format_from_the_suffix(report, tmp_path, suffix):
    path = tmp_path / f"capacity.{suffix}"
    report.plot(str(path))
    assert {"svg": b"<svg", "pdf": b"%PDF"}[suffix] in path.read_bytes()


def test_plot_of_unknown_format_keeps_what_is_there(report, tmp_path):
    path = tmp_path / "capacity.txt"
    path.write_text("old")
    with pytest.raises(ValueError, match="txt"):
        report.plot(path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["capacity.txt"]


def test_what_will_be_owned_is_what_is_owned(network, images, finish_task):
    """Foreseen from the start, from the middle, and with the newest task."""
    plan = {"one": 0.6, "two": 0.37, "three": 0.0}
    model = packnet_tf.wrap(network(classes=None), head=None)

    def now():
        return model.summary_capacity(print_fn=len)

    foreseen = [now().after(plan)]
    for name, sparsity in plan.items():
        model.add_task(name, units=4)
        rest = dict(list(plan.items())[len(model.task_names) - 1 :])
        foreseen.append(now().after(rest))
        if sparsity:
            model.prune(sparsity)
        model.freeze_task()
    found = now()
    for expected in foreseen:
        assert expected.layers == found.layers
        assert expected.owned == found.owned
    assert foreseen[-1].heads == found.heads
    for wrong in ({"one": 0.5}, {"four": 0.5, "three": 0.5}, {"four": 1.0}):
        with pytest.raises(packnet_tf.errors.ArgumentError):
            found.after(wrong)
