"""What packing costs on several devices, and what two workers send.

    python examples/benchmarks/scaling.py --devices=1,2,4

`step`: on 1, 2 and 4 devices under `MirroredStrategy`, a packed model and the
plain Keras network it was made from train in turn, as in `training_step.py`;
with one device there is no strategy. The batch is the same for all devices
together. The devices are logical ones of one CPU: they share its cores, so the
step does not get faster with their number. What counts is packed / plain.

`network`: two processes on this machine train under
`MultiWorkerMirroredStrategy`, and the bytes that cross the loopback interface
are counted. `sent kB` is what each worker sends per step, `gradients kB` what
the shapes of all trainable variables come to, which is what a ring of two
sends: each worker the size of the gradients. `owned kB` is the part of it that
the newest task owns. `noise` is what other processes added to the median round;
it has to be below 1 % for three digits. Embeddings send their rows instead, so
there the shapes tell nothing.

Tasks: `first` is task 1, of which everything trains. `middle` is the third
task, in training; `last` is the fourth, retraining after it was pruned by half.
`layer_full` is a second task that owns nothing of the largest weight, which the
first kept whole; `all_full` is one that owns nothing but its head.
"""

from typing import Any

import choices
import in_turn
import measuring
import results
import traffic
from absl import app
from absl import flags

FLAGS = flags.FLAGS

TASKS = ("first", "middle", "last")
PARTS = ("step", "network")

flags.DEFINE_list("parts", list(PARTS), f"What to measure, of {PARTS}.")
flags.DEFINE_list("devices", ["1", "2", "4"], "Numbers of devices, for step.")
flags.DEFINE_list(
    "tasks",
    ["first", "last"],
    f"Which task trains, of {', '.join(TASKS)}, for step.",
)
flags.DEFINE_list(
    "subjects",
    list(traffic.SUBJECTS),
    f"What trains, of {', '.join(traffic.SUBJECTS)}, for network.",
)
flags.DEFINE_enum("network", "cnn", choices.NETWORKS, "The network.")
flags.DEFINE_integer(
    "image_size",
    64,
    "Height and width of its images, for all but cnn and transformer.",
    lower_bound=32,
)
flags.DEFINE_enum("optimizer", "sgd", choices.OPTIMIZERS, "The optimizer.")
flags.DEFINE_integer(
    "batch_size",
    32,
    "Examples per step, of all devices or workers together.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "steps",
    50,
    "Steps whose bytes are counted; doubled, up to 3 times, while other "
    "processes add more than 1 %.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "repeats",
    None,
    "How often bytes are counted. Defaults to 3; 1 in a quick run.",
    lower_bound=1,
)
choices.define_isolate()
flags.adopt_module_key_flags(choices)


def list_cells() -> list[dict[str, Any]]:
    """Returns what is to be measured, from the flags."""
    parts = choices.choose("parts", PARTS, quick=["step"])
    counts = choices.numbers("devices", int, 1, 64, quick=["2"])
    tasks = choices.choose("tasks", TASKS, quick=["last"])
    names = choices.choose(
        "subjects", traffic.SUBJECTS, quick=["plain", "last"]
    )
    if "step" in parts and len(counts) > 1 and not FLAGS.isolate:
        raise choices.FlagError(
            "--noisolate measures in this process, which has one number of "
            f"devices. Received: --devices={','.join(map(str, counts))}"
        )
    cells: list[dict[str, Any]] = []
    if "step" in parts:
        cells += [
            {"part": "step", "devices": count, "task": task}
            for count in counts
            for task in tasks
        ]
    if "network" in parts:
        cells += [{"part": "network", "subject": name} for name in names]
    return cells


def measure(cell: dict[str, Any]) -> dict[str, Any]:
    """Measures one cell.

    Args:
        cell: One of `list_cells`.

    Returns:
        The row of the cell.
    """
    if cell["part"] == "network":
        return traffic.measure(
            {
                "network": FLAGS.network,
                "size": _size(),
                "batch_size": FLAGS.batch_size,
                "optimizer": FLAGS.optimizer,
                "subject": cell["subject"],
                "steps": FLAGS.steps,
                "repeats": FLAGS.repeats or (1 if FLAGS.quick else 3),
            }
        )
    if not FLAGS.isolate:
        return measure_step(cell)
    (row,) = measuring.run_alone(
        isolate=False,
        parts="step",
        devices=cell["devices"],
        tasks=cell["task"],
    )
    return row


def measure_step(cell: dict[str, Any]) -> dict[str, Any]:
    """Times training steps in this process.

    Args:
        cell: One of `list_cells`, of part `"step"`.

    Returns:
        What was measured.
    """
    import keras
    import subjects
    import tensorflow as tf

    strategy = tf.distribute.get_strategy()
    if cell["devices"] > 1:
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * cell["devices"],
        )
        strategy = tf.distribute.MirroredStrategy(
            [f"CPU:{device}" for device in range(cell["devices"])]
        )
    with strategy.scope():
        plain = subjects.build(FLAGS.network, _size())
        packed = subjects.pack_at(plain, cell["task"])
        models = {"plain": plain, "packed": packed}
        for model in models.values():
            subjects.compile_model(model, FLAGS.optimizer)
    data = subjects.batches(plain, FLAGS.batch_size)

    def trained(model: keras.Model) -> in_turn.Run:
        return lambda steps: model.fit(
            data, steps_per_epoch=steps, epochs=1, shuffle=False, verbose=0
        )

    rounds = in_turn.compare(
        {name: trained(model) for name, model in models.items()},
        choices.settings(),
    )
    return {
        "replicas": strategy.num_replicas_in_sync,
        **rounds.to_row("packed", "plain"),
        "jit_compile": {
            name: bool(model.jit_compile) for name, model in models.items()
        },
    }


def to_text(rows: list[dict[str, Any]]) -> str:
    """Lays out a table for each part."""
    steps = [row for row in rows if row["part"] == "step"]
    sent = [row for row in rows if row["part"] == "network"]
    tables = []
    if steps:
        header = ["task", "devices", "plain ms", "packed ms"]
        tables.append(
            results.table(
                [*header, "packed / plain", "fastest"],
                [
                    [
                        row["task"],
                        str(row["devices"]),
                        *results.ratio_cells(row, "plain", "packed"),
                    ]
                    for row in steps
                ],
            )
        )
    if sent:
        header = ["trains", "gradients kB", "owned kB", "sent kB"]
        tables.append(
            results.table(
                [*header, "sent / gradients", "sent / owned", "noise"],
                [[row["subject"], *_sent_cells(row)] for row in sent],
            )
        )
    if any(row.get("sent_bytes", 0) is None for row in sent):
        tables.append(
            "What is sent cannot be counted here: there is no line of `lo` "
            "in /proc/net/dev."
        )
    return "\n\n".join(tables)


def _sent_cells(row: dict[str, Any]) -> list[str]:
    if "error" in row:
        return ["failed"] * 6
    gradients, owned = row["gradient_bytes"], row["owned_bytes"]
    cells = [f"{gradients / 1e3:,.3f}", f"{owned / 1e3:,.3f}"]
    if row["sent_bytes"] is None:
        return [*cells, *["-"] * 4]
    sent = row["sent_bytes"]
    ratios = [f"{sent / gradients:.3f}", f"{sent / owned:.3f}"]
    return [*cells, f"{sent / 1e3:,.3f}", *ratios, f"{row['noise']:.2%}"]


def _size() -> int:
    return choices.FIXED_SIZES.get(FLAGS.network, FLAGS.image_size)


def main() -> None:
    """Times steps, then counts what is sent."""
    rows = measuring.measure_all(list_cells(), measure)
    print(to_text(rows))
    results.finish(rows, {})


if __name__ == "__main__":
    app.run(measuring.program(main))
