"""How costs grow with the number of tasks in one model.

    python examples/benchmarks/growth.py --tasks=1,5,20

Makes a packed model per number of tasks, of the same network, and times what
users do with it, the models in turn. Each task keeps an equal share of the
weights, and the newest is in training. Every number stands beside its ratio
to the model with the fewest tasks. Measured are, in milliseconds:

- `training_step`: of `fit`, as in `training_step.py`;
- `predict_first`, `predict_newest`: a step of `predict`, as in
  `prediction.py`;
- `switch`: `set_task` to the other of the first and the newest task, and
  `predict_on_batch`, both traced before;
- `save`, `load`, `verify`, `prune`, `freeze_task`, `add_task`: one call each,
  one after the other on the model that was loaded. `save` verifies too.
- `file_mb`: the saved file, in megabytes, with the optimizer's state.

Biases and normalization freeze with task 1, so a later task has less to train.
Nothing is trained before: what tasks have learned makes no difference to how
long anything takes.
"""

import pathlib
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import choices
import in_turn
import measuring
import results
from absl import app
from absl import flags

FLAGS = flags.FLAGS

flags.DEFINE_list(
    "tasks", ["1", "5", "20", "100"], "Numbers of tasks, in [1, 254]."
)
flags.DEFINE_enum("network", "cnn", choices.NETWORKS, "The network.")
flags.DEFINE_integer(
    "image_size",
    64,
    "Height and width of its images, for all but cnn and transformer.",
    lower_bound=32,
)
flags.DEFINE_enum("optimizer", "adam", choices.OPTIMIZERS, "The optimizer.")
flags.DEFINE_integer("batch_size", 32, "Examples per step.", lower_bound=1)
flags.adopt_module_key_flags(choices)


def measure(counts: list[int], folder: pathlib.Path) -> dict[str, Any]:
    """Measures models of different numbers of tasks.

    Args:
        counts: Numbers of tasks, rising.
        folder: Where models may be saved.

    Returns:
        By what was measured, an `in_turn.Rounds` whose subjects are the
        numbers of tasks; and the sizes of files by number of tasks.
    """
    import subjects

    from packnet_tf import sharing

    size = choices.FIXED_SIZES.get(FLAGS.network, FLAGS.image_size)
    network = subjects.build(FLAGS.network, size)
    data = subjects.batches(network, FLAGS.batch_size)
    x = next(iter(data))[0]
    models = {}
    for number, count in enumerate(counts, 1):
        _announce(f"[{number}/{len(counts)}] making {count} tasks")
        shares = sharing.to_sparsities([1.0] * count)
        model = subjects.pack(
            network, count, lambda task, shares=shares: shares[task - 1]
        )
        subjects.compile_model(model, FLAGS.optimizer)
        models[str(count)] = model
    settings = choices.settings()
    found = {}
    for name, make in {
        "training_step": _training(data),
        "predict_first": _predicting(data, 0),
        "predict_newest": _predicting(data, -1),
        "switch": _switching(x),
    }.items():
        _announce(f"timing {name}")
        found[name] = in_turn.compare(
            {count: make(model) for count, model in models.items()}, settings
        )
    _announce("timing save, load, verify, prune, freeze_task, add_task")
    paths = {count: folder / f"{count}.keras" for count in models}
    found |= in_turn.compare_chains(
        {
            count: _life(model, paths[count], subjects.CLASSES)
            for count, model in models.items()
        },
        settings,
    )
    sizes = {count: path.stat().st_size for count, path in paths.items()}
    return {"rounds": found, "file_bytes": sizes}


def _announce(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _training(data: Any) -> Callable[[Any], in_turn.Run]:
    return lambda model: (
        lambda steps: model.fit(
            data, steps_per_epoch=steps, epochs=1, shuffle=False, verbose=0
        )
    )


def _predicting(data: Any, index: int) -> Callable[[Any], in_turn.Run]:
    inputs = data.map(lambda x, y: x).prefetch(2)
    return lambda model: (
        lambda steps: model.predict(
            inputs, steps=steps, verbose=0, task=model.task_names[index]
        )
    )


def _switching(x: Any) -> Callable[[Any], in_turn.Run]:
    def make(model: Any) -> in_turn.Run:
        first, newest = model.task_names[0], model.task_names[-1]

        def run(steps: int) -> None:
            for step in range(steps):
                model.set_task(newest if step % 2 else first)
                model.predict_on_batch(x)
            model.set_task(newest)

        return run

    return make


def _life(
    model: Any, path: pathlib.Path, units: int
) -> dict[str, Callable[[], object]]:
    """Returns a chain of calls, from saving a model to its next task."""
    import packnet_tf

    loaded: list[Any] = []

    def load() -> None:
        loaded[:] = [packnet_tf.load_model(path)]

    return {
        "save": lambda: model.save(path),
        "load": load,
        "verify": lambda: loaded[0].verify(),
        "prune": lambda: loaded[0].prune(0.5),
        "freeze_task": lambda: loaded[0].freeze_task(),
        "add_task": lambda: loaded[0].add_task("next", units=units),
    }


def to_rows(found: dict[str, Any], counts: list[int]) -> list[dict[str, Any]]:
    """Returns the table as data: a row per number of tasks and measure."""
    base = str(counts[0])
    rows = []
    for what, rounds in found["rounds"].items():
        for count in map(str, counts):
            rows.append(
                {
                    "what": what,
                    "tasks": int(count),
                    "ms": rounds.median(count),
                    **_ratio(rounds.ratio(count, base)),
                    "rounds": len(rounds.ms[count]),
                    "steps_per_round": rounds.steps,
                    "ms_of_rounds": rounds.ms[count],
                }
            )
    sizes = found["file_bytes"]
    rows += [
        {
            "what": "file_mb",
            "tasks": int(count),
            "bytes": size,
            "ratio": size / sizes[base],
        }
        for count, size in sizes.items()
    ]
    return rows


def _ratio(spread: in_turn.Spread) -> dict[str, float]:
    return {"ratio": spread.median, "q1": spread.q1, "q3": spread.q3}


def to_text(rows: list[dict[str, Any]], counts: list[int]) -> str:
    """Lays out the table: a line per measure, two columns per model."""
    names = list(dict.fromkeys(row["what"] for row in rows))
    cells = {(row["what"], row["tasks"]): row for row in rows}
    header = ["ms"]
    for count in counts:
        header += [f"{count} task{'s' * (count > 1)}", "ratio"]
    lines = []
    for name in names:
        line = [name]
        for count in counts:
            row = cells[name, count]
            value = row["bytes"] / 1e6 if "bytes" in row else row["ms"]
            line += [f"{value:,.3f}", f"{row['ratio']:.3f}"]
        lines.append(line)
    return results.table(header, lines)


def main() -> None:
    """Measures all models."""
    counts = sorted(choices.numbers("tasks", int, 1, 254, quick=["1", "3"]))
    with tempfile.TemporaryDirectory() as folder:
        rows = to_rows(measure(counts, pathlib.Path(folder)), counts)
    print(to_text(rows, counts))
    results.finish(rows, {})


if __name__ == "__main__":
    app.run(measuring.program(main))
