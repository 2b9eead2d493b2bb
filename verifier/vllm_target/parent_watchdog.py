"""Ends a process of vLLM when its parent process is gone.

A server that is killed cannot stop its engine, which would keep the device's memory without any
work to finish. So each process of the engine then sends itself SIGKILL. On Linux the kernel
also sends it, which ends even a process that is stopped.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from typing import Any, Final

from verifier.vllm_target.patcher import original

POLL_S: Final = 0.5
"""A process looks for its parent at this interval in seconds, and outlives it no longer."""

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_KILLER: Final = "picospec-die-with-parent"


def die_with_parent() -> bool:
    """Bind this process to its parent.

    Return False, and do nothing, if multiprocessing did not start this process. A second call
    does nothing either."""
    if (parent := multiprocessing.parent_process()) is None:
        return False
    if any(thread.name == _KILLER for thread in threading.enumerate()):
        return True
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # multiprocessing passed the parent's id on, so it is right even if the parent is gone
    threading.Thread(target=_watch, args=[parent.pid], name=_KILLER, daemon=True).start()
    return True


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_S)
    os.kill(os.getpid(), signal.SIGKILL)


def run_engine_core(*args: Any, **kwargs: Any) -> None:
    """Run vLLM's core, bound to its parent from the start. vLLM itself loads plugins only after
    it has heard from the parent, for which it waits five minutes. In a process that was forked,
    and not spawned, vLLM's own function is still replaced."""
    from vllm.v1.engine.core import EngineCoreProc

    die_with_parent()
    original(EngineCoreProc, "run_engine_core")(*args, **kwargs)
