"""Runs work on untrusted input in processes that have limits and no secrets.

The input may make such a process slow, exhaust its memory or crash it. It gets no key or token
of the service, because its environment has only INHERITED. It imports the project's modules
wherever it is started, never a `models.py` in the working directory.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

INHERITED: Final = ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR", "TEMP", "TZ")
"""A process needs these variables to find programs and libraries, to write files, and to know
the time zone. Python does not start on Windows without SYSTEMROOT."""


def command(module: str) -> list[str]:
    """Return the command of a process that runs a module of the project."""
    return [sys.executable, "-P", "-m", module]


def environment() -> dict[str, str]:
    """Return the environment of a confined process."""
    folders = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = [str(Path(__file__).parents[1]), *filter(os.path.isabs, folders)]
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    return {**inherited, "PYTHONPATH": os.pathsep.join(paths)}


class Worker:
    """A process that runs a module of the project, and answers each line with one (`serve`).

    Only one thread at a time may use it. The process ends with this object at the latest.
    """

    def __init__(self, module: str) -> None:
        pipe, none = subprocess.PIPE, subprocess.DEVNULL
        self.process = subprocess.Popen(
            command(module), stdin=pipe, stdout=pipe, stderr=none, env=environment()
        )
        self.end = weakref.finalize(self, _end, self.process)
        """Kills the process, from any thread; a second call does nothing."""

    def ask(self, line: bytes, within_s: float, max_bytes: int) -> bytes:
        """Return the answer to a line. The answer may have at most `max_bytes`.

        Raises TimeoutError, or EOFError or OSError if the process ends or the answer is too
        long. The process is dead after an error.
        """
        began_s, overdue = time.monotonic(), threading.Timer(within_s, self.process.kill)
        overdue.start()
        try:
            if self.process.stdin is None or self.process.stdout is None:
                raise EOFError
            self.process.stdin.write(line + b"\n")
            self.process.stdin.flush()
            if not (answer := self.process.stdout.readline(max_bytes)).endswith(b"\n"):
                raise EOFError
        except BaseException as error:
            self.end()
            if isinstance(error, EOFError | OSError) and time.monotonic() - began_s >= within_s:
                raise TimeoutError(f"no answer within {within_s:g} s") from error
            raise
        finally:
            overdue.cancel()
        return answer


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    with suppress(OSError), process:  # closes its pipes, and waits for it
        pass


def serve(answer: Callable[[bytes], bytes]) -> None:
    """Answer each input line with one line, until the input ends."""
    for line in iter(sys.stdin.buffer.readline, b""):
        sys.stdout.buffer.write(answer(line) + b"\n")
        sys.stdout.buffer.flush()
