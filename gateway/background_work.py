"""No error of background work is lost: it is logged, makes the work begin again, or ends the
body beside it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Final, TypeVar

import structlog

from gateway.errors import ApiError, first_error

Result = TypeVar("Result")

AGAIN_S: Final = 1.0
"""Background work that has failed begins again after this time."""


async def kept_going(work: Callable[[], Awaitable[None]]) -> None:
    """Do a service's background work, and again after an exception, which is logged: without
    the work the service would be half dead and not know it."""
    while True:
        try:
            return await work()
        except Exception:
            name = getattr(work, "__qualname__", str(work))
            structlog.get_logger("gateway").exception("background_failed", work=name)
        await asyncio.sleep(AGAIN_S)


def start(work: Coroutine[None, None, Result]) -> asyncio.Task[Result]:
    """Begin a task of a service. An exception that ends it is logged then, whether anybody
    awaits it or not; an ApiError is for those who do."""
    task = asyncio.create_task(work)
    task.add_done_callback(_see)
    return task


def _see(task: asyncio.Task[Result]) -> None:
    if task.cancelled() or isinstance(error := task.exception(), ApiError | None):
        return
    log = structlog.get_logger("gateway")
    log.error("task_failed", work=getattr(task.get_coro(), "__qualname__", ""), exc_info=error)


@asynccontextmanager
async def running_alongside(
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
