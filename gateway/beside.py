"""Runs work beside other work: what is beside it ends with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager

from picospec.gateway.errors import first_error


@asynccontextmanager
async def beside(
    *meanwhile: Coroutine[None, None, object],
) -> AsyncGenerator[asyncio.TaskGroup]:
    """Run `meanwhile` until the body ends, and cancel it. Give the group of their tasks.

    The first error of any ends all, and is raised as itself.
    """
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(work) for work in meanwhile]
            yield tasks
            for task in running:
                task.cancel()
    except BaseExceptionGroup as errors:
        raise first_error(errors) from errors
