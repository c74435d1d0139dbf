"""Tasks made of other tasks: some of their classes, or permuted pixels."""

import dataclasses

import numpy as np
from loading.bundled import DataError
from loading.parts import Dataset
from loading.parts import Part


def take(data: Dataset, chosen: str, text: str) -> Dataset:
    """Takes some classes of a task, numbered anew from 0.

    Args:
        data: The task.
        chosen: `FIRST-LAST`, both taken.
        text: What the user gave, for errors.

    Returns:
        The task of these classes.

    Raises:
        DataError: If there are no such classes.
    """
    first, dash, last = chosen.partition("-")
    if not (dash and first.isdecimal() and last.isdecimal()) or not (
        int(first) < int(last) < data.num_classes
    ):
        raise DataError(
            "`split:FIRST-LAST:SOURCE` takes two classes or more, numbered "
            f"from 0 to {data.num_classes - 1}. Received: {text!r}"
        )
    low, high = int(first), int(last)

    def chosen_of(part: Part) -> Part:
        labels = part.labels[part.rows]
        rows = part.rows[(labels >= low) & (labels <= high)]
        return dataclasses.replace(part, labels=part.labels - low, rows=rows)

    return dataclasses.replace(
        data,
        class_names=data.class_names[low : high + 1],
        train=chosen_of(data.train),
        val=chosen_of(data.val),
        test=chosen_of(data.test),
    )


def permute(data: Dataset, seed: str, text: str) -> Dataset:
    """Puts the pixels of a task in an order that a seed gives.

    Args:
        data: The task.
        seed: A whole number; 0 leaves the pixels where they are.
        text: What the user gave, for errors.

    Returns:
        The task of these images.

    Raises:
        DataError: If the seed is none.
    """
    if not seed.isdecimal():
        raise DataError(
            "`permuted:SEED:SOURCE` takes a whole number from 0; 0 leaves the "
            f"pixels where they are. Received: {text!r}"
        )
    if seed == "0":
        return data
    height, width = data.train.images.shape[1:3]
    order = np.random.default_rng(int(seed)).permutation(height * width)

    def change(part: Part) -> Part:
        return dataclasses.replace(part, order=order)

    return dataclasses.replace(
        data,
        train=change(data.train),
        val=change(data.val),
        test=change(data.test),
    )
