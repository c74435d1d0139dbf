"""Pack files and deltas that were damaged, by chance or on purpose."""

import copy
import functools
import pathlib
import random
import tempfile
import warnings

import keras
import pytest
from damaged_calls import edit_calls
from helpers import all_values
from helpers import assert_same_values
from hypothesis import HealthCheck
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from pack_files import describe
from pack_files import put_together
from pack_files import take_apart
from pack_files import with_description

import packnet_tf
from packnet_tf.errors import FileError
from packnet_tf.errors import FingerprintError

L = keras.layers
REFUSALS = (FileError, FingerprintError)


@functools.cache
def files():
    """Returns a base, a pack of two tasks and the second's delta, as bytes."""
    network = keras.Sequential(
        [
            keras.Input((3,), name="x"),
            L.Dense(5, name="dense"),
            L.BatchNormalization(name="norm"),
            L.Dropout(0.1, name="dropout"),
            L.Dense(2, name="top"),
        ],
        name="network",
    )
    model = packnet_tf.wrap(network, task="one", biases="per_task")
    model.prune(0.5)
    model.freeze_task()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        packnet_tf.save_pack(model, folder / "base")
        model.add_task("two", units=2)
        kernel = model.backbone.get_layer("dense").layer.kernel
        kernel.assign(kernel + (model._packed()[0].owner.numpy() == 2) * 0.5)
        model.prune(0.5)
        model.freeze_task()
        packnet_tf.save_pack(model, folder / "pack")
        packnet_tf.save_task(model, "two", folder / "delta")
        return {
            name: (folder / name).read_bytes()
            for name in ("base", "pack", "delta")
        }


class Loader:
    """Loads files of a kind, and says what each must be."""

    def __init__(self, kind, folder):
        self.kind = kind
        self.path = folder / "file"
        self.base = folder / "base"
        self.base.write_bytes(files()["base"])
        self.device = None
        self.whole = self.load(files()[kind])

    def load(self, content):
        self.path.write_bytes(content)
        if self.kind == "pack":
            return packnet_tf.load_pack(self.path)
        device = self.device or packnet_tf.load_pack(self.base)
        self.device = None
        before = all_values(device)
        try:
            packnet_tf.load_task(device, self.path)
        except REFUSALS:
            assert device.task_names == ["one"]
            assert_same_values(before, all_values(device))
            device.verify()
            self.device = device
            raise
        return device

    def refuses(self, content):
        with pytest.raises(FileError, match="Received: "):
            self.load(content)

    def refuses_or_verifies(self, content):
        """Returns the model, or `None` if it is refused."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The values in the pack file")
            try:
                model = self.load(content)
            except REFUSALS:
                return None
        model.verify()
        return model


KINDS = ("pack", "delta")


@pytest.fixture(params=KINDS)
def loader(request, tmp_path):
    return Loader(request.param, tmp_path)


def run(test, strategy, examples):
    """Calls a test with what a strategy draws."""
    settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )(given(strategy)(test))()


def paths_into(config, path=()):
    """Yields where each value of a nested structure is."""
    if path:
        yield path
    items = ()
    if isinstance(config, dict):
        items = config.items()
    elif isinstance(config, list):
        items = enumerate(config)
    for key, value in items:
        yield from paths_into(value, (*path, key))


WEIRD = (
    None,
    True,
    -1,
    0,
    1,
    2,
    3,
    255,
    256,
    2**31,
    2**40,
    2**63,
    10**30,
    -(2**60),
    0.5,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "one",
    "two",
    "float64",
    "__lambda__",
    "../../x",
    "\0",
    "Dense",
    "Lambda",
    "os",
    [],
    {},
    [[]],
    [1, 2],
    [2**40, 2**40],
    {"class_name": "Lambda", "config": {}, "module": "keras.layers"},
)

truncations = st.integers(0, 10**6)
flips = st.lists(st.integers(0, 10**9), min_size=1, max_size=3)
structures = st.lists(
    st.tuples(
        st.sampled_from(["swap", "drop", "double", "kind", "edit", "cut"]),
        st.integers(0, 10**6),
        st.integers(0, 10**6),
    ),
    min_size=1,
    max_size=2,
)
edits = st.lists(
    st.tuples(
        st.integers(0, 10**6),
        st.sampled_from(["set", "drop", "copy"]),
        st.integers(0, 10**6),
    ),
    min_size=1,
    max_size=2,
)


def check_truncations(loader, examples):
    content = files()[loader.kind]

    def check(size):
        loader.refuses(content[: size % len(content)])

    run(check, truncations, examples)


def check_flips(loader, examples):
    content = files()[loader.kind]

    def check(places):
        flipped = bytearray(content)
        for place in {place % (8 * len(content)) for place in places}:
            flipped[place // 8] ^= 1 << place % 8
        loader.refuses(bytes(flipped))

    run(check, flips, examples)


def check_structures(loader, examples):
    """Changes sections; their checksums are right."""
    kind, whole = take_apart(files()[loader.kind])

    def check(changes):
        sections = list(whole)
        for change, one, other in changes:
            one %= len(sections)
            what, part = sections[one]
            if change == "swap":
                other %= len(sections)
                sections[one], sections[other] = sections[other], sections[one]
            elif change == "drop":
                del sections[one]
            elif change == "double":
                sections.insert(one, sections[other % len(sections)])
            elif change == "kind":
                sections[one] = (other % 5, part)
            elif change == "cut":
                sections[one] = (what, part[: other % (len(part) + 1)])
            elif part:
                place = other % len(part)
                byte = bytes([(part[place] + 1 + other // 7 % 255) % 256])
                part = part[:place] + byte + part[place + 1 :]
                sections[one] = (what, part)
            if not sections:
                break
        content = put_together(kind, sections)
        if loader.refuses_or_verifies(content) is not None:
            # Nothing but what no frozen task depends on: steps, seeds.
            changed = [
                number
                for number, (one, other) in enumerate(zip(sections, whole))
                if one != other
            ]
            assert len(sections) == len(whole)
            free = free_sections(loader)
            assert set(changed) <= free | {0}, changed

    run(check, structures, examples)


def free_sections(loader):
    """Returns which sections no fingerprint covers."""
    if loader.kind == "delta":
        return set()
    free, place = set(), 1
    for part in loader.whole._parts():
        place += part.owner is not None
        if part.exact or part.key.endswith("seed_generator_state"):
            free.add(place)
        place += 1
    return free


def check_edits(loader, examples):
    """Changes the description; the checksums are right."""
    content = files()[loader.kind]
    whole = describe(content)
    places = list(paths_into(whole))

    def check(changes):
        description = copy.deepcopy(whole)
        for place, change, other in changes:
            *way, last = places[place % len(places)]
            inner = description
            try:
                for key in way:
                    inner = inner[key]
                if change == "set":
                    inner[last] = WEIRD[other % len(WEIRD)]
                elif change == "drop":
                    del inner[last]
                else:
                    found = description
                    for key in places[other % len(places)]:
                        found = found[key]
                    inner[last] = copy.deepcopy(found)
            except (IndexError, KeyError, TypeError):
                continue  # The change before has removed it.
        loader.refuses_or_verifies(with_description(content, description))

    run(check, edits, examples)


def check_calls(loader, examples):
    """Changes which layer is called on what; the checksums are right."""
    content = files()[loader.kind]
    whole = describe(content)

    def check(seed):
        description = copy.deepcopy(whole)
        edit_calls(description, random.Random(seed))
        loader.refuses_or_verifies(with_description(content, description))

    run(check, st.integers(0, 2**64), examples)


CHECKS = {
    "truncations": (check_truncations, 100, 2000),
    "flips": (check_flips, 100, 2000),
    "structures": (check_structures, 60, 1500),
    "edits": (check_edits, 60, 2500),
    "calls": (check_calls, 15, 1000),
}


@pytest.mark.parametrize("name", CHECKS)
def test_damaged_files_are_refused_or_verify(name, loader):
    check, examples, _ = CHECKS[name]
    check(loader, examples)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_thousands_of_damaged_files(name, loader):
    check, _, examples = CHECKS[name]
    check(loader, examples)
