"""A service as it is shipped, which also breaks when a test orders it, and tells of its tasks.

    python -m tests.faults.rig.breakable ORDER verifier|edge_agent OPTIONS...

ORDER is a file. When it exists, the verifier's next pass removes it, and fails.
At SIGUSR2 the names of the tasks that run are written to ORDER.tasks.
"""

from __future__ import annotations

import asyncio
import importlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, ModuleType

from fastapi import FastAPI

from verifier.settings import VerifierSettings


def break_passes(order: Path) -> None:
    """Have every later pass of this process look at the order."""
    from local_models.errors import DecodeFailed  # in the worker alone, as the service does
    from local_models.llama_cpp.model import Context
    from local_models.llama_cpp.segments import Segment

    decode = Context.decode

    def breakable(context: Context, segments: Sequence[Segment]) -> None:
        if order.exists():
            order.unlink()
            raise DecodeFailed("the test ordered it")
        decode(context, segments)

    Context.decode = breakable  # type: ignore[method-assign]


def tell_tasks(file: Path) -> None:
    """Write the names of the running tasks to a file, at SIGUSR2."""

    def tell(_signal: int, _frame: FrameType | None) -> None:
        try:
            tasks = asyncio.all_tasks()
        except RuntimeError:  # the server's first process, which has no event loop
            return
        file.write_text("\n".join(sorted(repr(task.get_coro()) for task in tasks)))

    signal.signal(signal.SIGUSR2, tell)


def main(order: Path, name: str) -> None:
    tell_tasks(order.with_suffix(".tasks"))
    service: ModuleType = importlib.import_module(f"{name}.__main__")
    if name == "verifier":
        make = service._app

        def broken(settings: VerifierSettings) -> FastAPI:
            break_passes(order)
            return make(settings)

        service._app = broken
    service.app()


if __name__ == "__main__":
    file, name, *options = sys.argv[1:]
    sys.argv[1:] = options
    main(Path(file), name)
