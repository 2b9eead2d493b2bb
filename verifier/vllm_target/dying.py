"""Ends a process of vLLM's when the process that started it is gone.

A server that is killed outright cannot stop its engine, which would keep the device's memory
and has nothing to finish. So each process of the engine sends itself SIGKILL then, and has the
kernel do so (Linux only), which ends a process that is stopped, too.
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

POLL_S: Final = 0.5
"""The parent is looked for so often, in seconds: a process outlives it no longer."""

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_KILLER: Final = "picospec-die-with-parent"
STOCK: Final = "picospec_stock"
"""vLLM's own function has this name in a process that was forked from one that has ours."""


def die_with_parent() -> bool:
    """Bind this process to its parent.

    Return False, and do nothing, where multiprocessing did not start this process; a second
    call does nothing either.
    """
    if (parent := multiprocessing.parent_process()) is None:
        return False
    if any(thread.name == _KILLER for thread in threading.enumerate()):
        return True
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # the parent has passed its id on: it is right also where the parent is gone already
    threading.Thread(target=_watch, args=[parent.pid], name=_KILLER, daemon=True).start()
    return True


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_S)
    os.kill(os.getpid(), signal.SIGKILL)


def run_engine_core(*args: Any, **kwargs: Any) -> None:
    """Be vLLM's core, bound to its parent from the first step on. vLLM loads plugins only when
    it has heard from the parent, for which it waits five minutes."""
    from vllm.v1.engine.core import EngineCoreProc

    die_with_parent()
    getattr(EngineCoreProc, STOCK, EngineCoreProc.run_engine_core)(*args, **kwargs)


def bind_cores() -> None:
    """Have the cores that this process will start run ours; a second call does nothing."""
    from vllm.v1.engine.core import EngineCoreProc

    if EngineCoreProc.run_engine_core is not run_engine_core:
        setattr(EngineCoreProc, STOCK, staticmethod(EngineCoreProc.run_engine_core))
        EngineCoreProc.run_engine_core = staticmethod(run_engine_core)
