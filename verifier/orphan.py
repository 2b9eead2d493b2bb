"""Ends this process when the one that started it has gone, even when that one was killed.

The server's worker is a child process; a kill -9 of its parent tells it nothing.
"""

from __future__ import annotations

import os
import signal
import threading
import time

POLL_S = 0.5


def end_with_parent(grace_s: float) -> None:
    """Watch the parent from a thread: first SIGTERM, then, after grace_s, the end."""
    parent = os.getppid()
    watch = threading.Thread(target=_watch, args=(parent, grace_s), daemon=True, name="orphan")
    watch.start()


def _watch(parent: int, grace_s: float) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace_s)
    os._exit(1)
