"""Every criterion, in every scope, through the life of a packed model."""

import keras
import numpy as np
import pytest
from matrix import batches
from matrix import packed_entries
from matrix import run_cell

from packnet_tf import criteria
from packnet_tf import selection

FRACTION = 0.45


def pools(model):
    """Counts what the newest task may use of each packed weight."""
    number = len(model.task_names)
    owners = [entry.owner.numpy() for entry in packed_entries(model)]
    return [int(((o == number) | (o == 0)).sum()) for o in owners]


def free(model):
    """Counts what is free of each packed weight."""
    return [int((e.owner.numpy() == 0).sum()) for e in packed_entries(model)]


@pytest.mark.parametrize("scope", selection.SCOPES)
@pytest.mark.parametrize("criterion", criteria.names())
def test_criterion(criterion, scope, tmp_path):
    counted = []

    def prune(model, x, y):
        size = pools(model)
        data = batches(x, y)
        released = model.prune(FRACTION, criterion, scope=scope, data=data)
        expected = [round(FRACTION * count) for count in size]
        if scope == "layer":
            assert free(model) == expected
        else:
            assert sum(free(model)) == round(FRACTION * sum(size))
        assert released == sum(free(model))
        for entry in packed_entries(model):
            gone = entry.owner.numpy() == 0
            assert not np.any(entry.variable.numpy()[gone])
        counted.append(released)

    run_cell(
        tmp_path,
        lambda: keras.optimizers.SGD(0.05, momentum=0.9),
        prune=prune,
        jit_compile=False,
    )
    assert len(counted) == 2
