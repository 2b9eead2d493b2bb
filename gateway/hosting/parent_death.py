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

from gateway.system import become, end_with_parent_thread, pin, wait_for_end_of_parent


def program(module: str, *arguments: str) -> tuple[str, ...]:
    """Return the options by which Python runs an installed module from any folder: with `-m`
    alone, Python would import a `models.py` from the folder in which it starts."""
    return "-P", "-m", module, *arguments


def bound_to_parent(command: Sequence[str], cores: Collection[int]) -> list[str]:
    """Return a command that runs `command` on `cores`, if any, and ends with this process. On
    Windows it is `command` itself, because a process cannot become another one there."""
    if sys.platform == "win32":
        return list(command)
    listed = ",".join(map(str, sorted(cores)))
    return [sys.executable, *program(__name__), str(os.getpid()), listed, *command]


def end_with_parent(number: signal.Signals, grace_s: float) -> None:
    """Send a signal to this process when its parent is gone; end it `grace_s` later."""

    def watch() -> None:
        wait_for_end_of_parent()
        os.kill(os.getpid(), number)
        time.sleep(grace_s)
        os._exit(1)

    threading.Thread(target=watch, name="picospec-end-with-parent", daemon=True).start()


def main(arguments: Sequence[str]) -> None:
    """Become the command, or exit if the parent is gone already. This never returns."""
    parent, listed, *command = arguments
    end_with_parent_thread(signal.SIGTERM)
    pin([int(core) for core in listed.split(",") if core])
    if os.getppid() != int(parent):
        sys.exit("the process that started this one is gone")
    become(command)


if __name__ == "__main__":
    main(sys.argv[1:])
