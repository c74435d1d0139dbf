"""How much memory this process takes, and took at most."""

import pathlib
import sys


def highest() -> int:
    """Returns the highest resident memory of this process so far, in bytes.

    On Linux `ru_maxrss` would count what the parent had when it started this
    process; the kernel's own status of a process does not.
    """
    found = _status("VmHWM")
    if found is not None:
        return found
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def now() -> int | None:
    """Returns the resident memory in bytes, `None` where it is not known."""
    return _status("VmRSS")


def reset() -> bool:
    """Lets the peak count from now on; returns whether that is possible."""
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return False
    return True


def _status(name: str) -> int | None:
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{name}:"):
                return 1024 * int(line.split()[1])
    return None
