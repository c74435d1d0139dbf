import os
import subprocess
import sys
import textwrap

import pytest

KEEP = """
import os, sys, warnings
warnings.simplefilter("ignore")
before = dict(os.environ)
import packnet_tf
assert dict(os.environ) == before, "packnet_tf changed the environment"
"""


def run(code, **environment):
    """Runs code in a new process; returns its output."""
    env = {**os.environ, **environment}
    env.pop("TF_USE_LEGACY_KERAS", None)
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=env,
        capture_output=True,
        text=True,
    )


USES = """
import numpy as np
import tensorflow as tf
network = keras.Sequential([
    keras.Input((4,)), keras.layers.Dense(4), keras.layers.Dense(2, "softmax")
])
model = packnet_tf.wrap(network, task="one")
model.compile("sgd", "sparse_categorical_crossentropy")
schedule = PolynomialDecay(0.0, 0.5, 0, 2, frequency=1)
x, y = np.ones((8, 4), "float32"), np.zeros(8, "int32")
model.fit(x, y, batch_size=4, verbose=0,
          callbacks=[packnet_tf.PruneOnSchedule(schedule)])
assert model.sparsity == 0.5
assert keras.__version__.startswith("3.")
"""
TFMOT = """
from tensorflow_model_optimization.sparsity.keras import PolynomialDecay
"""
KERAS_CV = """
import keras_cv
keras_cv.layers.RandomFlip
"""


@pytest.mark.parametrize(
    "first",
    [
        pytest.param("packnet_tf", marks=pytest.mark.slow),
        "keras_cv_and_tfmot",
        pytest.param("tfmot", marks=pytest.mark.slow),
        pytest.param("keras_cv", marks=pytest.mark.slow),
    ],
)
def test_packnet_tf_works_with_its_neighbours_in_any_order(first):
    before = {
        "packnet_tf": "",
        "tfmot": TFMOT,
        "keras_cv": KERAS_CV,
        "keras_cv_and_tfmot": KERAS_CV + TFMOT,
    }[first]
    after = TFMOT if "keras_cv" in first else TFMOT + KERAS_CV
    if first == "tfmot":
        # TF-MOT, imported first, has made `tf.keras` Keras 2 by itself, and
        # keras-cv does not import after it, packnet_tf or no packnet_tf.
        after = TFMOT
    done = run("import keras\n" + before + KEEP + after + USES)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    "later",
    [
        pytest.param(TFMOT, marks=pytest.mark.slow),
        TFMOT + KERAS_CV,
        pytest.param(KERAS_CV, marks=pytest.mark.slow),
    ],
    ids=["tfmot", "both", "keras_cv"],
)
def test_tf_keras_stays_keras_3_after_packnet_tf(later):
    check = """
import tensorflow as tf
assert tf.keras.__version__.startswith("3."), tf.keras
"""
    done = run(KEEP + later + check)
    assert done.returncode == 0, done.stderr[-3000:]


def test_packnet_tf_imports_tfmot_late_and_keeps_the_environment():
    done = run(
        KEEP
        + """
assert "tensorflow_model_optimization" not in sys.modules
packnet_tf.schedules.tfmot_schedules()
assert dict(os.environ) == before
import keras_cv
import tensorflow as tf
assert tf.keras.__version__.startswith("3.")
"""
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_what_tfds_downloads_with_is_installed():
    """TFDS imports it, of a set of its own, before it downloads anything."""
    done = run("import importlib_resources.abc")
    assert done.returncode == 0, done.stderr[-3000:]


def without_timestamps(text):
    """Keeps what differs between runs out: TensorFlow's own log lines."""
    return [line for line in text.splitlines() if line[:1] not in "IWE"]


def test_import_prints_nothing():
    plain = run("import keras, tensorflow")
    with_packnet = run("import keras, tensorflow, packnet_tf")
    assert with_packnet.returncode == 0
    assert with_packnet.stdout == plain.stdout == ""
    assert without_timestamps(with_packnet.stderr) == without_timestamps(
        plain.stderr
    )


@pytest.mark.parametrize("backend", ["jax", "torch", "numpy"])
def test_another_backend_is_one_clear_error(backend):
    done = run(
        """
import sys
try:
    import packnet_tf
except ImportError as error:
    print(type(error).__name__)
    print(error)
""",
        KERAS_BACKEND=backend,
    )
    name, message = done.stdout.strip().split("\n")
    assert name == "BackendError"
    assert "KERAS_BACKEND=tensorflow" in message
    assert "Received:" in message
    assert backend in message


def test_legacy_keras_chosen_by_the_user_is_left_alone():
    done = run(
        """
import os
os.environ["TF_USE_LEGACY_KERAS"] = "1"
import packnet_tf
assert os.environ["TF_USE_LEGACY_KERAS"] == "1"
packnet_tf.schedules.tfmot_schedules()
assert os.environ["TF_USE_LEGACY_KERAS"] == "1"
"""
    )
    assert done.returncode == 0, done.stderr[-3000:]
