"""Limits on what a call may take, for what else might never return."""

import contextlib
import signal
import tracemalloc


class TooLongError(BaseException):
    """Raised where no error of the library is caught."""


def _late(number, frame):
    raise TooLongError("it takes too long")


@contextlib.contextmanager
def within(seconds):
    """Ends the body with an error if it takes longer, so that a test fails."""
    before = signal.signal(signal.SIGALRM, _late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def peak(function, *args):
    """Calls a function that refuses what it is given.

    Returns:
        The error, and how many bytes Python had allocated at most.
    """
    tracemalloc.start()
    try:
        function(*args)
    except ValueError as error:
        return error, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return None, 0
