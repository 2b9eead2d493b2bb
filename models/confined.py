"""Processes for work on what comes from outside: within limits, and without a secret.

What such a process reads may take any time and memory, or crash it. It gets no key and no token
of the service, because its environment has only INHERITED. It imports the project's modules
wherever it is started: a `models.py` in the working directory is not taken for one of them.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

INHERITED: Final = ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "TZ")
"""A process needs these to find programs and libraries, to write files, and to know the
time."""


def command(module: str) -> list[str]:
    """Return the command of a process that runs a module of the project."""
    return [sys.executable, "-P", "-m", module]


def environment() -> dict[str, str]:
    """Return the environment of such a process."""
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = [str(Path(__file__).parents[2]), *filter(os.path.isabs, given)]
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    return {**inherited, "PYTHONPATH": os.pathsep.join(paths)}


def limit_memory(most_bytes: int) -> None:
    """Limit the address space of this process, where the system has such a limit."""
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))


@contextmanager
def limited_cpu(most_s: float) -> Iterator[None]:
    """Have the system end this process if the body takes more processor time."""
    signal.setitimer(signal.ITIMER_PROF, most_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
