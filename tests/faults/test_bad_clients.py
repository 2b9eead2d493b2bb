"""Clients that go away, do not read, or send one request upon the other.

Meanwhile another client gets its answer as ever, and nothing is left of theirs.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from gateway.http import UNREAD_S
from tests.faults.rig.asking import BRIEF, KINDS, Answer
from tests.faults.rig.lines import lines
from tests.faults.rig.raw_client import RawClient, request
from tests.faults.rig.report import Report
from tests.faults.rig.world import World
from tests.faults.strikes import serves_again
from tests.local_models.chats import Json, user

pytestmark = [pytest.mark.faults, pytest.mark.asyncio(loop_scope="session")]

ENDLESS: Json = {
    "messages": [user("Count to one thousand.")], "stream": True, "temperature": 1, "seed": 3,
    "ignore_eos": True, "max_tokens": 400, "logprobs": True, "top_logprobs": 20,
}  # fmt: skip


async def beside(world: World, act: Callable[[], Awaitable[object]]) -> tuple[Answer, float]:
    """Return an answer that is generated while something is done, and its longest gap."""
    async with asyncio.timeout(120):
        answer, _ = await asyncio.gather(world.ask(KINDS["drawn"]), act())
    return answer, answer.gap_s()


async def test_clients_that_go_away_leave_nothing(
    world: World, undisturbed: dict[str, Answer], report: Report
) -> None:
    async def go_away() -> None:
        for _ in range(4):
            async with RawClient(world.edge.port) as client:
                await client.send(request(ENDLESS))
                await client.read(b'"content":"')

    answer, gap_s = await beside(world, go_away)
    gone_at = time.monotonic()
    await serves_again(world)

    note = f"nothing left after {time.monotonic() - gone_at:.1f} s"
    report.add("clients gone", "ended", gap_s, answer == undisturbed["drawn"], note)
    assert answer == undisturbed["drawn"]


async def test_a_client_that_does_not_read_delays_no_other(
    world: World, undisturbed: dict[str, Answer], report: Report
) -> None:
    """When it reads at last, its answer is complete, or was ended; nothing is held for it."""
    ended = b""

    async def read_late() -> None:
        nonlocal ended
        async with RawClient(world.edge.port, room_bytes=4096) as client:
            await client.send(request(ENDLESS))
            await client.read(b'"content":"', max_bytes=512)
            await asyncio.sleep(4.0)
            ended = await client.read(b"[DONE]")

    answer, gap_s = await beside(world, read_late)
    await serves_again(world)

    same = answer == undisturbed["drawn"]
    report.add("client reads after 4 s", "complete", gap_s, same)
    assert b"[DONE]" in ended
    assert same


@pytest.mark.long
async def test_a_client_that_never_reads_holds_nothing_for_long(
    world: World, report: Report
) -> None:
    async with RawClient(world.edge.port, room_bytes=4096) as client:
        await client.send(request(ENDLESS))
        await client.read(b'"content":"', max_bytes=512)
        begun = time.monotonic()
        await asyncio.sleep(UNREAD_S)
        await serves_again(world)
        seconds = time.monotonic() - begun

    report.add("client never reads", "cut", note=f"nothing left after {seconds:.0f} s")


@pytest.mark.parametrize("end", ["edge", "verifier"])
async def test_pipelined_requests_are_answered_in_their_order(
    world: World, report: Report, end: str
) -> None:
    service = world.edge if end == "edge" else world.verifiers[0]
    colours = [{**BRIEF, "max_tokens": n} for n in (3, 1, 2)]
    one_by_one = [(await _post(world, service.url, body)) for body in colours]

    begun = time.monotonic()
    async with asyncio.timeout(30), lines(service.port, 1, Counter()) as (line,):
        (await line.connect()).write(b"".join(map(request, colours)))
        bodies = [(await line.read())[1] for _ in colours]
    together = [_text(json.loads(body)) for body in bodies]

    seconds = time.monotonic() - begun
    report.add(f"pipelining at the {end}", "in order", seconds, together == one_by_one)
    assert together == one_by_one


async def _post(world: World, url: str, body: Json) -> Json:
    response = await world.http.post(f"{url}/v1/chat/completions", json=body)
    return _text(response.json())


def _text(answer: Json) -> Json:
    (choice,) = answer["choices"]
    usage = {**answer["usage"], "prompt_tokens_details": None}  # which a cache decides
    return {"message": choice["message"], "usage": usage}
