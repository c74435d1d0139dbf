import keras
import numpy as np
import pytest

import packnet_tf
from packnet_tf import cloning
from packnet_tf import inventory
from packnet_tf import planning
from packnet_tf.registry import Kind

L = keras.layers


def make_network():
    inner = keras.Sequential(
        [keras.Input((4,)), L.Dense(3, name="deep")], name="inner"
    )
    return keras.Sequential(
        [
            keras.Input((5,)),
            L.Dense(4, name="first"),
            L.BatchNormalization(name="norm"),
            L.Dropout(0.5, name="dropout"),
            inner,
            L.Reshape((3, 1), name="series"),
            L.LSTM(2, name="rnn"),
        ]
    )


def take(filters=None, **options):
    model = make_network()
    plan = planning.make(model, filters, **options)
    backbone = cloning.pack(model, plan)
    return backbone, inventory.take(backbone, plan.left_out)


KEYS = [
    "first/kernel",
    "first/bias",
    "norm/gamma",
    "norm/beta",
    "norm/moving_mean",
    "norm/moving_variance",
    "dropout/seed_generator_state",
    "inner/deep/kernel",
    "inner/deep/bias",
    "rnn/cell/kernel",
    "rnn/cell/recurrent_kernel",
    "rnn/cell/bias",
    "rnn/cell/seed_generator_state",
]


def test_take_lists_every_variable_once_and_in_order():
    backbone, entries = take(biases="per_task", normalization="per_task")
    assert [entry.key for entry in entries] == KEYS
    listed = {id(e.variable) for e in entries}
    owners = {id(e.owner) for e in entries if e.owner is not None}
    assert len(listed) == len(entries)
    assert {id(v) for v in backbone.variables} == listed | owners


def test_take_says_how_each_is_protected():
    _, entries = take()
    how = {entry.key: entry.protection for entry in entries}
    packed = {k for k, v in how.items() if v == inventory.PACKED}
    assert packed == {k for k in KEYS if k.endswith("kernel")}
    seeds = {k for k, v in how.items() if v == inventory.SEED}
    assert seeds == {k for k in KEYS if k.endswith("seed_generator_state")}
    frozen = {k for k, v in how.items() if v == inventory.FROZEN}
    assert frozen == set(KEYS) - packed - seeds


@pytest.mark.parametrize(
    ("options", "own"),
    [
        ({"biases": "per_task"}, {k for k in KEYS if k.endswith("/bias")}),
        (
            {"normalization": "per_task"},
            {k for k in KEYS if k.startswith("norm/")},
        ),
    ],
)
def test_take_tells_what_is_per_task(options, own):
    _, entries = take(**options)
    per_task = {e.key for e in entries if e.protection == inventory.PER_TASK}
    assert per_task == own
    for entry in entries:
        assert (entry.wrapper is not None) == (entry.key in own)


def test_entries_hold_what_belongs_to_a_variable():
    backbone, entries = take()
    found = {entry.key: entry for entry in entries}
    rnn = backbone.get_layer("rnn")
    entry = found["rnn/cell/recurrent_kernel"]
    assert entry.variable is rnn.layer.cell.recurrent_kernel
    assert entry.owner is rnn.owners[1]
    assert entry.owner.shape == entry.variable.shape
    assert entry.layer == "rnn"
    assert entry.holder is rnn.layer.cell
    assert entry.kind is Kind.WEIGHT
    assert entry.reason == "recurrent_kernel of LSTMCell"
    assert found["inner/deep/kernel"].layer == "inner/deep"
    assert found["norm/gamma"].owner is None


def test_reasons_of_what_was_left_out_take_precedence():
    _, entries = take(filters="first")
    found = {entry.key: entry for entry in entries}
    assert found["first/kernel"].reason == "kernel of Dense"
    left_out = found["inner/deep/kernel"]
    assert left_out.reason == "left out by `filters`"
    assert left_out.protection == inventory.FROZEN
    assert left_out.kind is Kind.WEIGHT


def test_of_task_gives_the_copy_of_an_older_task():
    packed = packnet_tf.wrap(make_network(), head=None, biases="per_task")
    entries = packed.summary_protection(print_fn=len)
    entry = next(e for e in entries if e.key == "first/bias")
    shared = next(e for e in entries if e.key == "norm/beta")
    for number in (1, 2):
        packed.add_task(f"task_{number}", units=2)
        entry.variable.assign(np.full(4, number, "float32"))
        assert entry.of_task(number) is entry.variable
        packed.prune(0.5)
        packed.freeze_task()
        assert entry.of_task(number) is not entry.variable
    for number in (1, 2):
        np.testing.assert_array_equal(entry.of_task(number), [number] * 4)
    assert entry.of_task(3) is entry.variable
    assert shared.of_task(1) is shared.variable


def test_keys_are_the_same_after_loading(tmp_path):
    packed = packnet_tf.wrap(
        make_network(), head=None, biases="per_task", filters="first|deep"
    )
    packed.add_task("one", units=2)
    packed.prune(0.5)
    packed.freeze_task()
    packed.save(tmp_path / "model.keras")
    loaded = packnet_tf.load_model(tmp_path / "model.keras")
    before, after = (
        [
            (e.key, e.layer, e.kind, e.protection, e.reason)
            for e in model.summary_protection(print_fn=len)
        ]
        for model in (packed, loaded)
    )
    assert before == after


def test_to_text_lists_every_entry_and_adds_up():
    _, entries = take(normalization="per_task")
    text = inventory.to_text(entries)
    lines = text.splitlines()
    for entry in entries:
        (line,) = [line for line in lines if line.startswith(entry.key + " ")]
        assert type(entry.holder).__name__ in line
        assert entry.reason in line
        assert str(tuple(entry.variable.shape)) in line
    packed = 5 * 4 + 4 * 3 + 1 * 8 + 2 * 8
    frozen = 4 + 3 + 8
    assert lines[-4:] == [
        f" Packed params: {packed} ({4 * packed}.00 B)",
        f" Frozen after task 1 params: {frozen} ({4 * frozen}.00 B)",
        " Per task params: 16 (64.00 B)",
        " Random state params: 4 (32.00 B)",
    ]
    assert inventory.totals(entries).splitlines() == lines[-4:]


def test_summary_protection_prints_that_text():
    packed = packnet_tf.wrap(make_network(), head=None)
    printed = []
    entries = packed.summary_protection(print_fn=printed.append)
    assert printed == [inventory.to_text(entries)]
