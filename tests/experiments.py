"""Makes tiny experiments: networks, data and all that goes with them."""

import dataclasses

import keras
import numpy as np
from loading import datasets
from loading import pipelines
from methods import experiment
from methods import keeping
from methods import networks
from methods import recipes

from packnet_tf import sequence

SIZE = 8
STEPS = 3


class Killed(BaseException):
    """Ends a run where a kill would."""


class KillAt(keras.callbacks.Callback):
    """Ends a run at an event: an epoch begins or ends, training ends, a test
    begins.

    An epoch that ends is logged and not yet saved. It is saved when the next
    begins, or training ends.

    Args:
        left: How many events there are until then, that one included.
    """

    def __init__(self, left):
        super().__init__()
        self.left = left

    def count(self):
        self.left -= 1
        if self.left == 0:
            raise Killed

    def on_epoch_begin(self, epoch, logs=None):
        self.count()

    def on_epoch_end(self, epoch, logs=None):
        self.count()

    def on_train_end(self, logs=None):
        self.count()


@dataclasses.dataclass(frozen=True)
class Small(experiment.Experiment):
    """An experiment that can be killed, and runs without tracing."""

    kill: KillAt | None = None

    def compile(self, model, phase, epochs, steps, **kwargs):
        super().compile(model, phase, epochs, steps, run_eagerly=True, **kwargs)

    def journal(self, *arguments):
        found = super().journal(*arguments)
        return [*found, self.kill] if self.kill else found

    def predict(self, *arguments, **kwargs):
        if self.kill:
            self.kill.count()
        return super().predict(*arguments, **kwargs)


def build_network(seed=None, classes=None):
    """Makes a network with dropout and moving statistics."""
    if seed is not None:
        keras.utils.set_random_seed(seed)
    layers = [
        keras.Input((SIZE, SIZE, 3)),
        keras.layers.Conv2D(4, 3, strides=2, name="conv"),
        keras.layers.BatchNormalization(momentum=0.5, name="norm"),
        keras.layers.ReLU(),
        keras.layers.Flatten(),
        keras.layers.Dropout(0.2),
        keras.layers.Dense(6, activation="tanh", name="features"),
    ]
    if classes:
        layers.append(
            keras.layers.Dense(classes, activation="softmax", name="top")
        )
    return keras.Sequential(layers, name="small")


def make_network(classes=None):
    """Makes what a run makes its network by, with a classifier if asked."""
    if classes is None:
        return networks.Network(build_network)
    whole = build_network(0, classes)

    def build_whole():
        # As from a file: the same weights each time.
        made = keras.models.clone_model(whole)
        made.set_weights(whole.get_weights())
        return made

    def build():
        made = build_whole()
        return keras.Model(made.inputs[0], made.layers[-2].output)

    return networks.Network(build, build_whole)


def make_part(generator, classes, count):
    """Makes images of a color per class, with noise."""
    labels = (np.arange(count) % classes).astype(np.int32)
    colors = generator.integers(30, 226, (classes, 1, 1, 3))
    noise = generator.integers(-20, 21, (count, SIZE, SIZE, 3))
    return datasets.Part.whole((colors[labels] + noise).astype("u1"), labels)


def make_data(name, classes, seed=0):
    """Makes a task of 24 images to train on, 8 to validate, 8 to test."""
    generator = np.random.default_rng([seed, classes])
    whole = make_part(generator, classes, 40)
    parts = [
        dataclasses.replace(whole, rows=np.arange(start, end))
        for start, end in ((0, 24), (24, 32), (32, 40))
    ]
    names = tuple(f"c{label}" for label in range(classes))
    return datasets.Dataset(name, "npz:a.npz", names, *parts)


def make_keeping(**changed):
    """Says how to keep the classifier, by imitation."""
    return keeping.Keeping(
        **{
            "name": "kept",
            "sparsity": 0.5,
            "epochs": 2,
            "learning_rate": 0.01,
            "temperature": 2.0,
            **changed,
        }
    )


def make(folder, data=None, keep=None, network=None, kill=None, **changed):
    """Makes a tiny experiment.

    Args:
        folder: Where results go.
        data: The tasks. Defaults to two, of two and three classes.
        keep: How the network's classifier is kept.
        network: Makes the network. Defaults to one with a classifier if that
            is kept.
        kill: When to end it.
        **changed: Fields of the recipe or of the plans.
    """
    if data is None:
        data = [make_data("one", 2), make_data("two", 3)]
    fields = {field.name for field in dataclasses.fields(recipes.Recipe)}
    recipe = {name: changed.pop(name) for name in fields & set(changed)}
    pipeline = pipelines.Pipeline(SIZE, 8, "flip", None, 5)

    def plan(task):
        return sequence.TaskPlan(
            **{
                "name": task.name,
                "train": lambda epoch: pipeline.training(task, epoch * STEPS),
                "validation": pipeline.evaluation(task, task.val),
                "units": task.num_classes,
                "epochs": 2,
                "retrain_epochs": 1,
                "steps_per_epoch": STEPS,
                "sparsity": 0.5,
                "warmup_epochs": 1,
                **changed,
            }
        )

    return Small(
        network or make_network(4 if keep else None),
        pipeline,
        recipes.Recipe(
            **{"learning_rate": 0.05, "jit_compile": False, **recipe}
        ),
        data,
        [plan(task) for task in data],
        folder,
        5,
        0,
        keep,
        kill=kill,
    )
