"""How much memory a training process takes when the network is packed.

    python examples/benchmarks/memory.py --networks=resnet50 --sizes=64

Each measurement is a fresh process that makes a network, compiles it and
trains it for some steps, packed or plain. Two peaks of its resident memory are
reported, the median over the repeats of each:

- of the whole process: imports, building, compiling and training; for a later
  task also pruning and freezing those before;
- of training alone: the highest while `fit` runs, counted from zero again
  just before. Known on Linux only.

Beside them stands the ratio packed / plain. Plain and packed processes come
in turn. `first` is task 1; `middle` is the third task, in training; `last` is
the fourth, retraining after it was pruned by half. Data are random: the
numbers do not depend on them.
"""

import statistics
from typing import Any

import choices
import measuring
import peaks
import results
from absl import app
from absl import flags

FLAGS = flags.FLAGS

SUBJECTS = ("plain", "first", "middle", "last")
PEAKS = ("process_bytes", "training_bytes")

choices.define_networks(choices.NETWORKS)
choices.define_sizes(["64"])
choices.define_optimizers(["sgd", "adam"])
flags.DEFINE_list(
    "subjects",
    list(SUBJECTS),
    f"What trains, of {', '.join(SUBJECTS)}: the plain network, with which "
    "the others are compared, or a task of the packed one.",
)
choices.define_batch_size()
flags.DEFINE_integer("steps", 5, "Training steps.", lower_bound=1)
flags.DEFINE_integer(
    "repeats", None, "Processes per subject. Defaults to 3.", lower_bound=1
)
choices.define_jit_compile()
flags.DEFINE_bool(
    "isolate",
    True,
    "Measure in processes of their own. Without, this process measures "
    "itself, of one network, one optimizer and one subject.",
)
for _name in (
    "networks",
    "sizes",
    "optimizers",
    "batch_size",
    "jit_compile",
    "json",
    "quick",
):
    flags.declare_key_flag(_name)


def list_cells() -> list[dict[str, Any]]:
    """Returns what is to be measured, from the flags."""
    optimizers = choices.choose("optimizers", choices.OPTIMIZERS, quick=["sgd"])
    return [
        {
            "network": network,
            "size": size,
            "batch_size": FLAGS.batch_size
            or choices.default_batch_size(network, size),
            "optimizer": optimizer,
        }
        for network, size in choices.networks_and_sizes()
        for optimizer in optimizers
    ]


def measure_here(cell: dict[str, Any], subject: str) -> dict[str, Any]:
    """Trains once in this process and reads its peaks.

    Args:
        cell: One of `list_cells`.
        subject: What trains.

    Returns:
        Peaks in bytes, and `"imports_bytes"`, the peak before any network.
    """
    import subjects

    imported = peaks.highest()
    plain = subjects.build(cell["network"], cell["size"])
    data = subjects.batches(plain, cell["batch_size"])
    if subject == "plain":
        model = plain
    else:
        model = subjects.pack_at(plain, subject)
        del plain
    subjects.compile_model(
        model, cell["optimizer"], choices.JIT_COMPILE[FLAGS.jit_compile]
    )
    before = peaks.highest()
    was_reset = peaks.reset()
    model.fit(
        data, steps_per_epoch=FLAGS.steps, epochs=1, shuffle=False, verbose=0
    )
    training = peaks.highest()
    return {
        "subject": subject,
        "imports_bytes": imported,
        "process_bytes": max(before, training),
        "training_bytes": training if was_reset else None,
    }


def measure_alone(cell: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Measures one cell, each subject in processes of its own.

    Args:
        cell: One of `list_cells`.
        names: The subjects.

    Returns:
        The medians of each subject, and all that was measured.
    """
    repeats = FLAGS.repeats or (1 if FLAGS.quick else 3)
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    order = list(names)
    for _ in range(repeats):
        for name in order:
            (row,) = measuring.run_alone(
                isolate=False,
                **choices.flags_of(cell["network"], cell["size"]),
                optimizers=cell["optimizer"],
                batch_size=cell["batch_size"],
                subjects=name,
            )
            if "error" in row:
                raise measuring.CellError(f"{name}: {row['error']}")
            measured[name].append(row)
        order.reverse()
    return {
        "repeats": repeats,
        "peaks": {
            name: {key: _median(rows, key) for key in PEAKS}
            for name, rows in measured.items()
        },
        "measured": measured,
    }


def _median(rows: list[dict[str, Any]], key: str) -> float | None:
    values = [row[key] for row in rows]
    return None if None in values else statistics.median(values)


def to_text(rows: list[dict[str, Any]]) -> str:
    """Lays out the table: a line per cell and subject."""
    lines = []
    for row in rows:
        first = [
            row["network"],
            str(row["size"]),
            str(row["batch_size"]),
            row["optimizer"],
        ]
        if "error" in row:
            lines.append([*first, *["failed"] * 5])
            continue
        found = row["peaks"]
        for name, of_subject in found.items():
            cells = []
            for key in PEAKS:
                cells.append(_megabytes(of_subject[key]))
                base = found.get("plain", {}).get(key)
                cells.append(f"{of_subject[key] / base:.3f}" if base else "-")
            lines.append([*first, name, *cells])
    return results.table(
        [
            "network",
            "size",
            "batch",
            "optimizer",
            "subject",
            "process MB",
            "/ plain",
            "training MB",
            "/ plain",
        ],
        lines,
    )


def _megabytes(size: float | None) -> str:
    return "-" if size is None else f"{size / 1e6:,.1f}"


def main() -> None:
    """Measures all cells, or this process itself."""
    cells = list_cells()
    names = choices.choose("subjects", SUBJECTS, quick=["plain", "last"])
    if FLAGS.isolate:
        rows = measuring.measure_all(
            cells, lambda cell: measure_alone(cell, names)
        )
        print(to_text(rows))
    else:
        if len(cells) * len(names) != 1:
            raise choices.FlagError(
                "--noisolate measures this process, which trains once: name "
                "one network, one size, one optimizer and one subject. "
                f"Received: {len(cells) * len(names)} combinations"
            )
        rows = measuring.measure_all(
            cells, lambda cell: measure_here(cell, names[0])
        )
        for row in rows:
            for key in PEAKS:
                print(f"{key}: {_megabytes(row.get(key))} MB")
    results.finish(rows, {})


if __name__ == "__main__":
    app.run(measuring.program(main))
