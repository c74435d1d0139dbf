"""What a SavedModel of a packed network costs to call.

    python examples/benchmarks/serving.py --networks=resnet50

Exports a packed model of three tasks, and the plain Keras network it was made
from. Loads both, calls their signatures in turn on the same batch, and reports
packed / plain: 1 is the cost of plain Keras. Kinds:

- `task_newest`, `task_older`: the newest task and task 1, exported alone by
  `export_task`.
- `all_newest`, `all_older`: the same two as signatures of the one SavedModel
  that `export` writes. It keeps the weights that the first call to an older
  task selects.
- `all_selecting`: task 1 in a SavedModel that `export(keep=False)` writes,
  which selects them in each call.

Also reports megabytes on disk. Data are random: the numbers do not depend on
them.
"""

import pathlib
import tempfile
from typing import Any

import choices
import in_turn
import measuring
import results
from absl import app
from absl import flags

FLAGS = flags.FLAGS

KINDS = (
    "task_newest",
    "task_older",
    "all_newest",
    "all_older",
    "all_selecting",
)
TASKS = 3

choices.define_networks(["resnet50"])
choices.define_sizes(["224"])
flags.DEFINE_list(
    "kinds", list(KINDS), f"What is compared, of {', '.join(KINDS)}."
)
flags.DEFINE_list("batch_sizes", ["1", "16"], "Examples per call.")
choices.define_isolate()
flags.adopt_module_key_flags(choices)


def list_cells() -> list[dict[str, Any]]:
    """Returns what is to be measured, from the flags."""
    kinds = choices.choose("kinds", KINDS)
    batch_sizes = choices.numbers("batch_sizes", int, 1, 4096, quick=["1"])
    return [
        {
            "network": network,
            "size": size,
            "batch_size": batch_size,
            "kind": kind,
        }
        for network, size in choices.networks_and_sizes()
        for batch_size in batch_sizes
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

    from packnet_tf import sizes

    keras.backend.clear_session()
    plain = subjects.build(cell["network"], cell["size"])
    packed = subjects.pack(plain, TASKS)
    batch, _ = next(iter(subjects.batches(plain, cell["batch_size"])))
    with tempfile.TemporaryDirectory() as folder:
        paths = _export(plain, packed, cell["kind"], pathlib.Path(folder))
        runs = {
            name: _calls(path, signature, batch)
            for name, (path, signature) in paths.items()
        }
        on_disk = {
            f"{name}_bytes": sizes.on_disk(path)
            for name, (path, _) in paths.items()
        }
        rounds = in_turn.compare(runs, choices.settings())
    return {**rounds.to_row("packed", "plain"), **on_disk}


def measure_alone(cell: dict[str, Any]) -> dict[str, Any]:
    """Measures one cell in a process of its own."""
    (row,) = measuring.run_alone(
        isolate=False,
        **choices.flags_of(cell["network"], cell["size"]),
        batch_sizes=cell["batch_size"],
        kinds=cell["kind"],
    )
    return row


def _export(
    plain: Any, packed: Any, kind: str, folder: pathlib.Path
) -> dict[str, tuple[pathlib.Path, str]]:
    """Exports both, and returns folders and names of signatures."""
    whole, which = kind.split("_")
    task = packed.task_names[-1 if which == "newest" else 0]
    plain.export(folder / "plain", verbose=False)
    if whole == "all":
        packed.export(folder / "packed", keep=which != "selecting")
        signature = task
    else:
        packed.export_task(task, folder / "packed")
        signature = "serving_default"
    return {
        "plain": (folder / "plain", "serving_default"),
        "packed": (folder / "packed", signature),
    }


def _calls(path: pathlib.Path, signature: str, batch: Any) -> in_turn.Run:
    """Loads a SavedModel, and returns what calls a signature."""
    import tensorflow as tf

    serve = tf.saved_model.load(str(path)).signatures[signature]
    (argument,) = serve.structured_input_signature[1]

    def run(steps: int) -> None:
        for _ in range(steps):
            outputs = serve(**{argument: batch})
        for output in outputs.values():
            output.numpy()  # Waits until it is computed.

    return run


def to_text(rows: list[dict[str, Any]]) -> str:
    """Lays out the table."""
    header = ["network", "size", "batch", "kind", "plain MB", "packed MB"]
    return results.table(
        [*header, "plain ms", "packed ms", "packed / plain", "fastest"],
        [
            [
                row["network"],
                str(row["size"]),
                str(row["batch_size"]),
                row["kind"],
                *(
                    f"{row[f'{name}_bytes'] / 1e6:,.1f}"
                    if "error" not in row
                    else ""
                    for name in ("plain", "packed")
                ),
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
