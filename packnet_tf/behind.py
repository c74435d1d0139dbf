"""Calls made in threads beside the caller's, in order, and few at a time."""

import collections
import contextlib
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from typing import TypeVar

_MOST = 2  # Calls that wait; what they are called with takes memory.

Result = TypeVar("Result")


@contextlib.contextmanager
def calling(beside: bool = True) -> Iterator[Callable[..., None]]:
    """Runs calls beside the caller, who goes on at once.

    That pays off for what lets other threads work meanwhile, such as hashing
    and writing large pieces.

    Args:
        beside: `False` to make each call at once, where they are too short
            to be worth a thread.

    Yields:
        A function that takes a function and its arguments, and has it called
        in its turn. If too many wait, it waits for the first of them. At the
        end of the `with` block all are done; if that is left by an error,
        those that wait are not called any more.

    Raises:
        BaseException: What a call raises: later, in the function that is
            yielded or at the end of the block.
    """
    if not beside:
        yield lambda function, *args: function(*args)
        return
    waiting: collections.deque[Future[Any]] = collections.deque()
    with ThreadPoolExecutor(1) as pool:

        def call(function: Callable[..., Any], *args: Any) -> None:
            if len(waiting) >= _MOST:
                waiting.popleft().result()
            waiting.append(pool.submit(function, *args))

        try:
            yield call
            while waiting:
                waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def results(
    function: Callable[..., Result],
    calls: Iterable[tuple[Any, ...]],
    beside: bool = True,
) -> Iterator[Result]:
    """Calls a function again and again, twice at a time.

    Args:
        function: What is called, in any of two threads.
        calls: The arguments of each call, taken in the caller's thread when
            its turn comes.
        beside: `False` to make each call at once, where they are too short
            to be worth a thread.

    Yields:
        What the calls return, in their order.

    Raises:
        BaseException: What a call raises, in its turn; those that wait are
            not made any more.
    """
    if not beside:
        for args in calls:
            yield function(*args)
        return
    waiting: collections.deque[Future[Result]] = collections.deque()
    with ThreadPoolExecutor(_MOST) as pool:
        try:
            for args in calls:
                if len(waiting) >= _MOST:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(function, *args))
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
