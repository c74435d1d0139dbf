"""What a prediction costs when the network is packed.

    python examples/benchmarks/prediction.py --networks=mobilenetv2

Compares, in turn and on the same batches, a packed model of three tasks with
the plain Keras network it was made from, and reports packed / plain: 1 is the
cost of plain Keras. Kinds:

- `newest`: `predict` of the newest task.
- `older`: `predict` of task 1, whose weights are selected while it computes.

What they cost once exported, `serving.py` tells.

What is timed of a model is `predict(data, steps=N, verbose=0)`, whole, on
batches from memory. `predict_on_batch` would add the cost of turning a NumPy
array into a tensor and back to every step, the same for both. N is chosen so
large that the fixed cost of a call is some 3 % of the time, and at most 5
times what `--block_seconds` asks for. Data are random: the numbers do not
depend on them.
"""

from typing import Any

import choices
import in_turn
import measuring
import results
from absl import app
from absl import flags

FLAGS = flags.FLAGS

KINDS = ("newest", "older")
TASKS = 3

choices.define_networks(choices.APPLICATIONS)
choices.define_sizes(["224"])
flags.DEFINE_list(
    "kinds", list(KINDS), f"What is compared, of {', '.join(KINDS)}."
)
flags.DEFINE_integer("batch_size", 16, "Examples per step.", lower_bound=1)
choices.define_jit_compile()
choices.define_isolate()
flags.adopt_module_key_flags(choices)


def list_cells() -> list[dict[str, Any]]:
    """Returns what is to be measured, from the flags."""
    kinds = choices.choose("kinds", KINDS)
    return [
        {
            "network": network,
            "size": size,
            "batch_size": FLAGS.batch_size,
            "kind": kind,
        }
        for network, size in choices.networks_and_sizes()
        for kind in kinds
    ]


def measure(cell: dict[str, Any]) -> dict[str, Any]:
    """Measures one cell in this process.

    Args:
        cell: One of `list_cells`.

    Returns:
        What was measured.
    """
    import keras
    import subjects

    keras.backend.clear_session()
    plain = subjects.build(cell["network"], cell["size"])
    packed = subjects.pack(plain, TASKS)
    for model in (plain, packed):
        subjects.compile_model(
            model, "sgd", choices.JIT_COMPILE[FLAGS.jit_compile]
        )
    data = subjects.batches(plain, cell["batch_size"])
    inputs = data.map(lambda x, y: x).prefetch(2)
    task = packed.task_names[-1 if cell["kind"] == "newest" else 0]
    runs = {
        "plain": lambda steps: plain.predict(inputs, steps=steps, verbose=0),
        "packed": lambda steps: packed.predict(
            inputs, steps=steps, verbose=0, task=task
        ),
    }
    rounds = in_turn.compare(runs, choices.settings())
    return rounds.to_row("packed", "plain")


def measure_alone(cell: dict[str, Any]) -> dict[str, Any]:
    """Measures one cell in a process of its own."""
    (row,) = measuring.run_alone(
        isolate=False,
        **choices.flags_of(cell["network"], cell["size"]),
        kinds=cell["kind"],
    )
    return row


def to_text(rows: list[dict[str, Any]]) -> str:
    """Lays out the table."""
    header = ["network", "size", "batch", "kind", "plain ms", "packed ms"]
    return results.table(
        [*header, "packed / plain", "fastest"],
        [
            [
                row["network"],
                str(row["size"]),
                str(row["batch_size"]),
                row["kind"],
                *results.ratio_cells(row, "plain", "packed"),
            ]
            for row in rows
        ],
    )


def main() -> None:
    """Measures all cells."""
    rows = measuring.measure_all(
        list_cells(), measure_alone if FLAGS.isolate else measure
    )
    print(to_text(rows))
    results.finish(rows, {})


if __name__ == "__main__":
    app.run(measuring.program(main))
