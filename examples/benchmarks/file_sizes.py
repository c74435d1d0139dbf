"""What a network with four tasks takes on disk, in several forms.

    python examples/benchmarks/file_sizes.py --networks=vgg16,mobilenetv2

The tasks are the paper's: ImageNet, then CUBS, Cars and Flowers, which release
0.5, 0.75, 0.75 and --last of their pools. Weights are random numbers, as large
as trained ones and as hard to compress; where they are does not matter, as the
lowest are released as ever. In megabytes of a million bytes:

- `paper`: by the paper's formula: all weights, heads, and as many bits per
  packed weight as tell its owners apart;
- `uncoded`: the weights that are owned, the entropy of the owner maps, heads,
  and what is not packed;
- `pack`: the pack file, which codes values too, and its share of the former;
- `bfloat16`: the pack file with rounded values, which loses precision;
- `delta`: what the last task adds, as a file;
- `keras`: the `.keras` file; `zipped`: the same, deflated;
- `separate`: four `.keras` files, one for each task.

Then seconds, the medians of three rounds:

- `save`, `load`: the pack file, written and read;
- `write`, `read`: by NumPy, as many bytes, into a new file and back;
- `encode`, `decode`: the coder alone, without files, checksums, fingerprints.

And megabytes of memory, where Linux tells them: how much more than the model
`saving` the pack file takes at most, and `loading` it, runtime included.

Every form is really written, into --folder, and removed again.
"""

import functools
import gc
import io
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from typing import Any

import choices
import measuring
import results
from absl import app
from absl import flags

FLAGS = flags.FLAGS

NETWORKS = {
    "vgg16": ("VGG16", 224),
    "resnet50": ("ResNet50", 224),
    "densenet121": ("DenseNet121", 224),
    "mobilenetv2": ("MobileNetV2", 224),
}
TASKS = {"imagenet": 1000, "cubs": 200, "cars": 196, "flowers": 102}
_PIECE = 1 << 20
_CODED = 1 << 22  # Entries that a pack file codes together.
_ROUNDS = 3
_TIMES = ("save", "write", "encode", "load", "read", "decode")
_PEAKS = ("saving", "loading")
_LOAD_AND_SAVE = """
import json, sys
import peaks, packnet_tf
path, found = sys.argv[1], {}
before = peaks.now()
model = packnet_tf.load_pack(path)
found["loading"] = before and peaks.highest() - before
if before:  # Values are copied to be looked at, which takes memory too.
    found["loading"] -= sum(v.numpy().nbytes for v in model.variables)
before = peaks.now() if peaks.reset() else None
packnet_tf.save_pack(model, path)
found["saving"] = before and peaks.highest() - before
print(json.dumps(found))
"""

flags.DEFINE_list("networks", list(NETWORKS), "Of keras.applications.")
flags.DEFINE_list(
    "last", ["0", "0.75"], "Sparsities of the last task, a row for each."
)
flags.DEFINE_string(
    "folder", None, "Where files are written. Defaults to a temporary folder."
)
flags.adopt_module_key_flags(choices)


def measure(cell: dict[str, Any], folder: pathlib.Path) -> dict[str, Any]:
    """Measures one network.

    Args:
        cell: Its name, and the sparsity of the last task.
        folder: Where files may be written.

    Returns:
        Sizes in bytes, and seconds.
    """
    import packnet_tf
    from packnet_tf import inspection

    model = _make(cell["network"], cell["last"])
    sizes = inspection.inspect(model).sizes
    row: dict[str, Any] = {"paper": sizes.paper, "uncoded": sizes.compact}
    pack, delta = folder / "model.packnet", folder / "flowers.packtask"
    row |= _times(model, pack)
    row |= _memory(pack)
    row["pack"] = _take(pack)
    packnet_tf.save_pack(model, pack, dtype="bfloat16")
    row["bfloat16"] = _take(pack)
    packnet_tf.save_task(model, "flowers", delta)
    row["delta"] = _take(delta)
    whole = folder / "model.keras"
    model.save(whole)
    row["zipped"] = _deflated(whole)
    row["keras"] = _take(whole)
    row["separate"] = 0
    for task in TASKS:
        model.export_task(task, whole)
        row["separate"] += _take(whole)
    return row


def to_text(rows: list[dict[str, Any]]) -> str:
    """Lays out the table."""
    columns = [
        *("paper", "uncoded", "pack", "bfloat16", "delta"),
        *("keras", "zipped", "separate"),
    ]
    measured = (*_TIMES, *_PEAKS)
    lines = []
    for row in rows:
        cells = [row["network"], str(row["last"])]
        if "error" in row:
            lines.append(
                [*cells, *["failed"] * (len(columns) + 1 + len(measured))]
            )
            continue
        cells += [f"{row[name] / 1e6:,.2f}" for name in columns]
        cells += [
            f"{row['pack'] / row['uncoded']:.4f}",
            *(f"{row[name]:.2f}" for name in _TIMES),
            *(
                "-" if row[name] is None else f"{row[name] / 1e6:,.0f}"
                for name in _PEAKS
            ),
        ]
        lines.append(cells)
    return results.table(
        ["network", "last", *columns, "pack / uncoded", *measured], lines
    )


def _make(name: str, last: float) -> Any:
    """Packs a network, and fills each task's weights with numbers."""
    import keras
    import numpy as np

    import packnet_tf

    attribute, size = NETWORKS[name]
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    network = getattr(keras.applications, attribute)(
        weights=None, input_shape=(size, size, 3)
    )
    sparsities = dict(zip(TASKS, (0.5, 0.75, 0.75, last)))
    model = packnet_tf.wrap(network, task="imagenet")
    del network
    for number, (task, units) in enumerate(TASKS.items(), 1):
        if number > 1:
            model.add_task(task, units=units)
            for entry in model.summary_protection(print_fn=lambda text: None):
                if entry.owner is not None:
                    _fill(entry, number, generator)
        model.prune(sparsities[task])
        model.freeze_task()
    return model


def _fill(entry: Any, task: int, generator: Any) -> None:
    """Gives the weights of a new task values, as training would."""
    value = entry.variable.numpy()
    own = entry.owner.numpy() == task
    drawn = generator.standard_normal(int(own.sum()), dtype="float32")
    value[own] = 0.01 * drawn
    entry.variable.assign(value)


def _seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _times(model: Any, path: pathlib.Path) -> dict[str, float]:
    """Times the pack file, NumPy and the coder; leaves the pack file."""
    import numpy as np

    import packnet_tf

    found: dict[str, list[float]] = {name: [] for name in _TIMES}
    plain = path.with_suffix(".npy")
    for _ in range(_ROUNDS):
        path.unlink(missing_ok=True)
        found["save"].append(
            _seconds(lambda: packnet_tf.save_pack(model, path))
        )
        found["load"].append(_seconds(lambda: packnet_tf.load_pack(path)))
        gc.collect()  # What was loaded, which would be thrown away later.
        write = functools.partial(np.save, plain, np.fromfile(path, np.uint8))
        found["write"].append(_seconds(write))
        del write
        found["read"].append(_seconds(lambda: np.load(plain)))
        plain.unlink()
    for _ in range(_ROUNDS):
        encoded, decoded = _coder_seconds(model)
        found["encode"].append(encoded)
        found["decode"].append(decoded)
    return {name: statistics.median(times) for name, times in found.items()}


def _memory(path: pathlib.Path) -> dict[str, int | None]:
    """Returns how many bytes it takes at most to load a pack file and save it.

    Beside the model, which is loaded in a process of its own: this one has
    memory that it does not give back.
    """
    done = subprocess.run(
        [sys.executable, "-c", _LOAD_AND_SAVE, str(path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise measuring.CellError(done.stderr[-1000:])
    return json.loads(done.stdout.splitlines()[-1])


def _coder_seconds(model: Any) -> tuple[float, float]:
    """Times the coding of what a pack file codes, and its decoding."""
    import numpy as np

    from packnet_tf import byte_planes
    from packnet_tf import entropy_coding

    letters = len(model.task_names) + 1
    encoding = decoding = 0.0
    for entry in model.summary_protection(print_fn=lambda text: None):
        if entry.owner is None:
            continue
        values = entry.variable.numpy().reshape(-1)
        owners = entry.owner.numpy().reshape(-1)
        for start in range(0, owners.size, _CODED):
            owner = owners[start : start + _CODED]
            begin = time.perf_counter()
            code = entropy_coding.encode(owner, letters)
            middle = time.perf_counter()
            entropy_coding.decode(code, owner.size, letters)
            encoding += middle - begin
            decoding += time.perf_counter() - middle
            owned = values[start : start + _CODED][owner > 0]
            content = memoryview(owned.view(np.uint8))
            begin = time.perf_counter()
            planes = byte_planes.encode(content, owned.itemsize)
            middle = time.perf_counter()
            file = io.BytesIO(b"".join(planes))
            between = time.perf_counter()
            planes = byte_planes.read(file.read, owned.size, owned.itemsize)
            byte_planes.decode(planes, owned.size)
            encoding += middle - begin
            decoding += time.perf_counter() - between
    return encoding, decoding


def _take(path: pathlib.Path) -> int:
    """Returns the size of a file, and removes it."""
    size = path.stat().st_size
    path.unlink()
    return size


def _deflated(path: pathlib.Path) -> int:
    """Returns how large a file is when it is zipped."""
    packer = zlib.compressobj()
    size = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            size += len(packer.compress(piece))
    return size + len(packer.flush())


def main() -> None:
    """Measures the networks one by one."""
    names = choices.choose("networks", NETWORKS, ["mobilenetv2"])
    sparsities = choices.unless_quick("last", ["0"])
    cells = [
        {"network": name, "last": _fraction(text)}
        for name in names
        for text in sparsities
    ]
    with tempfile.TemporaryDirectory(dir=FLAGS.folder) as folder:
        rows = measuring.measure_all(
            cells, lambda cell: measure(cell, pathlib.Path(folder))
        )
    print(to_text(rows))
    results.finish(rows, {})


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < 1.0:
        raise choices.FlagError(
            f"--last takes fractions in [0, 1). Received: {text!r}"
        )
    return value


if __name__ == "__main__":
    app.run(measuring.program(main))
