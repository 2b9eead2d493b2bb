"""A service that drains refuses new answers, and lets those that run finish for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

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


class Running:
    """Answers that have begun, and go on when `finish` is set."""

    def __init__(self, drain: Drain, bodies: Iterable[Body]) -> None:
        self.finish = asyncio.Event()
        self.engine = ScriptedEngine(pause=self._pause)
        self.client = client_of(make_app(self.engine, drain=drain))
        self._begun = asyncio.Semaphore(0)
        self._bodies = list(bodies)

    async def _pause(self) -> None:
        self._begun.release()
        await self.finish.wait()

    async def __aenter__(self) -> list[asyncio.Task[httpx.Response]]:
        tasks = [
            asyncio.create_task(self.client.post("/v1/chat/completions", json=body))
            for body in self._bodies
        ]
        for _ in tasks:
            await self._begun.acquire()
        return tasks

    async def __aexit__(self, *_: object) -> None:
        await self.client.aclose()


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
    drain = Drain()
    running = Running(drain, [CHAT, STREAM])
    async with running as answers:
        drain.begin(60.0)
        await asyncio.sleep(0)
        assert not drain.over.is_set()

        running.finish.set()
        whole, streamed = await asyncio.gather(*answers)

    assert drain.over.is_set()
    assert whole.json()["choices"][0]["message"]["content"] == "Hi there"
    assert streamed.text.endswith("data: [DONE]\n\n")


async def test_an_answer_that_is_cut_off_says_so_and_closes_its_generator() -> None:
    drain = Drain()
    running = Running(drain, [CHAT, STREAM])
    async with running as answers, asyncio.timeout(5):
        drain.begin(0.01)
        await drain.over.wait()
        await drain.cut()
        whole, streamed = [answer.result() for answer in answers]

    for _ in answers:
        await running.engine.closed.acquire()
    last = events_of(streamed.text)[-1]
    assert (whole.status_code, streamed.status_code) == (503, 200)
    for error in (whole.json()["error"], last["error"]):
        assert error["code"] == "shutting_down"
        assert "before the answer was complete" in error["message"]
    assert "[DONE]" not in streamed.text


async def test_a_timeout_of_the_engines_own_is_no_end_of_draining() -> None:
    engine = ScriptedEngine((), then=TimeoutError("slow"))
    assert (await ask(CHAT, engine)).status_code == 500
