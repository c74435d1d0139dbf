"""What packing costs before anything is trained: importing and wrapping.

    python examples/benchmarks/startup.py

- `import`: a fresh Python that runs `import packnet_tf`, against one that runs
  `import keras`, which it needs anyway. The first import compiles Python files
  and reads them from disk; that is what the rounds to warm up are for.
- `wrap`: `packnet_tf.wrap` of a network, against `keras.models.clone_model`
  and copying the weights: the least that a packed copy has to do.

Both in turn. The median difference is reported beside the ratio.
"""

import subprocess
import sys
from typing import Any

import choices
import in_turn
import measuring
import results
from absl import app
from absl import flags

FLAGS = flags.FLAGS

flags.DEFINE_enum("network", "vgg16", choices.NETWORKS, "The network to wrap.")
flags.DEFINE_integer(
    "image_size",
    224,
    "Height and width of its images, for all but cnn and transformer.",
    lower_bound=32,
)
flags.adopt_module_key_flags(choices)


def measure(cell: dict[str, Any]) -> dict[str, Any]:
    """Measures one cell.

    Args:
        cell: `{"what": "import"}`, or `"wrap"` with a network and its size.

    Returns:
        What was measured.
    """
    if cell["what"] == "import":
        names = ("packnet_tf", "keras")
        rounds = in_turn.compare(
            {name: _importing(name) for name in names},
            choices.settings(),
            steps=1,
        )
    else:
        names = ("wrap", "clone_model")
        rounds = _wrapping(cell)
    spread = rounds.difference(*names)
    return {
        **rounds.to_row(*names),
        "subjects": list(names),
        "difference_ms": vars(spread),
    }


def _importing(name: str) -> in_turn.Run:
    def run(steps: int) -> None:
        for _ in range(steps):
            subprocess.run(
                [sys.executable, "-c", f"import {name}"],
                check=True,
                stderr=subprocess.PIPE,
            )

    return run


def _wrapping(cell: dict[str, Any]) -> in_turn.Rounds:
    import keras
    import subjects

    import packnet_tf

    network = subjects.build(cell["network"], cell["size"])

    def clone(steps: int) -> None:
        for _ in range(steps):
            copy = keras.models.clone_model(network)
            copy.set_weights(network.get_weights())

    def wrap(steps: int) -> None:
        for _ in range(steps):
            packnet_tf.wrap(network)

    return in_turn.compare(
        {"wrap": wrap, "clone_model": clone}, choices.settings(), steps=1
    )


def to_text(rows: list[dict[str, Any]]) -> str:
    """Lays out the table."""
    header = ["what", "base", "ms", "packnet_tf", "ms", "packnet_tf / base"]
    lines = []
    for row in rows:
        name, base = row.get("subjects", ("-", "-"))
        one, other, ratio, fastest = results.ratio_cells(row, base, name)
        extra = row.get("difference_ms", {}).get("median")
        more = "failed" if extra is None else f"{extra:+,.1f}"
        what = " ".join(str(row[key]) for key in ("what", *_named(row)))
        lines.append([what, base, one, name, other, ratio, fastest, more])
    return results.table([*header, "fastest", "difference ms"], lines)


def _named(row: dict[str, Any]) -> list[str]:
    return [key for key in ("network", "size") if key in row]


def main() -> None:
    """Measures importing, then wrapping."""
    network = choices.unless_quick("network", "cnn")
    size = choices.FIXED_SIZES.get(network, FLAGS.image_size)
    cells: list[dict[str, Any]] = [
        {"what": "import"},
        {"what": "wrap", "network": network, "size": size},
    ]
    rows = measuring.measure_all(cells, measure)
    print(to_text(rows))
    results.finish(rows, {})


if __name__ == "__main__":
    app.run(measuring.program(main))
