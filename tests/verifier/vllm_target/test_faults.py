"""Clients that leave, lie or ask too much: the engine lives, and nothing stays behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing, suppress
from dataclasses import replace
from random import Random

import pytest

from speculation.errors import RemoteProtocolError
from speculation.messages import Commit, Draft, Open, Pushed, Redraw, Refuse
from tests.verifier.vllm_target.conftest import ON_ENGINE
from tests.verifier.vllm_target.scripted import (
    DRAWN,
    GREEDY,
    PROMPTS,
    Script,
    drafted,
    opening,
    plain,
)
from verifier.target import TargetFull, UnknownSession
from verifier.vllm_target.target import VllmTarget

pytestmark = ON_ENGINE


async def seated(target: VllmTarget, count: int, within_s: float) -> None:
    """Wait until the engine has so many sessions."""
    async with asyncio.timeout(within_s):
        while (await target.figures())["sessions"] != count:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.02)


async def gone(target: VllmTarget, within_s: float = 20.0) -> None:
    """Wait until the engine has no session left."""
    await seated(target, 0, within_s)


async def leave_after(
    target: VllmTarget, session: str, request: Open, enough: Callable[[object], bool]
) -> None:
    async with aclosing(target.serve(session, request)) as said:
        async for message in said:
            if enough(message):
                return


async def test_a_client_that_leaves_while_its_session_is_held_frees_it(
    target: VllmTarget,
) -> None:
    request = opening(target, PROMPTS[0], GREEDY, fill="never")

    await leave_after(target, "held", request, lambda message: True)

    await gone(target)
    with pytest.raises(UnknownSession):
        await target.push("held", Draft(1, 1, 0, (5,)))


async def test_a_client_that_leaves_while_its_drafts_are_verified_frees_it(
    target: VllmTarget,
) -> None:
    request = opening(target, PROMPTS[0], GREEDY, max_tokens=200)
    oracle = (await plain(target, "verified plain", request)).tokens
    running = asyncio.create_task(
        drafted(target, "verified", request, oracle, Script(wrong=0.2))
    )
    await asyncio.sleep(0.5)

    running.cancel()
    await asyncio.wait([running])

    await gone(target)


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


async def test_a_client_that_leaves_while_its_replacement_is_awaited_frees_it(
    target: VllmTarget,
) -> None:
    request = opening(target, PROMPTS[0], DRAWN, judge="separate", fill="never")

    async with aclosing(target.serve("awaited", request)) as said:
        async for message in said:
            if isinstance(message, Commit):
                await target.push("awaited", Draft(1, 1, 0, (7,), q=(65536,)))
            if isinstance(message, Refuse):
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


async def test_sessions_without_room_for_their_kv_are_preempted_and_say_the_same(
    target: VllmTarget,
) -> None:
    requests = [opening(target, prompt, DRAWN, max_tokens=150) for prompt in PROMPTS[:4]]
    oracles = await asyncio.gather(
        *(plain(target, f"roomy {i}", request) for i, request in enumerate(requests))
    )
    before = (await target.figures())["preemptions"]

    answers = await asyncio.gather(
        *(
            drafted(
                target,
                f"crowded {i}",
                requests[i % 4],
                oracles[i % 4].tokens,
                Script(wrong=0.1, seed=i),
            )
            for i in range(14)
        )
    )

    assert (await target.figures())["preemptions"] > before
    for i, answer in enumerate(answers):
        assert answer.tokens == oracles[i % 4].tokens
    await gone(target)


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
        await seated(target, len(holding), 60.0)
        before = (await target.figures())["preemptions"]

        async with asyncio.timeout(180.0):
            answer = await plain(target, "needs room", long)

        assert answer.tokens == expected
        assert (await target.figures())["preemptions"] > before
    finally:
        for task in holding:
            task.cancel()
        await asyncio.wait(holding)
        await gone(target)


async def test_drafts_sent_right_after_the_opening_are_not_lost(target: VllmTarget) -> None:
    request = opening(target, PROMPTS[0], GREEDY, max_tokens=9, fill="never")
    expected = (await plain(target, "early plain", replace(request, fill="auto"))).tokens

    def judged(message: object) -> bool:
        return isinstance(message, Commit) and message.start > 0

    asking = asyncio.create_task(leave_after(target, "early", request, judged))
    await asyncio.sleep(0)

    await target.push("early", Draft(1, 0, 0, tuple(expected[:8])))

    await asyncio.wait_for(asking, 20.0)  # without drafts it would say one token, and wait
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


FLOOD_S = 30.0
LIES_PER_S = 200
LIES = {
    "a token that is none": Draft(1, 0, 0, (10**9,)),
    "no tokens": Draft(1, 0, 0, ()),
    "far ahead": Draft(1, 5000, 0, (5,)),
    "a chain from nowhere": Draft(1, 3, 90, (5,)),
    "a forced token nobody awaits": Draft(1, 0, 0, (5,), q=(), forced=True),
    "q in a coupled session": Draft(1, 0, 0, (5,), q=(99,)),
    "more than is kept": Draft(1, 0, 0, tuple(range(100))),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
async def test_a_lie_ends_its_own_session(target: VllmTarget, lie: Draft) -> None:
    request = opening(target, PROMPTS[0], GREEDY, fill="never")

    async def tell() -> None:
        async with aclosing(target.serve("liar", request)) as said:
            async for _ in said:
                await target.push("liar", lie)

    with pytest.raises(RemoteProtocolError):
        await tell()
    await gone(target)


@pytest.mark.parametrize("token", [49152, 2**40])
async def test_a_forced_token_that_cannot_be_is_refused(target: VllmTarget, token: int) -> None:
    request = opening(target, PROMPTS[0], DRAWN, judge="separate", fill="never")

    async def forge() -> None:
        async with aclosing(target.serve("forger", request)) as said:
            async for message in said:
                if isinstance(message, Commit):
                    await target.push("forger", Draft(1, 1, 0, (7,), q=(65536,)))
                if isinstance(message, Refuse):
                    await target.push("forger", Draft(2, 1, 0, (token,), q=(), forced=True))

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
            message: Pushed = random.choice([*LIES.values(), Redraw(1, 3)])
            if random.random() < 0.5:
                tokens = tuple(random.randrange(49152) for _ in range(random.randint(1, 20)))
                message = Draft(random.randint(0, 9), random.randint(0, 30), 0, tokens)
            with suppress(RemoteProtocolError, UnknownSession):
                await target.push(session, message)
            count += 1
            await asyncio.sleep(max(0.0, began + count / LIES_PER_S - clock()))
        serving.cancel()
        await asyncio.wait([serving])
    return count
