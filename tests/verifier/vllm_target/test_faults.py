"""Clients that leave, ask too much or lie: each ends its own session, the engine lives, and
nothing stays behind.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from dataclasses import replace
from random import Random

import pytest

from speculation.errors import RemoteProtocolError
from speculation.messages import Commit, Draft, Pushed, Recovered, Redraw, Reject
from speculation.wire import Framed
from tests.guards import GUARD_S
from tests.verifier.down import begun, replies_of
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
    served,
)
from verifier.target import TargetFull, UnknownSession
from verifier.vllm_target.serving.target import VllmTarget

pytestmark = ON_ENGINE


async def test_a_client_that_leaves_while_its_session_is_held_frees_it(
    target: VllmTarget,
) -> None:
    request = opening(target, PROMPTS[0], GREEDY, fill="never")

    async with aclosing(replies_of(target, "held", request)) as messages:
        await anext(messages)

    await gone(target)
    with pytest.raises(UnknownSession):
        await target.push("held", Framed(Draft(1, 1, 0, (5,))))


async def test_a_client_that_leaves_while_its_prompt_is_read_frees_it(
    target: VllmTarget,
) -> None:
    request = replace(opening(target, PROMPTS[0], GREEDY), prompt=tuple(range(100, 300)))
    request = replace(request, prompt=request.prompt[:190])

    running = asyncio.create_task(plain(target, "prefilling", request))
    await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.wait([running])

    await gone(target)


async def test_a_client_that_leaves_while_its_recovered_token_is_awaited_frees_it(
    target: VllmTarget,
) -> None:
    request = opening(target, PROMPTS[0], DRAWN, judge="separate", fill="never")

    async with aclosing(replies_of(target, "awaited", request)) as messages:
        async for reply in messages:
            message = reply.message
            if isinstance(message, Commit):
                await target.push("awaited", Framed(Draft(1, 1, 0, (7,), q=(65536,))))
            if isinstance(message, Reject):
                break

    await gone(target)


async def test_an_answer_may_fill_the_whole_context(target: VllmTarget) -> None:
    request = opening(target, PROMPTS[0], GREEDY)
    room = target.facts.context_tokens - len(request.prompt)
    request = replace(request, max_tokens=room)
    expected = (await plain(target, "whole plain", request)).tokens

    answer = await drafted(target, "whole", request, expected, Script(wrong=0.1))

    assert len(expected) == room
    assert answer.tokens == expected


async def test_held_sessions_make_way_for_one_that_needs_their_room(
    target: VllmTarget,
) -> None:
    long = opening(target, PROMPTS[1], GREEDY, max_tokens=200)
    expected = (await plain(target, "alone", long)).tokens
    idle = opening(target, PROMPTS[0], GREEDY, fill="never")
    holding = [  # two blocks each, of the seventeen
        asyncio.create_task(plain(target, f"idle {i}", replace(idle, prompt=(i + 5,) * 130)))
        for i in range(8)
    ]
    try:
        await served(target, len(holding), 60.0)
        before = (await target.figures())["preemptions"]

        async with asyncio.timeout(GUARD_S):
            answer = await plain(target, "needs room", long)

        assert answer.tokens == expected
        assert (await target.figures())["preemptions"] > before
    finally:
        for task in holding:
            task.cancel()
        await asyncio.wait(holding)
        await gone(target)


async def test_a_session_too_many_is_turned_away(target: VllmTarget) -> None:
    request = opening(target, PROMPTS[0], GREEDY, fill="never")
    holding = [asyncio.create_task(plain(target, f"holding {i}", request)) for i in range(16)]
    await asyncio.sleep(0.1)

    with pytest.raises(TargetFull):
        await plain(target, "too many", request)

    for task in holding:
        task.cancel()
    await asyncio.wait(holding)
    await gone(target)


# Edges that lie: each ends its own session, and harms nobody else.


LYING = 20
"""So many sessions get twenty lies each; with --long, ten times as many."""

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


async def test_a_flood_of_lies_harms_nobody_else(target: VllmTarget, is_long: bool) -> None:
    requests = [opening(target, prompt, DRAWN, max_tokens=40) for prompt in PROMPTS[:3]]
    oracles = [await plain(target, f"calm {i}", r) for i, r in enumerate(requests)]
    flood = asyncio.create_task(lie(target, LYING * (10 if is_long else 1)))

    answers = []
    while not flood.done():
        amid = len(answers)
        answers += await asyncio.gather(
            *(
                drafted(target, f"amid {amid} {i}", r, oracles[i].tokens, Script(wrong=0.2))
                for i, r in enumerate(requests)
            )
        )

    await flood
    expected = [oracle.tokens for oracle in oracles]
    assert [answer.tokens for answer in answers] == expected * (len(answers) // 3)
    await gone(target)


async def lie(target: VllmTarget, sessions: int) -> None:
    """Push twenty random messages to each of so many sessions, while the engine serves it."""
    random = Random(1)
    request = opening(target, PROMPTS[0], GREEDY, max_tokens=20)
    for number in range(sessions):
        session = f"lying {number}"
        serving = asyncio.create_task(plain(target, session, request))
        await begun()
        for _ in range(20):
            message: Pushed = random.choice([*LIES, Redraw(1, 3, 1)])
            if random.random() < 0.5:
                tokens = tuple(random.randrange(49152) for _ in range(random.randint(1, 20)))
                message = Draft(random.randint(0, 9), random.randint(0, 30), 0, tokens)
            with suppress(RemoteProtocolError, UnknownSession):
                await target.push(session, Framed(message))
        await target.figures()  # the engine has read them
        serving.cancel()
        await asyncio.wait([serving])
