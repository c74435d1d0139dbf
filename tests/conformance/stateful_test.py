"""Leads packed models through random moves, legal and not.

Beside each model goes an oracle that knows nothing of it: owner maps in NumPy,
stages, and what each task computed when it was frozen. After every move the
two must agree; a move that is refused must have changed nothing.
"""

import copy
import dataclasses
import json
import pathlib
import tempfile
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import Unchanged
from helpers import hash_values
from helpers import optimizer_variables
from helpers import same_bits
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
from illegal_moves import ILLEGAL
from illegal_moves import has_room
from oracle import Oracle

import packnet_tf
from packnet_tf.errors import ArgumentError
from packnet_tf.errors import FingerprintError
from packnet_tf.errors import PackNetError
from packnet_tf.errors import StageError
from packnet_tf.variables import is_seed

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
class Weights:
    """A weights file, and what was true when it was written."""

    path: pathlib.Path
    oracle: Oracle
    variables: list[np.ndarray]
    optimizer: list[np.ndarray]


def values(variables):
    return [variable.numpy() for variable in variables]


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

    def eager(self, name):
        return np.asarray(self.model(self.x, task=name))

    def graph(self, name):
        call = tf.function(lambda x: self.model(x, task=name))
        return call(self.x).numpy()

    def unchanged(self):
        return Unchanged(self.model)

    # The first state.

    @initialize(
        kind=st.sampled_from(sorted(NETWORKS)),
        units=st.sampled_from([None, 2, 3]),
        optimizer=st.sampled_from([None, *sorted(OPTIMIZERS)]),
        finished=st.integers(0, 3),
    )
    def wrap(self, kind, units, optimizer, finished):
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
            self.oracle.claim("first", units, "one layer")
        if optimizer:
            self.compile(optimizer, True)
        assert same_bits(network(self.x), self.model(self.x))
        for number in range(finished):
            self.finish_task(NAMES[number], 2 + number % 2, 0.5)

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
        lambda self: self.oracle.may_add and len(self.oracle.tasks) < MAX_TASKS
    )
    @rule(
        name=st.sampled_from(NAMES),
        units=st.integers(2, 4),
        head=st.sampled_from(["one layer", "two layers"]),
        by_units=st.booleans(),
    )
    def add_task(self, name, units, head, by_units):
        if name in self.oracle.names:
            name = next(n for n in NAMES if n not in self.oracle.names)
        number = len(self.oracle.tasks) + 1
        last = L.Dense(units, "softmax", name=f"head_{number}_last")
        arguments = {"units": units} if by_units else {"head": last}
        if head == "two layers":
            hidden = L.Dense(3, "relu", name=f"head_{number}_hidden")
            arguments = {"head": keras.Sequential([hidden, last])}
        before = values(e.variable for e in self.packed())
        self.oracle.claim(name, units, head)
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
        fraction=st.one_of(
            st.sampled_from(FRACTIONS), st.floats(0, 1, exclude_max=True)
        ),
    )
    def prune(self, fraction):
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
        before = values(self.model.variables)
        outputs = self.eager(task.name)
        task.fingerprint = self.model.freeze_task()
        task.stage = "FROZEN"
        task.outputs = outputs
        assert all(map(same_bits, before, values(self.model.variables)))

    @precondition(lambda self: len(self.oracle.tasks) < MAX_TASKS)
    @rule(
        name=st.sampled_from(NAMES),
        units=st.integers(2, 4),
        fraction=st.sampled_from(FRACTIONS),
    )
    def finish_task(self, name, units, fraction):
        if self.oracle.may_add:
            self.add_task(name, units, "one layer", True)
        if self.may_fit():
            self.train_on_batch()
        if has_room(self.oracle):
            self.prune(fraction)
        self.freeze_task()

    @precondition(lambda self: len(self.oracle.tasks) > 1)
    @rule(data=st.data())
    def remove_task(self, data):
        places = range(1, len(self.oracle.tasks))
        first = data.draw(st.sampled_from(places), label="first")
        name, *also = self.oracle.names[first:]
        before = values(e.variable for e in self.packed())
        count = self.model.remove_task(name, also)
        assert count == self.oracle.remove(first)
        for entry, value in zip(self.packed(), before):
            free = self.oracle.owners[entry.key] == 0
            expected = np.where(free, np.float32(0), value)
            assert same_bits(entry.variable.numpy(), expected)
        optimizer = getattr(self.model, "optimizer", None)
        assert optimizer is None or int(optimizer.iterations) == 0

    @precondition(lambda self: self.oracle.tasks)
    @rule(name=st.sampled_from(NAMES))
    def set_task(self, name):
        if name not in self.oracle.names:
            name = self.oracle.names[0]
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
        if len(weights.oracle.tasks) > len(self.oracle.tasks) and all(
            owner.max() <= len(self.oracle.tasks)
            for owner in weights.oracle.owners.values()
        ):
            return  # The later tasks own nothing; they leave no trace.
        error = self.refusal(weights)
        with warnings.catch_warnings():
            # Keras tells of an optimizer that the file does not fit.
            warnings.simplefilter("ignore", UserWarning)
            if error is not None:
                self.refuse(
                    lambda self: self.model.load_weights(weights.path), error
                )
                return
            optimizer = values(optimizer_variables(self.model))
            self.model.load_weights(weights.path)
        if list(map(np.shape, optimizer)) == list(
            map(np.shape, weights.optimizer)
        ):
            optimizer = weights.optimizer
        assert all(
            map(same_bits, optimizer, values(optimizer_variables(self.model)))
        )
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
        now, then = (
            [(task.units, task.head) for task in oracle.tasks]
            for oracle in (self.oracle, weights.oracle)
        )
        if now != then[: len(now)]:
            return ArgumentError
        if len(now) < len(then):
            return StageError
        return None if self.has_frozen(weights) else FingerprintError

    def has_frozen(self, weights):
        """Tells whether a file holds what frozen tasks compute with."""
        finished = [t for t in self.oracle.tasks if t.stage == "FROZEN"]
        if not finished:
            return True
        of_file = {
            id(variable): value
            for variable, value in zip(self.model.variables, weights.variables)
        }
        kept = []
        for entry in self.model.summary_protection(print_fn=len):
            now, new = entry.variable.numpy(), of_file[id(entry.variable)]
            if entry.owner is not None:
                owner, new_owner = entry.owner.numpy(), of_file[id(entry.owner)]
                older = (owner > 0) & (owner <= len(finished))
                if (
                    older != ((new_owner > 0) & (new_owner <= len(finished)))
                ).any():
                    return False
                kept += [(owner[older], new_owner[older])]
                now, new = now[older], new[older]
            if not is_seed(entry.variable):
                kept += [(now, new)]
        for task in finished:
            for variable in self.model.heads[task.name].variables:
                kept += [(variable.numpy(), of_file[id(variable)])]
        return all(one.tobytes() == other.tobytes() for one, other in kept)

    @precondition(lambda self: self.oracle.tasks)
    @rule(
        data=st.data(),
        how=st.sampled_from(["unwrap", "keras", "folder", "all"]),
    )
    def export(self, data, how):
        name = data.draw(st.sampled_from(self.oracle.names), label="name")
        path = self.folder / how
        with self.unchanged():
            if how == "unwrap":
                plain = self.model.unwrap(name)
            elif how == "keras":
                path = path.with_suffix(".keras")
                self.model.export_task(name, path)
                plain = keras.saving.load_model(path)
            elif how == "folder":
                self.model.export_task(name, path)
            else:
                self.model.export(path)
        if how in ("unwrap", "keras"):
            assert "packnet_tf" not in json.dumps(
                plain.get_config(), default=repr
            )
            assert same_bits(np.asarray(plain(self.x)), self.eager(name))
            return
        loaded = tf.saved_model.load(str(path))
        if how == "folder":
            assert same_bits(loaded.serve(self.x), self.graph(name))
            return
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
            name for name, move in ILLEGAL.items() if move.applies(self.oracle)
        ]
        move = ILLEGAL[data.draw(st.sampled_from(illegal), label="illegal")]
        self.refuse(move.call, move.error)

    def refuse(self, call, error):
        with self.unchanged(), pytest.raises(error) as caught:
            call(self)
        assert caught.type is error, repr(caught.value)
        if issubclass(error, PackNetError):
            assert "Received: " in str(caught.value)

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
        proofs = self.model.verify()
        assert {n: p.fingerprint for n, p in proofs.items()} == expected
        for name in expected:
            outputs = self.oracle.find(name).outputs
            assert same_bits(self.eager(name), outputs), name


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
    run(examples=8, steps=15)


@pytest.mark.slow
def test_many_random_moves_keep_the_contract():
    run(examples=40, steps=30)


def test_every_illegal_move_is_refused():
    """Walks through all stages and tries what is illegal in each."""
    moves = Moves()
    left = dict(ILLEGAL)

    def refuse_all():
        for name, move in list(left.items()):
            if move.applies(moves.oracle):
                moves.refuse(move.call, move.error)
                del left[name]

    try:
        moves.wrap("dense", None, "adamw", 0)
        refuse_all()
        for name, fraction in zip(NAMES, [0.5, 0.0, None]):
            moves.add_task(name, 2, "one layer", True)
            moves.fit(1, 1)
            if fraction is not None:
                moves.prune(fraction)
            refuse_all()
            moves.set_task("one")
            refuse_all()
            moves.freeze_task()
            refuse_all()
    finally:
        moves.teardown()
    assert not left
