"""Edges that lie: each ends its own session, and harms nobody else."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from random import Random

import pytest

from picospec.speculation.messages import Draft, Pushed, Recovered, Redraw, RemoteProtocolError
from picospec.speculation.wire import Framed
from picospec.verifier.target import UnknownSession
from picospec.verifier.vllm_target.serving.target import VllmTarget
from tests.verifier.down import replies_of
from tests.verifier.vllm_target.conftest import ON_ENGINE
from tests.verifier.vllm_target.scripted import (
    DRAWN,
    GREEDY,
    PROMPTS,
    Script,
    drafted,
    gone,
    opening,
    plain,
)

pytestmark = ON_ENGINE

FLOOD_S = 30.0
LIES_PER_S = 200
LIES: tuple[Pushed, ...] = (
    Draft(1, 0, 0, (10**9,)),
    Draft(1, 0, 0, ()),
    Draft(1, 5000, 0, (5,)),
    Draft(1, 3, 90, (5,)),
    Recovered(1, 0, 5),
    Draft(1, 0, 0, (5,), q=(99,)),
    Draft(1, 0, 0, tuple(range(100))),
)
"""What no honest edge sends; tests of the session say why of each."""


async def test_a_lie_ends_its_own_session(target: VllmTarget) -> None:
    request = opening(target, PROMPTS[0], GREEDY, fill="never")

    async def tell() -> None:
        async with aclosing(replies_of(target, "liar", request)) as said:
            async for _ in said:
                await target.push("liar", Framed(LIES[0]))

    with pytest.raises(RemoteProtocolError, match="not a token"):
        await tell()
    await gone(target)


async def test_a_flood_of_lies_harms_nobody_else(target: VllmTarget) -> None:
    requests = [opening(target, prompt, DRAWN, max_tokens=40) for prompt in PROMPTS[:3]]
    oracles = [await plain(target, f"calm {i}", r) for i, r in enumerate(requests)]
    flood = asyncio.create_task(lie_for(target, FLOOD_S))

    answers = []
    while not flood.done():
        amid = len(answers)
        answers += await asyncio.gather(
            *(
                drafted(target, f"amid {amid} {i}", r, oracles[i].tokens, Script(wrong=0.2))
                for i, r in enumerate(requests)
            )
        )

    assert await flood > FLOOD_S * LIES_PER_S / 2
    expected = [oracle.tokens for oracle in oracles]
    assert [answer.tokens for answer in answers] == expected * (len(answers) // 3)
    await gone(target)


async def lie_for(target: VllmTarget, seconds: float) -> int:
    """Push LIES_PER_S random messages a second to sessions of its own; return how many.

    A machine that cannot keep up sends those that are due without a pause.
    """
    random, count, clock = Random(1), 0, asyncio.get_running_loop().time
    began = clock()
    request = opening(target, PROMPTS[0], GREEDY, max_tokens=20)
    while clock() < began + seconds:
        session = f"lying {count}"
        serving = asyncio.create_task(plain(target, session, request))
        await asyncio.sleep(0)
        for _ in range(20):
            message: Pushed = random.choice([*LIES, Redraw(1, 3, 1)])
            if random.random() < 0.5:
                tokens = tuple(random.randrange(49152) for _ in range(random.randint(1, 20)))
                message = Draft(random.randint(0, 9), random.randint(0, 30), 0, tokens)
            with suppress(RemoteProtocolError, UnknownSession):
                await target.push(session, Framed(message))
            count += 1
            await asyncio.sleep(max(0.0, began + count / LIES_PER_S - clock()))
        serving.cancel()
        await asyncio.wait([serving])
    return count
