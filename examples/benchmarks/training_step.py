"""What a training step costs when the network is packed.

    python examples/benchmarks/training_step.py --networks=cnn

Trains a packed model and the plain Keras network it was made from, in turn,
with the same optimizer on the same batches, and reports packed / plain: 1 is
the cost of plain Keras. The plain network has the same classifier, of 10
classes, and all of it trains.

What is timed is `fit(data, steps_per_epoch=N, epochs=1, verbose=0)`, whole:
the compiled step with its input pipeline, as users run it. A call of `fit` has
a fixed cost, the same for both within a few milliseconds; N is chosen so large
that it is some 3 % of the time, and at most 5 times what `--block_seconds`
asks for. Data are random and in memory: the numbers do not depend on them.

Tasks: `first` is task 1, of which everything trains. `middle` is the third
task, in training, after two that were pruned by half and frozen. `last` is the
fourth, retraining after it was pruned by half. Biases and normalization are
frozen by then, so that the packed model has less to compute and to update than
the plain one.
`control` compares the plain network with a copy of itself: how far its ratio
is from 1 tells how far to trust the others.
"""

import gc
import itertools
from typing import Any

import choices
import in_turn
import measuring
import results
from absl import app
from absl import flags

FLAGS = flags.FLAGS

TASKS = ("first", "middle", "last", "control")

choices.define_networks(choices.NETWORKS)
choices.define_sizes(["64", "224"])
choices.define_optimizers(choices.OPTIMIZERS)
flags.DEFINE_list(
    "tasks", list(TASKS[:3]), f"Which task trains, of {', '.join(TASKS)}."
)
choices.define_batch_size()
choices.define_jit_compile()
choices.define_isolate()
flags.adopt_module_key_flags(choices)


def list_cells() -> list[dict[str, Any]]:
    """Returns what is to be measured, from the flags."""
    optimizers = choices.choose("optimizers", choices.OPTIMIZERS, quick=["sgd"])
    tasks = choices.choose("tasks", TASKS)
    return [
        {
            "network": network,
            "size": size,
            "batch_size": FLAGS.batch_size
            or choices.default_batch_size(network, size),
            "optimizer": optimizer,
            "task": task,
        }
        for network, size in choices.networks_and_sizes()
        for optimizer, task in itertools.product(optimizers, tasks)
    ]


def measure(cell: dict[str, Any]) -> dict[str, Any]:
    """Measures one cell in this process.

    Args:
        cell: One of `list_cells`.

    Returns:
        The row of the cell.
    """
    import keras
    import subjects

    keras.backend.clear_session()
    gc.collect()
    plain = subjects.build(cell["network"], cell["size"])
    if cell["task"] == "control":
        packed = keras.models.clone_model(plain)
    else:
        packed = subjects.pack_at(plain, cell["task"])
    models = {"plain": plain, "packed": packed}
    for model in models.values():
        subjects.compile_model(
            model, cell["optimizer"], choices.JIT_COMPILE[FLAGS.jit_compile]
        )
    data = subjects.batches(plain, cell["batch_size"])

    def trained(model: keras.Model) -> in_turn.Run:
        return lambda steps: model.fit(
            data, steps_per_epoch=steps, epochs=1, shuffle=False, verbose=0
        )

    rounds = in_turn.compare(
        {name: trained(model) for name, model in models.items()},
        choices.settings(),
    )
    return {
        **cell,
        **rounds.to_row("packed", "plain"),
        "jit_compile": {
            name: bool(model.jit_compile) for name, model in models.items()
        },
    }


def measure_alone(cell: dict[str, Any]) -> dict[str, Any]:
    """Measures one cell in a process of its own."""
    (row,) = measuring.run_alone(
        isolate=False,
        **choices.flags_of(cell["network"], cell["size"]),
        batch_size=cell["batch_size"],
        optimizers=cell["optimizer"],
        tasks=cell["task"],
    )
    return row


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the mean ratio and the worst cell of those that count."""
    counted = [
        row for row in rows if "ratio" in row and row["task"] != "control"
    ]
    if not counted:
        return {}
    worst = max(counted, key=lambda row: row["ratio"])
    keys = ("network", "size", "optimizer", "task", "ratio")
    return {
        "cells": len(counted),
        "geometric_mean": in_turn.geometric_mean(
            [row["ratio"] for row in counted]
        ),
        "worst": {key: worst[key] for key in keys},
    }


def to_text(rows: list[dict[str, Any]], summary: dict[str, Any]) -> str:
    """Lays out the table and what is said below it."""
    lines = [
        results.table(
            [
                "network",
                "size",
                "batch",
                "optimizer",
                "task",
                "plain ms",
                "packed ms",
                "packed / plain",
                "fastest",
            ],
            [
                [
                    row["network"],
                    str(row["size"]),
                    str(row["batch_size"]),
                    row["optimizer"],
                    row["task"],
                    *results.ratio_cells(row, "plain", "packed"),
                ]
                for row in rows
            ],
        )
    ]
    if summary:
        worst = summary["worst"]
        lines += [
            "",
            f"Geometric mean of {summary['cells']} ratios: "
            f"{summary['geometric_mean']:.3f}",
            f"Worst: {worst['ratio']:.3f} ({worst['network']} "
            f"{worst['size']}, {worst['optimizer']}, {worst['task']})",
        ]
    return "\n".join(lines)


def main() -> None:
    """Measures all cells."""
    cells = list_cells()
    rows = measuring.measure_all(
        cells, measure_alone if FLAGS.isolate else measure
    )
    summary = summarize(rows)
    print(to_text(rows, summary))
    results.finish(rows, summary)


if __name__ == "__main__":
    app.run(measuring.program(main))
