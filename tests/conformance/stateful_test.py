"""Leads packed models through random moves, legal and not.

Beside each model goes an oracle that knows nothing of it: owner maps in NumPy,
stages, and what each task computed when it was frozen. After every move the
two must agree; a move that is refused must have changed nothing.
"""

import copy
import dataclasses
import hashlib
import json
import pathlib
import tempfile
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck
from hypothesis import Phase
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine
from hypothesis.stateful import initialize
from hypothesis.stateful import invariant
from hypothesis.stateful import precondition
from hypothesis.stateful import rule
from hypothesis.stateful import run_state_machine_as_test

import packnet_tf
from packnet_tf.criteria import Criterion
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import FingerprintError
from packnet_tf.errors import PackNetError
from packnet_tf.errors import StageError
from packnet_tf.errors import TaskError

L = keras.layers
BATCH = 6
MAX_TASKS = 5
NAMES = ("one", "B-2", "x.y", "7", "variables", "serve", "a_b")
FRACTIONS = (0.0, 0.1, 0.25, 0.4, 0.5, 0.65, 0.75, 0.9, 0.99)


def dense_network():
    inputs = keras.Input((4,))
    x = L.Dense(5, "relu", name="wide")(inputs)
    y = L.Dense(1, use_bias=False, name="narrow")(x)
    y = L.Dense(1, name="single")(y)
    x = L.Concatenate(name="both")([x, y])
    return inputs, L.Dense(4, "tanh", name="last")(x)


def convolutional_network():
    inputs = keras.Input((6, 6, 1))
    x = L.Conv2D(3, 3, name="conv")(inputs)
    x = L.BatchNormalization(momentum=0.5, name="norm")(x)
    x = L.ReLU(name="relu")(x)
    x = L.DepthwiseConv2D(2, name="depthwise")(x)
    x = L.Dropout(0.2, name="dropout")(x)
    x = L.Flatten(name="flat")(x)
    return inputs, L.Dense(4, "tanh", name="last")(x)


def network_of_two_inputs():
    inputs = {
        "real": keras.Input((3,), name="real"),
        "token": keras.Input((2,), dtype="int32", name="token"),
    }
    x = L.Dense(3, "relu", name="left")(inputs["real"])
    y = L.Embedding(7, 2, name="table")(inputs["token"])
    y = L.Flatten(name="flat")(y)
    x = L.Concatenate(name="both")([x, y])
    x = L.LayerNormalization(name="norm")(x)
    return inputs, L.Dense(4, "tanh", name="last")(x)


NETWORKS = {
    "dense": dense_network,
    "convolutional": convolutional_network,
    "two_inputs": network_of_two_inputs,
}
OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=0.1),
    "adamw": lambda: keras.optimizers.AdamW(0.05, weight_decay=0.1),
    "ema": lambda: keras.optimizers.Adam(
        0.05, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2
    ),
}


@dataclasses.dataclass
class Known:
    """What the oracle knows of one task."""

    name: str
    units: int
    stage: str = "TRAIN"
    sparsity: float = 0.0
    steps: int = 0
    fingerprint: str | None = None
    outputs: np.ndarray | None = None
    # What graphs and losses gave, by how they were computed.
    seen: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Oracle:
    """What must be true of a model."""

    owners: dict[str, np.ndarray]
    tasks: list[Known] = dataclasses.field(default_factory=list)
    active: str | None = None
    optimizer: str | None = None
    eager: bool = False

    @property
    def newest(self):
        return self.tasks[-1] if self.tasks else None

    @property
    def names(self):
        return [task.name for task in self.tasks]

    @property
    def may_train(self):
        return self.newest is not None and self.newest.stage != "FROZEN"

    @property
    def may_add(self):
        return not self.may_train

    @property
    def pools(self):
        """Counts what the newest task owned of each weight at its start."""
        number = len(self.tasks)
        return {
            key: int(((owner == 0) | (owner == number)).sum())
            for key, owner in self.owners.items()
        }

    def find(self, name):
        (task,) = [task for task in self.tasks if task.name == name]
        return task

    def claim(self, name, units):
        self.tasks.append(Known(name, units))
        self.active = name
        for owner in self.owners.values():
            owner[owner == 0] = len(self.tasks)

    def release(self, fraction, kernels):
        """Releases one by one, in the order that the contract fixes."""
        number = len(self.tasks)
        pools = self.pools
        for key, owner in self.owners.items():
            flat, kernel = owner.reshape(-1), kernels[key].reshape(-1)
            missing = round(fraction * pools[key]) - int((flat == 0).sum())
            ranked = sorted(
                np.flatnonzero(flat == number),
                key=lambda i: (np.isnan(kernel[i]), abs(kernel[i]), i),
            )
            flat[ranked[:missing]] = 0
        self.newest.stage, self.newest.sparsity = "RETRAIN", fraction


@dataclasses.dataclass
class Weights:
    """A weights file, and what was true when it was written."""

    path: pathlib.Path
    oracle: Oracle
    variables: list[np.ndarray]
    optimizer: list[np.ndarray]


def same_bits(one, other):
    """Compares bit for bit; which of the NaNs it is does not matter."""
    one, other = np.asarray(one), np.asarray(other)
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and np.where(np.isnan(one), np.nan, one).tobytes()
        == np.where(np.isnan(other), np.nan, other).tobytes()
    )


def values(variables):
    return [variable.numpy() for variable in variables]


def optimizer_variables(model):
    optimizer = getattr(model, "optimizer", None)
    return optimizer.variables if optimizer is not None else []


def hash_values(model):
    hasher = hashlib.sha256()
    for value in values([*model.variables, *optimizer_variables(model)]):
        hasher.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
    return hasher.hexdigest()


def hash_state(model):
    """Hashes all that a refused call must leave as it was."""
    state = (
        hash_values(model),
        model.get_config(),
        model.task_names,
        model.task,
        str(model.stage),
        sorted(model.heads),
        [variable.trainable for variable in model.variables],
        [id(variable) for variable in optimizer_variables(model)],
        [id(getattr(model, "optimizer", None)), id(model.recipe)],
        [id(getattr(model, "_compile_loss", None))],
        [id(getattr(model, "_compile_metrics", None))],
        [model.compiled, model.run_eagerly, model.get_compile_config()],
    )
    return hashlib.sha256(json.dumps(state, default=repr).encode()).hexdigest()


class FailsLate(Criterion):
    """Scores the first weight and fails at the second."""

    def __init__(self):
        self.calls = 0

    def score(self, kernel):
        self.calls += 1
        if self.calls > 1:
            return np.abs(kernel).reshape(-1)[:-1]
        return np.abs(kernel)


class NoConfig(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule that cannot be made afresh."""

    def __call__(self, step):
        return 0.1


def never(oracle):
    return not oracle.tasks


def always(oracle):
    return True


def frozen(oracle):
    return bool(oracle.tasks) and not oracle.may_train


def stuck(oracle):
    """No task that could train or be pruned."""
    return not oracle.may_train


def old_is_active(oracle):
    return oracle.may_train and oracle.active != oracle.newest.name


def has_room(oracle):
    return oracle.may_train and any(oracle.pools.values())


def without_room(oracle):
    return oracle.may_train and not any(oracle.pools.values())


def is_pruned(oracle):
    return has_room(oracle) and oracle.newest.sparsity > 0.0


def has_old(oracle):
    return len(oracle.tasks) > 1


def illegal_moves():
    """Yields name, when it is illegal, the call, and the error's class."""
    yield "fit_stuck", stuck, lambda m: m.model.fit(m.x, m.y(2)), StageError
    yield (
        "train_on_batch_stuck",
        stuck,
        lambda m: m.model.train_on_batch(m.x, m.y(2)),
        StageError,
    )
    yield (
        "fit_old",
        old_is_active,
        lambda m: m.model.fit(m.x, m.y(2)),
        StageError,
    )
    yield (
        "train_on_batch_old",
        old_is_active,
        lambda m: m.model.train_on_batch(m.x, m.y(2)),
        StageError,
    )
    yield (
        "call_old_as_in_training",
        has_old,
        lambda m: m.model(m.x, training=True, task=m.oracle.names[0]),
        StageError,
    )
    yield (
        "apply_gradients_stuck",
        stuck,
        lambda m: m.model.apply_gradients([]),
        StageError,
    )
    yield (
        "apply_gradients_to_an_owner_map",
        lambda o: o.may_train and o.optimizer is not None,
        lambda m: m.model.apply_gradients(
            [(tf.zeros(e.owner.shape), e.owner) for e in m.packed()]
        ),
        ArgumentError,
    )
    yield "prune_stuck", stuck, lambda m: m.model.prune(0.5), StageError
    yield (
        "prune_without_room",
        without_room,
        lambda m: m.model.prune(0.5),
        StageError,
    )
    yield (
        "prune_to_less",
        is_pruned,
        lambda m: m.model.prune(
            float(np.nextafter(m.oracle.newest.sparsity, 0.0))
        ),
        StageError,
    )
    for bad in (1, 1.0, 1.5, -0.1, 75, float("nan"), True, "0.5", None, [0.5]):
        yield (
            f"prune_{bad!r}",
            lambda o: o.may_train,
            lambda m, bad=bad: m.model.prune(bad),
            ArgumentError,
        )
    for bad in ("size", None, 3, {"class_name": "Size"}):
        yield (
            f"prune_by_{bad!r}",
            lambda o: o.may_train,
            lambda m, bad=bad: m.model.prune(0.99, bad),
            ArgumentError,
        )
    yield (
        "prune_fails_late",
        has_room,
        lambda m: m.model.prune(0.99, FailsLate()),
        ArgumentError,
    )
    yield (
        "add_before_freezing",
        lambda o: o.may_train,
        lambda m: m.model.add_task("new", units=2),
        StageError,
    )
    yield (
        "add_twice",
        lambda o: bool(o.tasks),
        lambda m: m.model.add_task(m.oracle.names[0], units=2),
        TaskError,
    )
    for bad in ("", "a/b", "../up", " ", None, 3, "signatures"):
        yield (
            f"add_{bad!r}",
            always,
            lambda m, bad=bad: m.model.add_task(bad, units=2),
            TaskError,
        )
    heads = {
        "no_units": {"units": 0},
        "negative_units": {"units": -1},
        "float_units": {"units": 2.0},
        "bool_units": {"units": True},
        "no_head": {},
        "no_activation": {"units": 2, "activation": "nonsense"},
        "head_of_no_type": {"head": "dense"},
        "head_that_does_not_fit": {"head": L.Conv2D(2, 2)},
        "head_for_more_features": {
            "head": keras.Sequential([keras.Input((9,)), L.Dense(2)])
        },
    }
    for name, arguments in heads.items():
        yield (
            f"add_{name}",
            lambda o: o.may_add,
            lambda m, arguments=arguments: m.model.add_task("new", **arguments),
            ArgumentError,
        )
    yield (
        "add_with_two_heads",
        lambda o: o.may_add,
        lambda m: m.model.add_task("new", units=2, head=L.Dense(2)),
        ArgumentError,
    )
    yield (
        "add_with_a_head_in_use",
        frozen,
        lambda m: m.model.add_task("new", head=m.model.heads[m.oracle.active]),
        ArgumentError,
    )
    yield "freeze_stuck", stuck, lambda m: m.model.freeze_task(), StageError
    unknown = {
        "set_task": lambda m, name: m.model.set_task(name),
        "call": lambda m, name: m.model(m.x, task=name),
        "predict": lambda m, name: m.model.predict(m.x, task=name, verbose=0),
        "predict_on_batch": lambda m, name: m.model.predict_on_batch(
            m.x, task=name
        ),
        "evaluate": lambda m, name: m.model.evaluate(
            m.x, m.y(2), task=name, verbose=0
        ),
        "test_on_batch": lambda m, name: m.model.test_on_batch(
            m.x, m.y(2), task=name
        ),
        "export_task": lambda m, name: m.model.export_task(
            name, m.folder / "no.keras"
        ),
    }
    for name, call in unknown.items():
        for bad in ("nine", "", 1):
            yield (
                f"{name}_{bad!r}",
                always,
                lambda m, call=call, bad=bad: call(m, bad),
                TaskError,
            )
    yield "set_task_none", always, lambda m: m.model.set_task(None), TaskError
    yield (
        "unwrap_unknown",
        lambda o: bool(o.tasks),
        lambda m: m.model.unwrap("nine"),
        TaskError,
    )
    yield "unwrap_none", never, lambda m: m.model.unwrap(), StageError
    yield (
        "export_none",
        never,
        lambda m: m.model.export(m.folder / "no"),
        StageError,
    )
    yield (
        "export_onnx",
        always,
        lambda m: m.model.export(m.folder / "no", format="onnx"),
        ArgumentError,
    )
    yield (
        "export_task_h5",
        lambda o: bool(o.tasks),
        lambda m: m.model.export_task(m.oracle.active, m.folder / "no.h5"),
        ArgumentError,
    )
    yield (
        "save_h5",
        always,
        lambda m: m.model.save(m.folder / "no.h5"),
        ArgumentError,
    )
    yield "quantize", always, lambda m: m.model.quantize("int8"), StageError
    yield (
        "load_no_weights",
        always,
        lambda m: m.model.load_weights(m.folder / "none.weights.h5"),
        FileNotFoundError,
    )
    for name, arguments in {
        "unknown_optimizer": {"optimizer": "nonsense"},
        "bad_metrics": {"optimizer": "sgd", "metrics": 3},
        "bad_weighted_metrics": {"optimizer": "sgd", "weighted_metrics": 3},
    }.items():
        yield (
            f"compile_{name}",
            always,
            lambda m, arguments=arguments: m.model.compile(**arguments),
            ValueError,
        )
    yield (
        "compile_unknown_argument",
        always,
        lambda m: m.model.compile("sgd", nonsense=1),
        TypeError,
    )
    yield (
        "compile_what_cannot_be_made_afresh",
        always,
        lambda m: m.model.compile(keras.optimizers.SGD(NoConfig())),
        ArgumentError,
    )


ILLEGAL = {
    name: (applies, call, error)
    for name, applies, call, error in illegal_moves()
}


class Moves(RuleBasedStateMachine):
    """All moves on one packed model, and what must hold after each."""

    def __init__(self):
        super().__init__()
        keras.utils.set_random_seed(7)
        self._scratch = tempfile.TemporaryDirectory()
        self.folder = pathlib.Path(self._scratch.name)
        self.files = []
        self.weights = []

    def teardown(self):
        self._scratch.cleanup()
        keras.backend.clear_session(free_memory=False)

    # Data.

    def random_x(self, size):
        def draw(x):
            shape = (size, *x.shape[1:])
            if x.dtype == "int32":
                return self.random.integers(0, 7, shape).astype("int32")
            return self.random.normal(size=shape).astype("float32")

        return keras.tree.map_structure(draw, self.model.backbone.input)

    def y(self, units, size=BATCH):
        return np.arange(size) % units

    def packed(self):
        entries = self.model.summary_protection(print_fn=len)
        return [entry for entry in entries if entry.owner is not None]

    def eager(self, name, model=None):
        if model is not None:
            return np.asarray(model(self.x))
        return np.asarray(self.model(self.x, task=name))

    def graph(self, name):
        call = tf.function(lambda x: self.model(x, task=name))
        return call(self.x).numpy()

    def unchanged(self):
        return Unchanged(self)

    # The first state.

    @initialize(
        kind=st.sampled_from(sorted(NETWORKS)),
        units=st.sampled_from([None, 2, 3]),
        optimizer=st.sampled_from([None, *sorted(OPTIMIZERS)]),
    )
    def wrap(self, kind, units, optimizer):
        self.random = np.random.default_rng(len(kind))
        inputs, outputs = NETWORKS[kind]()
        if units:
            outputs = L.Dense(units, "softmax", name="top")(outputs)
        network = keras.Model(inputs, outputs)
        for variable in network.trainable_variables:
            # Few different values, so that many weights tie.
            variable.assign(np.round(variable.numpy(), 1))
        task = {"task": "first"} if units else {"head": None}
        self.model = packnet_tf.wrap(network, **task)
        self.x = self.random_x(BATCH)
        self.oracle = Oracle(
            {
                entry.key: np.zeros(entry.variable.shape, "uint8")
                for entry in self.packed()
            }
        )
        if units:
            self.oracle.claim("first", units)
        if optimizer:
            self.compile(optimizer, True)
        assert same_bits(network(self.x), self.model(self.x))

    # Legal moves.

    @rule(
        optimizer=st.sampled_from(sorted(OPTIMIZERS)),
        eager=st.sampled_from([True, True, True, True, False]),
    )
    def compile(self, optimizer, eager):
        self.model.compile(
            OPTIMIZERS[optimizer](),
            "sparse_categorical_crossentropy",
            metrics=["accuracy"],
            run_eagerly=eager,
        )
        self.oracle.optimizer, self.oracle.eager = optimizer, eager

    @precondition(
        lambda self: (
            self.oracle.may_add and len(self.oracle.tasks) < MAX_TASKS
        )
    )
    @rule(
        data=st.data(),
        units=st.integers(2, 4),
        head=st.sampled_from(["units", "layer", "model"]),
    )
    def add_task(self, data, units, head):
        free = [name for name in NAMES if name not in self.oracle.names]
        name = data.draw(st.sampled_from(free), label="name")
        number = len(self.oracle.tasks) + 1
        last = L.Dense(units, "softmax", name=f"head_{number}_last")
        if head == "units":
            arguments = {"units": units}
        elif head == "layer":
            arguments = {"head": last}
        else:
            hidden = L.Dense(3, "relu", name=f"head_{number}_hidden")
            arguments = {"head": keras.Sequential([hidden, last])}
        before = values(e.variable for e in self.packed())
        self.oracle.claim(name, units)
        if any(self.oracle.pools.values()):
            self.model.add_task(name, **arguments)
        else:
            with pytest.warns(UserWarning, match="owns no weight"):
                self.model.add_task(name, **arguments)
        after = values(e.variable for e in self.packed())
        assert all(map(same_bits, before, after))
        optimizer = getattr(self.model, "optimizer", None)
        assert optimizer is None or int(optimizer.iterations) == 0

    def may_fit(self):
        return (
            self.oracle.may_train
            and self.oracle.optimizer is not None
            and self.oracle.active == self.oracle.newest.name
        )

    @precondition(may_fit)
    @rule(steps=st.integers(1, 3), epochs=st.integers(1, 2))
    def fit(self, steps, epochs):
        size = 4 * steps
        self.model.fit(
            self.random_x(size),
            self.y(self.oracle.newest.units, size),
            batch_size=4,
            epochs=epochs,
            verbose=0,
        )
        self.oracle.newest.steps += steps * epochs

    @precondition(may_fit)
    @rule(fraction=st.sampled_from(FRACTIONS), at=st.integers(0, 2))
    def fit_on_a_schedule(self, fraction, at):
        task = self.oracle.newest
        at += task.steps
        prunes = fraction > task.sparsity and (at > task.steps or at == 0)
        if prunes and not any(self.oracle.pools.values()):
            return
        wanted = {at: fraction} if prunes else {}
        self.model.fit(
            self.random_x(8),
            self.y(task.units, 8),
            batch_size=4,
            verbose=0,
            callbacks=[
                packnet_tf.PruneOnSchedule(
                    lambda step: (int(step) in wanted, wanted.get(int(step), 0))
                )
            ],
        )
        task.steps += 2
        if not prunes:
            return
        # Which weights are lowest is not known from outside; how many is.
        pools = self.oracle.pools
        number = len(self.oracle.tasks)
        for entry in self.packed():
            owner, expected = entry.owner.numpy(), self.oracle.owners[entry.key]
            released = owner == 0
            assert released.sum() == round(fraction * pools[entry.key])
            assert (expected[owner != expected] == number).all()
            assert released[expected == 0].all()
            expected[released] = 0
        task.stage, task.sparsity = "RETRAIN", fraction

    @precondition(may_fit)
    @rule()
    def train_on_batch(self):
        self.model.train_on_batch(
            self.random_x(4), self.y(self.oracle.newest.units, 4)
        )
        self.oracle.newest.steps += 1

    @precondition(lambda self: self.may_fit() and len(self.oracle.tasks) > 1)
    @rule()
    def diverge(self):
        x = keras.tree.map_structure(
            lambda x: x if x.dtype == "int32" else x * np.float32("inf"),
            self.random_x(4),
        )
        self.model.train_on_batch(x, self.y(self.oracle.newest.units, 4))
        self.oracle.newest.steps += 1

    @precondition(lambda self: has_room(self.oracle))
    @rule(
        data=st.data(),
        fraction=st.one_of(
            st.sampled_from(FRACTIONS), st.floats(0, 1, exclude_max=True)
        ),
    )
    def prune(self, data, fraction):
        before = {e.key: e.variable.numpy() for e in self.packed()}
        fraction = max(fraction, self.oracle.newest.sparsity)
        free = sum((o == 0).sum() for o in self.oracle.owners.values())
        self.oracle.release(fraction, before)
        now = sum((o == 0).sum() for o in self.oracle.owners.values())
        assert self.model.prune(fraction) == now - free
        for entry in self.packed():
            released = self.oracle.owners[entry.key] == 0
            expected = np.where(released, np.float32(0), before[entry.key])
            assert same_bits(entry.variable.numpy(), expected)

    @precondition(lambda self: self.oracle.may_train)
    @rule()
    def freeze_task(self):
        task = self.oracle.newest
        before = hash_values_without_optimizer(self.model)
        outputs = self.eager(task.name)
        task.fingerprint = self.model.freeze_task()
        task.stage = "FROZEN"
        task.outputs = outputs
        assert hash_values_without_optimizer(self.model) == before

    @precondition(lambda self: self.oracle.tasks)
    @rule(data=st.data())
    def set_task(self, data):
        name = data.draw(st.sampled_from(self.oracle.names), label="name")
        before = hash_values(self.model)
        self.model.set_task(name)
        self.oracle.active = name
        assert hash_values(self.model) == before

    @rule()
    def make_trainable_by_hand(self):
        before = hash_values(self.model)
        self.model.trainable = True
        assert hash_values(self.model) == before

    def compare(self, task, how, value):
        """Compares with what the same call gave when the task was frozen."""
        if task.stage == "FROZEN":
            seen = task.seen.setdefault(how, value)
            assert all(map(same_bits, seen, value)), how

    @precondition(lambda self: self.oracle.tasks)
    @rule(data=st.data())
    def predict_and_evaluate(self, data):
        name = data.draw(st.sampled_from(self.oracle.names), label="name")
        task = self.oracle.find(name)
        with self.unchanged():
            predicted = self.model.predict(self.x, verbose=0, task=name)
            at_once = self.model.predict_on_batch(self.x, task=name)
        assert same_bits(predicted, at_once)
        compiled, eager = self.oracle.optimizer, self.oracle.eager
        if compiled and eager:
            assert same_bits(predicted, self.eager(name))
        how = "eager" if compiled and eager else "graph"
        self.compare(task, f"predict {how}", [predicted])
        if name == self.oracle.active:
            assert same_bits(predicted, self.model.predict(self.x, verbose=0))
        if compiled:
            y = self.y(task.units)
            with self.unchanged():
                results = self.model.evaluate(self.x, y, verbose=0, task=name)
                self.model.test_on_batch(self.x, y, task=name)
            self.compare(task, f"evaluate {how}", np.float64(results))

    @rule(verified=st.booleans(), zipped=st.booleans())
    def save_and_load(self, verified, zipped):
        path = self.folder / f"{len(self.files)}.keras"
        before = copy.deepcopy(self.oracle)
        with self.unchanged():
            self.model.save(path, zipped=zipped or None)
        old = self.model
        self.model = self.load(path, verified)
        assert hash_values(old) == hash_values(self.model)
        assert json.dumps(old.get_config(), default=list) == json.dumps(
            self.model.get_config(), default=list
        )
        self.files.append((path, before))

    def load(self, path, verified):
        load = packnet_tf.load_model if verified else keras.saving.load_model
        return load(path)

    @precondition(lambda self: self.files)
    @rule(data=st.data(), verified=st.booleans())
    def go_back_to_a_file(self, data, verified):
        path, oracle = data.draw(st.sampled_from(self.files), label="file")
        self.model = self.load(path, verified)
        self.oracle = copy.deepcopy(oracle)

    @rule()
    def save_weights(self):
        path = self.folder / f"{len(self.weights)}.weights.h5"
        with self.unchanged():
            self.model.save_weights(path)
        self.weights.append(
            Weights(
                path,
                copy.deepcopy(self.oracle),
                values(self.model.variables),
                values(optimizer_variables(self.model)),
            )
        )

    @precondition(lambda self: self.weights)
    @rule(data=st.data())
    def load_weights(self, data):
        weights = data.draw(st.sampled_from(self.weights), label="weights")
        error = self.refusal(weights)
        with warnings.catch_warnings():
            # Keras tells of an optimizer that the file does not fit.
            warnings.simplefilter("ignore", UserWarning)
            if error is not None:
                self.refuse(
                    lambda self: self.model.load_weights(weights.path), error
                )
                return
            self.model.load_weights(weights.path)
        now = values(self.model.variables)
        assert all(map(same_bits, weights.variables, now))
        then = weights.oracle
        self.oracle.owners = copy.deepcopy(then.owners)
        if then.tasks:
            self.oracle.newest.steps = then.newest.steps
        if self.oracle.may_train:
            self.oracle.newest.sparsity = then.newest.sparsity
            pruned = float(self.model.pruned.numpy())
            self.oracle.newest.stage = "TRAIN" if pruned < 0 else "RETRAIN"

    def refusal(self, weights):
        """Tells with which error a weights file is to be refused."""
        then = weights.oracle
        now = self.model.variables
        shapes = [tuple(variable.shape) for variable in now]
        if [value.shape for value in weights.variables] != shapes:
            few = len(then.tasks) > len(self.oracle.tasks) and (
                shapes == [v.shape for v in weights.variables[: len(shapes)]]
            )
            return StageError if few else (ArgumentError, StageError)
        for task, old in zip(self.oracle.tasks, then.tasks):
            if task.stage != "FROZEN":
                continue
            # Fingerprints cover what came before; another past shows here.
            if old.fingerprint is not None:
                if old.fingerprint != task.fingerprint:
                    return FingerprintError
            elif not all(map(same_bits, weights.variables, values(now))):
                return (FingerprintError, None)
        return None

    @precondition(lambda self: self.oracle.tasks)
    @rule(data=st.data(), how=st.sampled_from(["unwrap", "keras", "folder"]))
    def export_task(self, data, how):
        name = data.draw(st.sampled_from(self.oracle.names), label="name")
        with self.unchanged():
            if how == "unwrap":
                plain = self.model.unwrap(name)
            elif how == "keras":
                path = self.folder / "task.keras"
                self.model.export_task(name, path)
                plain = keras.saving.load_model(path)
            else:
                self.model.export_task(name, self.folder / "task")
        if how == "folder":
            loaded = tf.saved_model.load(str(self.folder / "task"))
            assert same_bits(loaded.serve(self.x), self.graph(name))
            return
        assert "packnet_tf" not in json.dumps(plain.get_config(), default=repr)
        assert same_bits(self.eager(name, plain), self.eager(name))

    @precondition(lambda self: self.oracle.tasks)
    @rule()
    def export(self):
        with self.unchanged():
            self.model.export(self.folder / "all")
        loaded = tf.saved_model.load(str(self.folder / "all"))
        names = {*self.oracle.names, "serving_default"}
        assert set(loaded.signatures) == names
        for name in names:
            serve = loaded.signatures[name]
            (outputs,) = serve(**self.as_keywords(serve)).values()
            task = self.oracle.active if name == "serving_default" else name
            assert same_bits(outputs, self.graph(task))

    def as_keywords(self, serve):
        keywords = serve.structured_input_signature[1]
        if isinstance(self.x, dict):
            return {name: tf.constant(self.x[name]) for name in keywords}
        (name,) = keywords
        return {name: tf.constant(self.x)}

    # Illegal moves.

    @rule(data=st.data())
    def be_refused(self, data):
        illegal = [
            name
            for name, (applies, _, _) in ILLEGAL.items()
            if applies(self.oracle)
        ]
        name = data.draw(st.sampled_from(illegal), label="illegal")
        _, call, error = ILLEGAL[name]
        self.refuse(call, error)

    def refuse(self, call, error):
        kinds = error if isinstance(error, tuple) else (error,)
        with self.unchanged():
            try:
                call(self)
            except Exception as caught:
                assert type(caught) in kinds, repr(caught)
                if isinstance(caught, PackNetError):
                    assert "Received: " in str(caught)
            else:
                assert None in kinds, "not refused"

    # What is true after each move.

    @invariant()
    def agrees(self):
        oracle, model = self.oracle, self.model
        assert model.task_names == oracle.names
        assert model.task == oracle.active
        if oracle.tasks:
            assert model.stage.value == oracle.newest.stage
            assert model.sparsity == oracle.newest.sparsity
            assert int(model.steps) == oracle.newest.steps
        else:
            assert model.stage is None
        for entry in self.packed():
            owner = oracle.owners[entry.key]
            assert same_bits(entry.owner.numpy(), owner), entry.key
            if oracle.tasks:
                assert (entry.variable.numpy()[owner == 0] == 0).all()
        report = model.summary_capacity(print_fn=len)
        owners = np.concatenate([o.reshape(-1) for o in oracle.owners.values()])
        counts = np.bincount(owners, minlength=len(oracle.tasks) + 1).tolist()
        assert report.free == counts[0]
        assert list(report.owned.values()) == counts[1:]

    @invariant()
    def frozen_tasks_are_what_they_were(self):
        expected = {
            task.name: task.fingerprint
            for task in self.oracle.tasks
            if task.fingerprint
        }
        assert self.model.verify() == expected
        for name in expected:
            outputs = self.oracle.find(name).outputs
            assert same_bits(self.eager(name), outputs), name


def hash_values_without_optimizer(model):
    return [value.tobytes() for value in values(model.variables)]


class Unchanged:
    """Checks that the model is after a block what it was before it."""

    def __init__(self, moves):
        self.moves = moves

    def __enter__(self):
        self.before = hash_state(self.moves.model)

    def __exit__(self, kind, *rest):
        if kind is None:
            assert hash_state(self.moves.model) == self.before


def run(examples, steps):
    run_state_machine_as_test(
        Moves,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            derandomize=True,
            deadline=None,
            phases=[Phase.generate],  # Shrinking takes longer than reading.
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_random_moves_keep_the_contract():
    run(examples=20, steps=20)


@pytest.mark.slow
def test_many_random_moves_keep_the_contract():
    run(examples=400, steps=40)
