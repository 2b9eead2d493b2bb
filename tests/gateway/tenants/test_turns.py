"""Work that is shared out among owners: in turn, never all places to one, none lost."""

from __future__ import annotations

import asyncio
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picospec.gateway.errors import Overloaded
from picospec.gateway.turns import ThreadTurns, Turns


@given(
    places=st.integers(1, 4),
    asked=st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=24),
)
def test_all_are_served_in_turn_and_nobody_has_all_places(
    places: int, asked: list[tuple[str, bool]]
) -> None:
    """asked: whose work it is, and whether it is given up before its turn."""

    async def run() -> None:
        turns, running, served = Turns(places, 24, "wait"), list[str](), list[str]()

        async def work(owner: str) -> None:
            async with turns.take(owner):
                running.append(owner)
                assert len(running) <= places
                assert running.count(owner) <= max(1, places - 1)
                try:
                    await asyncio.sleep(0)
                    served.append(owner)
                finally:
                    running.remove(owner)

        tasks = [asyncio.create_task(work(owner)) for owner, _ in asked]
        await asyncio.sleep(0)
        for task, (_, leaves) in zip(tasks, asked, strict=True):
            if leaves:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

        assert len(served) >= sum(not leaves for _, leaves in asked)
        async with asyncio.timeout(1):  # no place was lost
            async with turns.take("d"):
                pass

    asyncio.run(run())


async def test_one_who_waits_with_much_is_served_after_each_other() -> None:
    turns, served = Turns(1, 8, "wait"), []

    async def work(owner: str) -> None:
        async with turns.take(owner):
            served.append(owner)
            await asyncio.sleep(0)

    await asyncio.gather(*(work(owner) for owner in "aaaaabc"))

    assert "".join(served) == "aabcaaa"


async def test_work_that_is_given_up_waits_no_longer() -> None:
    turns = Turns(1, 1, "wait")

    async def work() -> None:
        async with turns.take("a"):
            pass

    async with turns.take("a"):
        for _ in range(3):
            waits = asyncio.create_task(work())
            await asyncio.sleep(0)
            waits.cancel()
            await asyncio.wait([waits])
            assert waits.cancelled()


async def test_too_much_of_one_owner_is_refused_and_another_is_let_in() -> None:
    turns = Turns(1, 1, "prompts wait to be read")

    async def work(owner: str) -> None:
        async with turns.take(owner):
            pass

    async with turns.take("a"):
        waits = asyncio.create_task(work("a"))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="1 prompts wait to be read"):
            await work("a")
        other = asyncio.create_task(work("b"))
    await asyncio.gather(waits, other)


async def test_a_thread_keeps_its_place_when_nobody_waits_for_it_any_more() -> None:
    turns, goes_on = ThreadTurns(1, 4, "wait"), threading.Event()
    first = asyncio.create_task(turns.run("a", goes_on.wait))
    await asyncio.sleep(0)
    second = asyncio.create_task(turns.run("b", lambda: 2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0.05)
    assert not second.done()

    goes_on.set()

    assert await second == 2
