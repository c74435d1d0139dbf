import itertools
import threading
import time

import pytest

from packnet_tf import behind


@pytest.fixture(params=[True, False], ids="beside at_once".split())
def beside(request):
    return request.param


def test_calls_are_made_in_order_and_all_of_them(beside):
    made = []

    def late(number):
        time.sleep(0.01 * (number % 3 == 0))
        made.append(number)

    with behind.calling(beside) as call:
        for number in range(20):
            call(late, number)
    assert made == list(range(20))


def test_the_caller_goes_on_meanwhile():
    gone_on = threading.Event()
    with behind.calling() as call:
        call(gone_on.wait, 30)
        gone_on.set()
    assert gone_on.is_set()


def test_few_calls_wait():
    made = []

    def late(number):
        time.sleep(0.002)
        made.append(number)

    with behind.calling() as call:
        for number in range(30):
            call(late, number)
            assert len(made) >= number - behind._MOST


def test_an_error_ends_it(beside):
    made = []

    def fail(number):
        made.append(number)
        if number == 3:
            raise OSError("disk full")

    def run():
        with behind.calling(beside) as call:
            for number in range(1000):
                call(fail, number)

    with pytest.raises(OSError, match="disk full"):
        run()
    assert made[:4] == [0, 1, 2, 3]
    assert len(made) <= 4 + behind._MOST + 1


def test_an_error_of_the_last_call_is_raised(beside):
    def fail():
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        with behind.calling(beside) as call:
            call(fail)


def test_no_thread_is_left_by_an_error_of_the_caller(beside):
    def run():
        with behind.calling(beside) as call:
            for _ in range(2):
                call(time.sleep, 0.01)
            raise ValueError("mine")

    before = threading.active_count()
    with pytest.raises(ValueError, match="mine"):
        run()
    assert threading.active_count() == before


def test_results_come_in_order(beside):
    def late(number):
        time.sleep(0.01 * (number % 3 == 0))
        return number

    calls = ((number,) for number in range(20))
    assert list(behind.results(late, calls, beside)) == list(range(20))


def test_two_calls_are_made_at_a_time():
    both = threading.Barrier(2, timeout=30)
    numbers = behind.results(lambda number: both.wait(), [(0,), (1,)])
    assert sorted(numbers) == [0, 1]


def test_results_are_not_computed_long_before_they_are_taken():
    made = []
    numbers = behind.results(made.append, ((number,) for number in range(30)))
    for taken, _ in enumerate(numbers):
        assert len(made) <= taken + 1 + behind._MOST


def test_an_error_comes_in_its_turn(beside):
    made = []

    def fail(number):
        made.append(number)
        if number == 3:
            raise OSError("disk full")
        return number

    before = threading.active_count()
    calls = ((number,) for number in range(1000))
    numbers = behind.results(fail, calls, beside)
    assert list(itertools.islice(numbers, 3)) == [0, 1, 2]
    with pytest.raises(OSError, match="disk full"):
        next(numbers)
    assert len(made) <= 4 + behind._MOST
    assert threading.active_count() == before


def test_no_thread_is_left_by_who_takes_no_more(beside):
    before = threading.active_count()
    numbers = behind.results(time.sleep, [(0.01,)] * 10, beside)
    next(numbers)
    numbers.close()
    assert threading.active_count() == before
