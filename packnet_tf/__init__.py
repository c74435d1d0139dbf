"""PackNet for Keras 3: several tasks packed into one network."""

from packnet_tf import backend as _backend  # Comes first: checks Keras.
from packnet_tf import criteria
from packnet_tf import distribute
from packnet_tf import errors
from packnet_tf import schedules
from packnet_tf import sequence
from packnet_tf.archive import load_pack
from packnet_tf.archive import save_pack
from packnet_tf.callbacks import PruneOnSchedule
from packnet_tf.capacity import Capacity
from packnet_tf.layers import PackedLayer
from packnet_tf.loading import load_model
from packnet_tf.model import PackNetModel
from packnet_tf.plan import Plan
from packnet_tf.plan import plan
from packnet_tf.record import Proof
from packnet_tf.registry import register_layer
from packnet_tf.task_delta import load_task
from packnet_tf.task_delta import save_task
from packnet_tf.tasks import Stage
from packnet_tf.wrapping import wrap

__version__ = "0.1.0"

__all__ = [
    "Capacity",
    "PackNetModel",
    "PackedLayer",
    "Plan",
    "Proof",
    "PruneOnSchedule",
    "Stage",
    "criteria",
    "distribute",
    "errors",
    "load_model",
    "load_pack",
    "load_task",
    "plan",
    "register_layer",
    "save_pack",
    "save_task",
    "schedules",
    "sequence",
    "wrap",
]

del _backend
