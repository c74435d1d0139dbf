"""What choosing the weights to release costs, against sorting in NumPy.

    python examples/benchmarks/selecting.py --sizes=1000000

Times, in turn and on the same random scores:

- `release_lowest` of `packnet_tf.selection`: an exact count, ties by lowest
  index, among the entries that the task owns;
- `numpy.partition` of the scores that the task owns, taken out beforehand:
  the least that any exact selection has to do;
- the same with the taking out: what one would write in NumPy;
- `numpy.argsort` of what is owned: what sorting it would take.

Then `model.prune(0.5)` end to end, of a network from keras.applications in
its first task, against the sum of `numpy.partition` over its layers' weights.
A network is wrapped anew for every round, which is not timed.

The numbers depend on the order of the scores only in so far as a sorted
array is a special case; these are random. At 100 million scores (400 MB) a
round takes half a minute: `--sizes=100000000`.
"""

import itertools
from typing import Any

import choices
import in_turn
import measuring
import results
from absl import app
from absl import flags

FLAGS = flags.FLAGS

NETWORKS = ("none", *choices.NETWORKS)
OWNED = ("all", "half")

flags.DEFINE_list(
    "sizes", ["100000", "1000000", "10000000"], "How many scores there are."
)
flags.DEFINE_list(
    "sparsities", ["0.5", "0.75"], "Fractions to release, in [0, 1)."
)
flags.DEFINE_list(
    "owned", list(OWNED), f"How much the task owns, of {', '.join(OWNED)}."
)
flags.DEFINE_enum(
    "network", "vgg16", NETWORKS, "The network to prune end to end."
)
flags.DEFINE_integer(
    "image_size",
    224,
    "Height and width of its images, for all but cnn and transformer.",
    lower_bound=32,
)
flags.adopt_module_key_flags(choices)


def list_cells() -> list[dict[str, Any]]:
    """Returns what is to be measured, from the flags."""
    sizes = choices.numbers("sizes", int, 2, 2**31, quick=["100000"])
    sparsities = choices.numbers("sparsities", float, 0.0, 0.999)
    owned = choices.choose("owned", OWNED)
    network = choices.unless_quick("network", "cnn")
    cells: list[dict[str, Any]] = [
        {"what": "scores", "size": size, "owned": part, "sparsity": sparsity}
        for size, part, sparsity in itertools.product(sizes, owned, sparsities)
    ]
    if network != "none":
        size = choices.FIXED_SIZES.get(network, FLAGS.image_size)
        cells.append(
            {"what": network, "size": size, "owned": "all", "sparsity": 0.5}
        )
    return cells


def measure(cell: dict[str, Any]) -> dict[str, Any]:
    """Measures one cell.

    Args:
        cell: One of `list_cells`.

    Returns:
        What was measured.
    """
    return _of_scores(cell) if cell["what"] == "scores" else _of_model(cell)


def _of_scores(cell: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    from packnet_tf import selection

    generator = np.random.default_rng(0)
    scores = generator.random(cell["size"], dtype="float32")
    owner = np.full(scores.shape, 2, np.uint8)
    if cell["owned"] == "half":
        owner[generator.random(scores.shape) < 0.5] = 1
    ranked = scores[owner == 2]
    kth = max(round(cell["sparsity"] * ranked.size) - 1, 0)
    rounds = in_turn.compare(
        {
            "release_lowest": _repeated(
                lambda: selection.release_lowest(
                    scores, owner, 2, cell["sparsity"]
                )
            ),
            "partition": _repeated(lambda: np.partition(ranked, kth)),
            "taken": _repeated(lambda: np.partition(scores[owner == 2], kth)),
            "argsort": _repeated(lambda: np.argsort(ranked)),
        },
        choices.settings(),
    )
    sorting = rounds.ratio("argsort", "partition")
    taking = rounds.ratio("release_lowest", "taken")
    return {
        **rounds.to_row("release_lowest", "partition"),
        "taken_ms": rounds.median("taken"),
        "taken_ratio": vars(taking),
        "taken_ms_of_rounds": rounds.ms["taken"],
        "argsort_ms": rounds.median("argsort"),
        "argsort_ratio": vars(sorting),
        "argsort_ms_of_rounds": rounds.ms["argsort"],
    }


def _of_model(cell: dict[str, Any]) -> dict[str, Any]:
    import numpy as np
    import subjects

    network = subjects.build(cell["what"], cell["size"])
    wrapped: list[Any] = []
    kernels = [
        np.abs(entry.variable.numpy()).reshape(-1)
        for entry in subjects.pack(network, 1).summary_protection(
            lambda text: None
        )
        if entry.owner is not None
    ]

    def prepare() -> None:
        wrapped[:] = [subjects.pack(network, 1)]

    def partition(steps: int) -> None:
        for kernel in kernels:
            np.partition(kernel, max(round(0.5 * kernel.size) - 1, 0))

    rounds = in_turn.compare(
        {
            "prune": lambda steps: wrapped[0].prune(cell["sparsity"]),
            "partition": partition,
        },
        choices.settings(),
        steps=1,
        prepare=prepare,
    )
    return {
        **rounds.to_row("prune", "partition"),
        "weights": sum(kernel.size for kernel in kernels),
    }


def _repeated(call: Any) -> in_turn.Run:
    def run(steps: int) -> None:
        for _ in range(steps):
            call()

    return run


def to_text(rows: list[dict[str, Any]]) -> str:
    """Lays out the tables: of scores, and of a network."""
    of_scores = [row for row in rows if row["what"] == "scores"]
    of_model = [row for row in rows if row["what"] != "scores"]
    tables = [
        results.table(
            [
                "scores",
                "owned",
                "sparsity",
                "partition ms",
                "release_lowest ms",
                "release_lowest / partition",
                "fastest",
                "release_lowest / taken out",
                "argsort / partition",
            ],
            [
                [
                    f"{row['size']:,}",
                    row["owned"],
                    f"{row['sparsity']:g}",
                    *results.ratio_cells(row, "partition", "release_lowest"),
                    *(
                        "failed"
                        if "error" in row
                        else str(in_turn.Spread(**row[ratio]))
                        for ratio in ("taken_ratio", "argsort_ratio")
                    ),
                ]
                for row in of_scores
            ],
        )
    ]
    if of_model:
        header = ["network", "size", "weights", "partition ms", "prune ms"]
        tables.append(
            results.table(
                [*header, "prune / partition", "fastest"],
                [
                    [
                        row["what"],
                        str(row["size"]),
                        f"{row.get('weights', 0):,}",
                        *results.ratio_cells(row, "partition", "prune"),
                    ]
                    for row in of_model
                ],
            )
        )
    return "\n\n".join(tables)


def main() -> None:
    """Measures all cells."""
    rows = measuring.measure_all(list_cells(), measure)
    print(to_text(rows))
    results.finish(rows, {})


if __name__ == "__main__":
    app.run(measuring.program(main))
