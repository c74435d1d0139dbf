"""The flags of the experiment, and what they mean together."""

import hashlib
import math
import pathlib
import warnings
from typing import Any

from absl import flags
from absl import logging
from loading import datasets
from methods import keeping
from methods import networks
from methods import packing
from program import flags_data
from program import flags_network
from program import flags_packing
from program import flags_run
from program import flags_training
from program import image_options
from program.flags_run import METHODS

import packnet_tf
from packnet_tf import criteria
from packnet_tf import selection
from packnet_tf import sequence
from packnet_tf import sharing
from packnet_tf.errors import ArgumentError

FLAGS = flags.FLAGS

# What says where things are, or what to do; the rest says what a run is.
_NOT_CONFIG = (
    "cache_dir",
    "data_dir",
    "download",
    "dry_run",
    "methods",
    "orders",
    "overwrite",
    "run_dir",
    "seeds",
    "tfds_dir",
)

_HASHED_BYTES = 1 << 20  # At once.
_ALIASES = ("model",)  # Second names of other flags.

for _module in (
    flags_data,
    flags_network,
    flags_training,
    flags_packing,
    flags_run,
):
    flags.adopt_module_key_flags(_module)

# Bounds alone let `nan` pass.
for _flag in FLAGS.get_key_flags_for_module(__name__):
    if isinstance(_flag.parser, flags.FloatParser):
        flags.register_validator(
            _flag.name,
            lambda value: value is None or math.isfinite(value),
            f"--{_flag.name} takes a finite number",
        )


def config() -> dict[str, Any]:
    """Returns the flags that say what a run is, by name."""
    return {
        name: value
        for name, value in all_flags().items()
        if name not in _NOT_CONFIG
    }


def fingerprints_of_files() -> dict[str, str]:
    """Returns the SHA-256 of each file of weights, by the flag that names it.

    Of those that are there: what is missing is told when it is needed.

    Raises:
        OSError: If one cannot be read.
    """
    named = {}
    if FLAGS.network.endswith(".keras"):
        named["--network"] = pathlib.Path(FLAGS.network)
    if FLAGS.weights not in ("none", "imagenet"):
        named["--weights"] = pathlib.Path(FLAGS.weights)
    return {
        flag: _fingerprint(path)
        for flag, path in named.items()
        if path.is_file()
    }


def _fingerprint(path: pathlib.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASHED_BYTES):
            digest.update(block)
    return digest.hexdigest()


def all_flags() -> dict[str, Any]:
    """Returns all flags of the experiment by name."""
    own = FLAGS.get_key_flags_for_module(__name__)
    return {flag.name: flag.value for flag in own if flag.name not in _ALIASES}


def methods() -> list[str]:
    """Returns the methods to run, in the order of `METHODS`.

    Raises:
        ArgumentError: If there is none, or one that is not known.
    """
    unknown = set(FLAGS.methods) - set(METHODS)
    if unknown or not FLAGS.methods:
        raise ArgumentError(
            f"--methods names one or more of {', '.join(METHODS)}. "
            f"Received: {','.join(FLAGS.methods)!r}"
        )
    if FLAGS.strategy == "multi_worker":
        if FLAGS["methods"].present and FLAGS.methods != ["packnet"]:
            raise ArgumentError(
                "--strategy=multi_worker trains the packed network alone. Set "
                "--methods=packnet, or take another --strategy. "
                f"Received: --methods={','.join(FLAGS.methods)}"
            )
        return ["packnet"]
    return [name for name in METHODS if name in FLAGS.methods]


def network(channels: int) -> networks.Network:
    """Returns the network that the flags describe.

    Args:
        channels: 3 for RGB, 1 for gray.

    Raises:
        ArgumentError: If there is none like it.
    """
    train = FLAGS.train_normalization
    if train == "auto":
        pretrained = FLAGS.weights != "none" or FLAGS.network.endswith(".keras")
        its_own = FLAGS.normalization == "per_task"
        train = "true" if not pretrained else "affine" if its_own else "false"
    found = networks.get(
        FLAGS.network,
        image_options.size(),
        channels,
        FLAGS.width,
        FLAGS.weights,
        train,
    )
    if found.channels not in (None, channels):
        raise ArgumentError(
            f"{FLAGS.network} takes images of {found.channels} channels. "
            f"Received: --channels={FLAGS.channels}"
        )
    if FLAGS.keep and found.build_whole is None:
        raise ArgumentError(
            "--keep takes a network that comes with a classifier: one of "
            "keras.applications with --weights, or a .keras file. "
            f"Received: --network={FLAGS.network}, --weights={FLAGS.weights}"
        )
    return found


def check_tasks(channels: int) -> None:
    """Checks what can be told of the tasks before their data is read.

    Args:
        channels: 3 for RGB, 1 for gray.

    Raises:
        ArgumentError: If flags contradict each other.
        DataError: If data is unknown or missing.
    """
    settings = image_options.settings(channels)
    image_options.padding()
    _check_kept_data()
    specs = [datasets.parse(text) for text in FLAGS.tasks]
    unknown = set(FLAGS.boxed) - {spec.name for spec in specs}
    if unknown:
        raise ArgumentError(
            "--boxed names tasks of --tasks. "
            f"Received: {', '.join(sorted(unknown))}, where the tasks are "
            f"{', '.join(spec.name for spec in specs)}"
        )
    if not specs:
        raise ArgumentError(
            "--tasks names one task or more. For the demo on bundled data take "
            "--flagfile=configs/quickstart.cfg. Received: none"
        )
    # Names and numbers are cheap to check; data is not.
    names = [spec.name for spec in specs]
    if FLAGS.keep:
        names = [FLAGS.keep, *names]
    sequence.check([sequence.TaskPlan(name, None, units=2) for name in names])
    sparsities()
    if FLAGS.keep:
        selection.check_fraction(FLAGS.keep_sparsity or 0.0)
    if FLAGS.keep_test:
        datasets.parse_test(FLAGS.keep_test)
    kept = [text for text in (FLAGS.keep_train, FLAGS.keep_test) if text]
    datasets.check([*FLAGS.tasks, *kept], settings)


def check_network(
    network: networks.Network, methods: list[str], channels: int
) -> None:
    """Checks that the network can be had, and packed as the flags say.

    Args:
        network: The network.
        methods: The methods to run.
        channels: 3 for RGB, 1 for gray.

    Raises:
        PackNetError: If it cannot, or if there is no such criterion.
    """
    criteria.get(FLAGS.criterion)
    if FLAGS.keep:
        size = image_options.size()
        keeping.check(network.build_whole(), (size, size, channels))
    trunk = network.build()
    if packing.NAME in methods:
        packnet_tf.wrap(trunk, head=None, **wrapping(network))


def load_tasks(channels: int) -> list[datasets.Dataset]:
    """Loads the data of all tasks, which `check_tasks` has checked.

    Args:
        channels: 3 for RGB, 1 for gray.

    Returns:
        The data, in the order of `--tasks`.

    Raises:
        DataError: If data is missing or malformed.
    """
    loaded = datasets.load_all(FLAGS.tasks, image_options.settings(channels))
    for data in loaded:
        for name in data.skipped:
            logging.warning("left out of %s: %s", data.name, name)
    return loaded


def wrapping(network: networks.Network) -> dict[str, Any]:
    """Returns the arguments for `packnet_tf.wrap`.

    Args:
        network: The network that is packed.
    """
    filters = FLAGS.filters or None
    if filters == "auto":
        filters = None
        if FLAGS.keep:
            dense = keeping.sensitive_layers(network.build_whole())
            filters = (lambda layer: layer.name not in dense) if dense else None
    return {
        "filters": filters,
        "biases": FLAGS.biases,
        "normalization": FLAGS.normalization,
    }


def keep(network: networks.Network, channels: int) -> keeping.Keeping | None:
    """Returns how the network's own classifier is kept, if it is.

    Args:
        network: The network with its classifier.
        channels: 3 for RGB, 1 for gray.

    Raises:
        ArgumentError: If the network has no classifier of as many classes.
        DataError: If data is missing or malformed.
    """
    _check_kept_data()
    if not FLAGS.keep:
        return None
    size, whole = image_options.size(), network.build_whole()
    count = keeping.check(whole, (size, size, channels))
    settings = image_options.settings(channels)
    train = test = None
    if FLAGS.keep_train:
        train = datasets.load(FLAGS.keep_train, settings, classes=count)
    if FLAGS.keep_test:
        test = datasets.load_test(FLAGS.keep_test, settings, classes=count)
    for data in (train, test):
        for name in data.skipped if data is not None else ():
            logging.warning("left out of %s: %s", data.name, name)
    return keeping.Keeping(
        FLAGS.keep,
        keeping.default_sparsity(whole)
        if FLAGS.keep_sparsity is None
        else FLAGS.keep_sparsity,
        FLAGS.keep_epochs,
        FLAGS.keep_learning_rate,
        FLAGS.keep_temperature,
        train,
        test or train,
        count,
    )


def _check_kept_data() -> None:
    given = [f"--{n}" for n in ("keep_train", "keep_test") if FLAGS[n].value]
    if given and not FLAGS.keep:
        raise ArgumentError(
            "--keep gives the kept task its name; without it none is "
            f"kept. Received: {' and '.join(given)} without --keep"
        )


def plan(
    model: packnet_tf.PackNetModel,
    units: dict[str, int] | None = None,
    heads: dict[str, int] | None = None,
    keep: keeping.Keeping | None = None,
) -> packnet_tf.Plan:
    """Plans who will own what, and checks that it is enough.

    Args:
        model: The packed network, before anything is trained.
        units: Number of classes of tasks with a dense head, by name.
        heads: Number of entries in other heads, by name.
        keep: How the network's own classifier is kept, if it is.

    Returns:
        The plan, by the sparsities of the flags.

    Raises:
        ArgumentError: If a task would keep less than a weight per packed
            layer.
    """
    names = [datasets.parse(text).name for text in FLAGS.tasks]
    planned = dict(zip(names, sparsities()))
    if keep is not None:
        planned = {keep.name: keep.sparsity, **planned}
    with warnings.catch_warnings():
        # Of layers so small that not every task can own some of them.
        warnings.simplefilter("ignore", UserWarning)
        found = packnet_tf.plan(
            model,
            list(planned),
            list(planned.values()),
            units=units,
            heads=heads,
        )
    capacity = found.capacity
    for name in planned:
        if capacity.owned[name] < len(capacity.layers):
            flags = "--keep_sparsity or --sparsities"
            raise ArgumentError(
                "Every task keeps a weight per packed layer, or more. Let the "
                f"tasks before it release more by a higher {flags}, let it "
                "release less itself, or take a wider network. Received: "
                f"{capacity.owned[name]:,} of {capacity.total:,} weights for "
                f"{name!r}, in {len(capacity.layers)} packed layers"
            )
    return found


def sparsities() -> list[float]:
    """Returns the sparsity of every task."""
    if FLAGS.sparsities == ["equal"]:
        return sharing.to_sparsities([1.0] * len(FLAGS.tasks))
    if FLAGS.sparsities == ["paper"]:
        return [0.75] * (len(FLAGS.tasks) - 1) + [0.0]
    try:
        found = [float(fraction) for fraction in FLAGS.sparsities]
    except ValueError:
        raise ArgumentError(
            "--sparsities takes numbers in [0, 1), separated by commas, or "
            "the word equal, or paper. "
            f"Received: {','.join(FLAGS.sparsities)}"
        ) from None
    if len(found) == 1:
        found *= len(FLAGS.tasks)
    if len(found) != len(FLAGS.tasks):
        raise ArgumentError(
            "--sparsities takes one number for all tasks or one per task. "
            f"Received: {len(found)} for {len(FLAGS.tasks)} tasks"
        )
    for fraction in found:
        selection.check_fraction(fraction)
    return found
