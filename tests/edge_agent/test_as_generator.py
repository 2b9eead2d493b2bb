"""A coroutine that emits, read as a generator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

import pytest

from picospec.edge_agent.engine import QUEUE_ITEMS, as_generator

Emit = Callable[[int], Awaitable[None]]


async def test_it_yields_in_order_and_ends_with_the_work() -> None:
    async def work(emit: Emit) -> None:
        for i in range(QUEUE_ITEMS * 3):
            await emit(i)

    assert [i async for i in as_generator(work)] == list(range(QUEUE_ITEMS * 3))
    assert len(asyncio.all_tasks()) == 1


async def test_an_error_comes_after_what_was_emitted_before_it() -> None:
    async def work(emit: Emit) -> None:
        await emit(1)
        raise LookupError("gone")

    got: list[int] = []

    async def read() -> None:
        async for i in as_generator(work):
            got.append(i)

    with pytest.raises(LookupError, match="gone"):
        await read()
    assert got == [1]


async def test_closing_it_early_cancels_the_work_and_waits_for_its_end() -> None:
    ended: list[str] = []

    async def work(emit: Emit) -> None:
        try:
            while True:
                await emit(1)
        finally:
            await asyncio.sleep(0)
            ended.append("yes")

    generator: AsyncGenerator[int] = as_generator(work)
    async with aclosing(generator):
        await anext(generator)

    assert ended == ["yes"]
    assert len(asyncio.all_tasks()) == 1


async def test_a_slow_reader_holds_the_work_back() -> None:
    emitted = 0

    async def work(emit: Emit) -> None:
        nonlocal emitted
        while True:
            await emit(emitted)
            emitted += 1

    generator: AsyncGenerator[int] = as_generator(work)
    async with aclosing(generator):
        await anext(generator)
        for _ in range(50):
            await asyncio.sleep(0)

    assert emitted <= QUEUE_ITEMS + 1
