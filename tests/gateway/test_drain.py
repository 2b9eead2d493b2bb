"""A service that drains refuses new answers, and lets those that run finish for a while."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from picospec.gateway.drain import Drain
from tests.gateway.scripted import (
    MODEL,
    Body,
    ScriptedEngine,
    ask,
    client_of,
    door_of,
    events_of,
    make_app,
)

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
STREAM = CHAT | {"stream": True}


@asynccontextmanager
async def running(
    drain: Drain, finish: asyncio.Event
) -> AsyncIterator[tuple[ScriptedEngine, list[asyncio.Task[httpx.Response]]]]:
    """Give an engine and two answers of it, one streamed, that go on when `finish` is set."""
    begun = asyncio.Semaphore(0)

    async def pause() -> None:
        begun.release()
        await finish.wait()

    engine = ScriptedEngine(pause=pause)
    async with client_of(make_app(engine, drain=drain)) as client:
        asked = [client.post("/v1/chat/completions", json=body) for body in (CHAT, STREAM)]
        answers = [asyncio.create_task(each) for each in asked]
        for _ in answers:
            await begun.acquire()
        yield engine, answers


@pytest.mark.parametrize("body", [CHAT, STREAM, {"prompt": "Hi"}])
async def test_a_new_answer_is_refused_and_the_client_told_when_to_ask_again(
    body: Body,
) -> None:
    drain, engine = Drain(), ScriptedEngine()
    async with client_of(make_app(engine, drain=drain)) as client:
        drain.begin(60.0)
        assert drain.over.is_set()  # there is no work to wait for
        answer = await client.post(door_of(body), json=body)
        ready, health = await client.get("/ready"), await client.get("/health")

    assert not engine.jobs
    for refused in (answer, ready):
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["error"]["code"] == "draining"
    assert health.status_code == 200


async def test_an_answer_that_runs_finishes_and_then_draining_is_over() -> None:
    drain, finish = Drain(), asyncio.Event()
    async with running(drain, finish) as (_, answers):
        drain.begin(60.0)
        await asyncio.sleep(0)
        assert not drain.over.is_set()

        finish.set()
        whole, streamed = await asyncio.gather(*answers)

    assert drain.over.is_set()
    assert whole.json()["choices"][0]["message"]["content"] == "Hi there"
    assert streamed.text.endswith("data: [DONE]\n\n")


async def test_an_answer_that_is_cut_off_says_so_and_closes_its_generator() -> None:
    drain = Drain()
    async with running(drain, asyncio.Event()) as (engine, answers), asyncio.timeout(5):
        drain.begin(0.01)
        await drain.over.wait()
        await drain.cut()
        whole, streamed = [answer.result() for answer in answers]

    for _ in answers:
        await engine.closed.acquire()
    last = events_of(streamed.text)[-1]
    assert (whole.status_code, streamed.status_code) == (503, 200)
    for error in (whole.json()["error"], last["error"]):
        assert error["code"] == "shutting_down"
        assert "before the answer was complete" in error["message"]
    assert "[DONE]" not in streamed.text


async def test_a_timeout_of_the_engines_own_is_no_end_of_draining() -> None:
    engine = ScriptedEngine((), then=TimeoutError("slow"))
    assert (await ask(CHAT, engine)).status_code == 500
