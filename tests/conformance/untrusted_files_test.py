"""Files that may come from anyone: read as they were, or refused."""

import json

import keras
import pytest
from layer_networks import CASES
from layer_networks import build

import packnet_tf
from packnet_tf import configurations


@pytest.mark.parametrize("name", CASES)
def test_no_layer_of_keras_is_refused(name):
    model = packnet_tf.wrap(build(name), head=None)
    config = keras.saving.serialize_keras_object(model)
    configurations.check(json.loads(json.dumps(config, default=list)))
