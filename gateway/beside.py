"""Runs background work that ends together with the body of a context manager."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager

from picospec.gateway.errors import first_error


@asynccontextmanager
async def beside(
    *meanwhile: Coroutine[None, None, object],
) -> AsyncGenerator[asyncio.TaskGroup]:
    """Run `meanwhile` until the body ends, then cancel it. Yields the tasks' TaskGroup.

    The first error of the body or of a task ends all, and is raised without its group.
    """
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(work) for work in meanwhile]
            yield tasks
            for task in running:
                task.cancel()
    except BaseExceptionGroup as errors:
        raise first_error(errors) from errors
