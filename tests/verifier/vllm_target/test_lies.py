"""Edges that lie: each ends its own session, and harms nobody else."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from random import Random

import pytest

from picospec.speculation.protocol.errors import RemoteProtocolError
from picospec.speculation.protocol.messages import (
    Commit,
    Draft,
    Pushed,
    Recovered,
    Redraw,
    Reject,
)
from picospec.speculation.protocol.wire import Framed
from picospec.verifier.target import UnknownSession
from picospec.verifier.vllm_target.serving.target import VllmTarget
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
LIES: dict[str, Pushed] = {
    "a token that is none": Draft(1, 0, 0, (10**9,)),
    "no tokens": Draft(1, 0, 0, ()),
    "far ahead": Draft(1, 5000, 0, (5,)),
    "a chain from nowhere": Draft(1, 3, 90, (5,)),
    "a recovered token nobody awaits": Recovered(1, 0, 5),
    "q in a coupled session": Draft(1, 0, 0, (5,), q=(99,)),
    "more than is kept": Draft(1, 0, 0, tuple(range(100))),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
async def test_a_lie_ends_its_own_session(target: VllmTarget, lie: Pushed) -> None:
    request = opening(target, PROMPTS[0], GREEDY, fill="never")

    async def tell() -> None:
        async with aclosing(target.serve("liar", request)) as said:
            async for _ in said:
                await target.push("liar", Framed(lie))

    with pytest.raises(RemoteProtocolError):
        await tell()
    await gone(target)


@pytest.mark.parametrize("token", [49152, 2**40])
async def test_a_wrong_recovered_token_is_refused(target: VllmTarget, token: int) -> None:
    request = opening(target, PROMPTS[0], DRAWN, judge="separate", fill="never")

    async def forge() -> None:
        async with aclosing(target.serve("forger", request)) as said:
            async for reply in said:
                message = reply.message
                if isinstance(message, Commit):
                    await target.push("forger", Framed(Draft(1, 1, 0, (7,), q=(65536,))))
                if isinstance(message, Reject):
                    await target.push("forger", Framed(Recovered(2, 1, token)))

    with pytest.raises(RemoteProtocolError):
        await forge()
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
            message: Pushed = random.choice([*LIES.values(), Redraw(1, 3, 1)])
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
