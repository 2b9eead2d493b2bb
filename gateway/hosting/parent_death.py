"""Ends a process when the process that started it is gone.

A parent that is killed outright cannot stop its children, so each child watches its parent:

* bound_to_parent is for a service. It runs
  `python -m gateway.hosting.parent_death PARENT CORES COMMAND...`, which asks
  the kernel for SIGTERM at the parent's death (Linux only), pins itself to CORES and becomes
  COMMAND; both settings outlast exec.
* end_with_parent is for the server's worker. It sends a signal by which open streams end with
  an error, and ends the process after a grace period.

This module runs before each service starts; therefore it imports nothing heavy.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Collection, Sequence
from typing import Final

POLL_S: Final = 0.5
"""The parent is checked every POLL_S seconds: a process may outlive the parent by as long."""

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


def program(module: str, *arguments: str) -> tuple[str, ...]:
    """Return the options by which Python runs an installed module from any folder: with `-m`
    alone, Python would import a `models.py` from the folder in which it starts."""
    return "-P", "-m", module, *arguments


def bound_to_parent(command: Sequence[str], cores: Collection[int]) -> list[str]:
    """Return a command that runs `command` on `cores`, if any, and ends with this process."""
    listed = ",".join(map(str, sorted(cores)))
    return [sys.executable, *program(__name__), str(os.getpid()), listed, *command]


def end_with_parent(number: signal.Signals, grace_s: float) -> None:
    """Send a signal to this process when its parent is gone; end it `grace_s` later."""
    parent = _starter() or os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_S)
        os.kill(os.getpid(), number)
        time.sleep(grace_s)
        os._exit(1)

    threading.Thread(target=watch, name="picospec-end-with-parent", daemon=True).start()


def _starter() -> int | None:
    """Return the id of the process that started this one by multiprocessing, if one did. That
    process has passed its id on, which is right even if it is gone already, unlike getppid."""
    import multiprocessing  # slow, and not needed before a service starts

    parent = multiprocessing.parent_process()
    return None if parent is None else parent.pid


def _ask_kernel(number: signal.Signals) -> None:
    """Let Linux send this process a signal when the thread that started it ends."""
    if sys.platform == "linux":
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")


def main(arguments: Sequence[str]) -> None:
    """Become the command, or exit if the parent is gone already. This never returns."""
    parent, listed, *command = arguments
    _ask_kernel(signal.SIGTERM)
    if listed and sys.platform == "linux":
        os.sched_setaffinity(0, {int(core) for core in listed.split(",")})
    if os.getppid() != int(parent):
        sys.exit("the process that started this one is gone")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
