"""Ends a child process when its parent is gone, however the parent ended.

vLLM's core and workers outlive a killed service and keep its memory. Each of them watches its
own parent, so the whole chain falls within a second or two.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from typing import Final

PERIOD_S: Final = 0.5


def die_with_parent() -> bool:
    """Start watching; return False, and do nothing, in a process that is nobody's worker."""
    if multiprocessing.parent_process() is None:
        return False
    watch = threading.Thread(target=_watch, args=(os.getppid(),), daemon=True)
    watch.start()
    return True


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PERIOD_S)
    os.kill(os.getpid(), signal.SIGKILL)
