"""Processes that are forked, to be killed while they write.

They are forked before TensorFlow has computed anything, so that none of them
pays for importing it.
"""

import os
import signal
import sys


def kill_at(event, folder):
    """Kills this process when it touches the folder for the n-th time."""
    left = [event]
    watched = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}

    def hook(name, arguments):
        if name not in watched or not arguments:
            return
        path = arguments[0]
        if isinstance(path, (str, os.PathLike)) and str(path).startswith(
            str(folder)
        ):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def fork(function, *arguments):
    """Runs a function in a process of its own; returns its id."""
    child = os.fork()
    if child:
        return child
    try:
        function(*arguments)
        os._exit(0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)


def finish(child):
    """Waits for a process, which must have gone well or been killed.

    Returns whether it was killed.
    """
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status):
        sys.exit("a process failed")
    return os.WIFSIGNALED(status)
