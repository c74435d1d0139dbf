"""Splits examples class by class, the same way for the same seed."""

import numpy as np


def split(
    labels: np.ndarray, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Takes a fraction of each class out.

    Args:
        labels: Int array of shape `(n,)`.
        fraction: Float in `(0, 1)`, of each class.
        seed: Int from 0.

    Returns:
        Positions that stay and positions taken out, both sorted. A class of
        two or more gives at least one and keeps at least one; a single
        example stays. Where all are single, some of all are taken.
    """
    generator = np.random.default_rng(seed)
    taken = []
    for label in np.unique(labels):
        places = generator.permutation(np.flatnonzero(labels == label))
        count = min(max(round(fraction * len(places)), 1), len(places) - 1)
        taken.append(places[:count])
    out = np.concatenate([np.empty(0, np.int64), *taken])
    if not len(out):
        count = min(max(round(fraction * len(labels)), 1), len(labels) - 1)
        out = generator.permutation(len(labels))[: max(count, 0)]
    out = np.sort(out)
    return np.setdiff1d(np.arange(len(labels)), out), out
