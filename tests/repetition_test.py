import itertools
import math

import pytest
from program import repetition

from packnet_tf.errors import ArgumentError


def test_repeats_are_all_orders_and_seeds(flags):
    flags(tasks=["mnist", "fashion", "digits"], seeds=["3", "5"], orders=3)
    repeats = repetition.from_flags()
    assert [repeat.seed for repeat in repeats] == [3, 5] * 3
    assert [repeat.folder for repeat in repeats] == [
        ".",
        *(repeat.name for repeat in repeats[1:]),
    ]
    assert len({repeat.name for repeat in repeats}) == 6
    assert repeats[0].order == repeats[1].order == (0, 1, 2)
    for repeat in repeats:
        assert sorted(repeat.order) == [0, 1, 2]
    assert repeats[2].order == repeats[3].order
    assert len({repeat.order for repeat in repeats}) > 1


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_no_order_comes_twice(count, flags):
    most = math.factorial(count)
    flags(tasks=["mnist"] * count, seeds=["0"], orders=most)
    orders = [repeat.order for repeat in repetition.from_flags()]
    assert orders[0] == tuple(range(count))
    assert sorted(orders) == list(itertools.permutations(range(count)))
    # An order has the same number whatever else is run.
    flags(orders=2)
    assert [repeat.order for repeat in repetition.from_flags()] == orders[:2]
    flags(orders=most + 1)
    with pytest.raises(ArgumentError, match=f"no more than {most} orders"):
        repetition.from_flags()
