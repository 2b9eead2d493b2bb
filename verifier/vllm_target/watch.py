"""Ends a child process when its parent is gone, however the parent ended.

vLLM's core and workers outlive a killed service and keep its memory. Each of them watches its
own parent, so the whole chain falls within a second or two. vLLM calls this as a plugin when a
process starts, so it holds while the model loads; the scheduler and the worker call it again,
where the plugin is not installed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from typing import Final

PERIOD_S: Final = 0.5
_NAME: Final = "picospec-watch"


def die_with_parent() -> bool:
    """Start watching; return False, and do nothing, in a process that is nobody's worker."""
    parent = multiprocessing.parent_process()
    if parent is None or parent.pid is None:
        return False
    if not any(thread.name == _NAME for thread in threading.enumerate()):
        threading.Thread(target=_watch, args=(parent.pid,), name=_NAME, daemon=True).start()
    return True


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PERIOD_S)
    os.kill(os.getpid(), signal.SIGKILL)
