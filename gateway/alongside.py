"""Runs a piece of work, and another one for as long as that lasts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import TypeVar

from picospec.gateway.errors import first_error

T = TypeVar("T")


async def alongside(meanwhile: Coroutine[None, None, object], work: Awaitable[T]) -> T:
    """Return what `work` returns. Run `meanwhile` until then, and cancel it.

    The first error of either ends both, and is raised as itself.
    """
    try:
        async with asyncio.TaskGroup() as tasks:
            beside = tasks.create_task(meanwhile)
            result = await work
            beside.cancel()
    except BaseExceptionGroup as errors:
        raise first_error(errors) from errors
    return result
