"""An event loop that stands still for longer than a stream may be silent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.link.session import SILENCE_S, EdgeSession
from edge_agent.metrics import EdgeMetrics
from gateway.errors import Unavailable
from speculation import wire
from speculation.messages import Finish, Limits, Opened
from tests.edge_agent.processes import Process
from tests.edge_agent.test_verifier import everything, request, verifier_at
from tests.edge_agent.virtual import RTT_S, TEXT, FakeVerifier, World, run
from tests.virtual_time import compute

STALL_S = SILENCE_S + 0.4


@pytest.mark.system
async def test_what_came_meanwhile_is_read(process: Process, metrics: EdgeMetrics) -> None:
    verifier = verifier_at(process.url, metrics)
    asyncio.get_running_loop().call_later(0.3, time.sleep, STALL_S)

    messages = await everything(verifier, request(max_tokens=100))

    assert isinstance(messages[-1], Finish)
    assert verifier.is_ready


async def read(metrics: EdgeMetrics, silent_s: float) -> Finish | None:
    """Read a stream that stops for a while at its beginning, where the loop stands still."""

    async def pieces() -> AsyncIterator[bytes]:
        yield wire.encode(Opened("a" * 12, Limits()))
        await asyncio.sleep(silent_s)
        yield wire.encode(Finish("length"))

    session = EdgeSession(verifier_at("http://127.0.0.1:9", metrics), request())
    asyncio.get_running_loop().call_later(0.1, compute, STALL_S)
    async for message in session._messages(pieces()):
        if isinstance(message, Finish):
            return message
        session._note(message)
    return None


async def test_what_comes_right_after_it_is_read(metrics: EdgeMetrics) -> None:
    assert await read(metrics, SILENCE_S + 0.1)


async def test_a_stream_that_stays_silent_is_lost(metrics: EdgeMetrics) -> None:
    begun = time.monotonic()

    with pytest.raises(TimeoutError):
        await read(metrics, 10.0)

    assert time.monotonic() - begun < 0.1 + STALL_S + 2 * SILENCE_S


# Whatever happens to verifiers and links, an answer is the target's text, up to one error.

Fault = Callable[[FakeVerifier], Awaitable[None] | None]


async def inject(fault: Fault, verifier: FakeVerifier) -> None:
    if (going_on := fault(verifier)) is not None:
        await going_on


async def fall_silent(verifier: FakeVerifier) -> None:
    verifier.silent = True
    await asyncio.sleep(3.0)
    verifier.silent = False


async def restart(verifier: FakeVerifier) -> None:
    verifier.kill()
    await asyncio.sleep(4.0)
    verifier.up = True


async def drain(verifier: FakeVerifier) -> None:
    verifier.draining = True
    await asyncio.sleep(6.0)
    verifier.draining = False
    verifier.run += 1


LINK: tuple[Fault, ...] = (FakeVerifier.cut, fall_silent)
PROCESS: tuple[Fault, ...] = (restart, drain)


async def inject_many(world: World, seed: int, faults: tuple[Fault, ...], number: int) -> None:
    """Inject this many faults into any verifiers within twenty seconds."""
    chance = Random(seed)
    await asyncio.sleep(3 * RTT_S)  # an answer that has not begun waits for nothing
    async with asyncio.TaskGroup() as tasks:
        for _ in range(number):
            await asyncio.sleep(chance.uniform(0.0, 20.0 / number))
            tasks.create_task(inject(chance.choice(faults), chance.choice(world.verifiers)))


class Carrying(World):
    carries = True


WORLDS = st.builds(
    lambda kind, count: kind(count), st.sampled_from([World, Carrying]), st.integers(1, 3)
)


async def answered(world: World, seed: int, faults: tuple[Fault, ...], number: int) -> object:
    """Return the text, or the error and what came before it."""
    text: list[int] = []
    async with asyncio.TaskGroup() as tasks:
        meanwhile = tasks.create_task(inject_many(world, seed, faults, number))
        try:
            await world.answer(text)
        except Unavailable as error:
            assert text == TEXT[: len(text)]
            return error
        finally:
            await meanwhile
    assert not any(verifier.sessions for verifier in world.verifiers)
    return text


@given(st.integers(0, 2**32), WORLDS, st.integers(1, 12))
@settings(max_examples=100, deadline=None)
def test_what_befalls_links_costs_time_alone(seed: int, world: World, number: int) -> None:
    assert run(answered(world, seed, LINK, number)) == TEXT


@given(st.integers(0, 2**32), WORLDS, st.integers(1, 8))
@settings(max_examples=100, deadline=None)
def test_what_befalls_processes_costs_time_or_one_error(
    seed: int, world: World, number: int
) -> None:
    found = run(answered(world, seed, (*LINK, *PROCESS), number))

    assert found == TEXT or "3 verifiers were lost at one token" in str(found)
