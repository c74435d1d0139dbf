"""Every layer class through the whole life of a packed model."""

import pathlib
import re

import keras
import numpy as np
import pytest
from layer_networks import CASES
from layer_networks import batch
from layer_networks import build

import packnet_tf
from packnet_tf import inventory
from packnet_tf import registry
from packnet_tf.errors import FingerprintError

OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.05, momentum=0.9, weight_decay=0.01),
    "adamw": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.01),
}


@pytest.fixture
def policy(request):
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy("float32")


def outputs(model, x):
    """Returns the outputs of all tasks, as bytes."""
    return {
        name: keras.ops.convert_to_numpy(model(x, task=name)).tobytes()
        for name in model.task_names
    }


class Life:
    """Leads a model from task to task and checks the older ones."""

    def __init__(self, model, x, y, optimizer, eager):
        self.eager = eager
        self.model = model
        self.x = x
        self.y = y
        self.optimizer = optimizer
        self.frozen = {}

    def check(self):
        now = outputs(self.model, self.x)
        for name, value in self.frozen.items():
            assert now[name] == value, f"task {name} changed"

    def fit(self):
        self.model.fit(
            self.x,
            self.y,
            batch_size=3,
            epochs=1,
            verbose=0,
        )
        self.check()

    def learn(self, name, diverge=False):
        self.model.add_task(name, units=3)
        self.model.compile(
            OPTIMIZERS[self.optimizer](),
            "sparse_categorical_crossentropy",
            run_eagerly=self.eager,
        )
        self.check()
        self.fit()
        self.model.prune(0.5)
        self.check()
        self.fit()
        if diverge:
            self.diverge()
            self.fit()
        self.model.freeze_task()
        self.check()
        self.frozen[name] = outputs(self.model, self.x)[name]

    def reload(self, path):
        self.model.save(path)
        self.model = packnet_tf.load_model(path)
        self.check()

    def diverge(self):
        """Breaks all that the newest task may change."""
        for entry in self.model.summary_protection(print_fn=len):
            if entry.owner is not None:
                newest = entry.owner.numpy() == len(self.model.task_names)
                broken = np.where(newest, np.nan, entry.variable.numpy())
                entry.variable.assign(broken)
            elif entry.protection == inventory.PER_TASK:
                entry.variable.assign(entry.variable.numpy() * np.inf)
        self.check()

    def damage(self):
        """Flips the lowest bit of one weight of the first task."""
        entry = next(
            entry
            for entry in self.model.summary_protection(print_fn=len)
            if entry.owner is not None and (entry.owner.numpy() == 1).any()
        )
        values = entry.variable.numpy()
        index = np.flatnonzero(entry.owner.numpy() == 1)[0]
        values.view(f"u{values.itemsize}").reshape(-1)[index] ^= 1
        entry.variable.assign(values)
        with pytest.raises(FingerprintError, match="first"):
            self.model.verify()


def run_life(name, optimizer, path, eager, **options):
    network = build(name)
    x, y = batch(name)
    model = packnet_tf.wrap(network, head=None, **options)
    np.testing.assert_array_equal(network(x), model(x))
    life = Life(model, x, y, optimizer, eager)
    life.learn("first")
    life.learn("second")
    life.learn("third", diverge=True)
    life.model.verify()
    life.reload(path / "model.keras")
    life.damage()
    return life


# The slow suite has all: of every third network other optimizers and floats
# than of the rest, of some of these graphs and what tasks have of their own.
SOME = list(CASES)[::3]
FEW = ("Dense", "DepthwiseConv2D", "GroupNormalization", "LSTM")
PAIRS = [
    (name, optimizer, policy)
    for name in CASES
    for optimizer in ("adamw", "sgd")
    for policy in ("float32", "mixed_bfloat16")
]


def by_default(name, optimizer, policy):
    if name in SOME:
        return optimizer == "adamw" and (
            policy == "mixed_bfloat16" or name in FEW
        )
    return optimizer == "sgd" and policy == "float32"


@pytest.mark.parametrize(
    ("name", "optimizer", "policy"),
    [
        pair
        if by_default(*pair)
        else pytest.param(*pair, marks=pytest.mark.slow)
        for pair in PAIRS
    ],
    indirect=["policy"],
)
def test_older_tasks_never_change(name, optimizer, policy, tmp_path):
    # One pair trains in graphs, which are slow to trace.
    in_graphs = optimizer == "adamw" and policy == "float32"
    run_life(name, optimizer, tmp_path, eager=not in_graphs)


@pytest.mark.parametrize(
    "name",
    [
        name if name in FEW else pytest.param(name, marks=pytest.mark.slow)
        for name in CASES
    ],
)
def test_older_tasks_never_change_with_own_biases_and_normalization(
    name, tmp_path
):
    own = {"biases": "per_task", "normalization": "per_task"}
    run_life(name, "adamw", tmp_path, eager=True, **own)


WITHOUT_WEIGHTS = frozenset(
    """
    Activation ActivityRegularization AdaptiveAveragePooling1D
    AdaptiveAveragePooling2D AdaptiveAveragePooling3D AdaptiveMaxPooling1D
    AdaptiveMaxPooling2D AdaptiveMaxPooling3D Add AlphaDropout AugMix
    AutoContrast Average AveragePooling1D AveragePooling2D AveragePooling3D
    CategoryEncoding CenterCrop Concatenate
    ContrastLimitedAdaptiveHistogramEqualization Cropping1D Cropping2D
    Cropping3D CutMix Dot Dropout ELU Equalization Flatten GaussianDropout
    GaussianNoise GlobalAveragePooling1D GlobalAveragePooling2D
    GlobalAveragePooling3D GlobalMaxPooling1D GlobalMaxPooling2D
    GlobalMaxPooling3D HashedCrossing Hashing Identity InputLayer LeakyReLU
    Masking MaxNumBoundingBoxes MaxPooling1D MaxPooling2D MaxPooling3D
    Maximum Minimum MixUp Multiply Permute RandAugment RandomBrightness
    RandomColorDegeneration RandomColorJitter RandomContrast RandomCrop
    RandomElasticTransform RandomErasing RandomFlip RandomGaussianBlur
    RandomGrayscale RandomHue RandomInvert RandomPerspective
    RandomPosterization RandomRotation RandomSaturation RandomSharpness
    RandomShear RandomTranslation RandomZoom ReLU RepeatVector Rescaling
    Reshape Resizing Softmax Solarization SpatialDropout1D SpatialDropout2D
    SpatialDropout3D Subtract UpSampling1D UpSampling2D UpSampling3D
    ZeroPadding1D ZeroPadding2D ZeroPadding3D
    """.split()
)
CONSTANT = {"Discretization", "MelSpectrogram", "STFTSpectrogram"}
REFUSED = {
    "FlaxLayer": "weights of another backend",
    "IntegerLookup": "when its vocabulary was adapted",
    "JaxLayer": "weights of another backend",
    "StringLookup": "when its vocabulary was adapted",
    "TextVectorization": "when its vocabulary was adapted",
    "TorchModuleWrapper": "weights of another backend",
}
NO_LAYER_ITSELF = {
    "Lambda": "a function; what it computes with is found by tracing",
    "Layer": "the base class; the default rule, see planning_test.py",
    "Pipeline": "of other layers",
    "TFSMLayer": "a SavedModel; its variables are found by tracing",
    "Wrapper": "a base class",
}


def test_every_public_layer_is_in_the_matrix():
    # An alias has the name of another class, so only real names count.
    public = {
        value.__name__
        for value in vars(keras.layers).values()
        if isinstance(value, type) and issubclass(value, keras.layers.Layer)
    }
    inside = set()
    for name in CASES:
        for layer in build(name)._flatten_layers():
            inside.add(type(layer).__name__)
    excused = WITHOUT_WEIGHTS | CONSTANT | set(REFUSED) | set(NO_LAYER_ITSELF)
    assert not public - inside - excused, "layers that nothing tests"


@pytest.mark.parametrize("name", CASES)
def test_packed_weights_are_those_named(name):
    model = packnet_tf.wrap(build(name), head=None)
    entries = model.summary_protection(print_fn=len)
    keys = [entry.key for entry in entries if entry.owner is not None]
    expected = CASES[name].packed
    assert len(keys) == len(expected), keys
    for suffix in expected:
        assert any(f"/{key}".endswith(f"/{suffix}") for key in keys), keys
    assert all(entry.reason for entry in entries)


def documented_rows():
    """Returns the documented table: layer names, and what is packed of them."""
    path = pathlib.Path(__file__).parents[2] / "docs" / "layers.md"
    table = path.read_text("utf-8").split("\n\n")[1]
    for row in table.splitlines()[2:]:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        names = re.findall(r"\b[A-Z]\w+", cells[0])
        yield {name for name in names if hasattr(keras.layers, name)}, cells


def test_the_documentation_lists_what_is_packed():
    listed = {}
    for names, cells in documented_rows():
        for name in names:
            listed[name] = cells
    for name in CASES:
        for layer in build(name)._flatten_layers(include_self=False):
            kind = type(layer).__name__
            parts = registry.classify(layer)
            if not parts or kind not in dir(keras.layers):
                continue
            assert kind in listed, f"docs/layers.md says nothing of {kind}"
            packed, biases, normalization = listed[kind][1:]
            for part in parts:
                if part.kind is registry.Kind.SEED:
                    continue
                cell = {
                    registry.Kind.WEIGHT: packed,
                    registry.Kind.BIAS: biases,
                    registry.Kind.NORMALIZATION: normalization,
                    registry.Kind.STATE: biases,
                }[part.kind]
                last = part.name.split("/")[-1]
                assert (
                    last in cell
                    or cell.startswith(("everything", "as their parts"))
                    or (part.kind is registry.Kind.STATE and "any case" in cell)
                ), (kind, part.name)
