"""Ties a child's life to its parent's: `python -m gateway.hosting.parent_death PARENT CORES COMMAND...`.

It asks the kernel for SIGTERM at the parent's death (Linux), pins itself to CORES, and becomes
COMMAND; both outlast exec. So a service started by `picospec up` never outlives it, not even
when it is killed outright.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Collection, Sequence

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def leashed(command: Sequence[str], cores: Collection[int]) -> list[str]:
    """Return `command` made to end with this process and to run on `cores` (none: on any)."""
    listed = ",".join(str(core) for core in sorted(cores))
    return [
        sys.executable,
        "-m",
        "gateway.hosting.parent_death",
        str(os.getpid()),
        listed,
        *command,
    ]


def _end_with(parent: int) -> None:
    """Ask to be ended with `parent`; leave at once when it has gone already."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        sys.exit("the process that started this one is gone")


def _pin(listed: str) -> None:
    if listed and sys.platform == "linux":
        os.sched_setaffinity(0, {int(core) for core in listed.split(",")})


def main(arguments: Sequence[str]) -> None:
    """Become the command; returns never."""
    parent, listed, *command = arguments
    _end_with(int(parent))
    _pin(listed)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
