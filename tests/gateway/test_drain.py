"""A service that drains refuses new answers, and lets those that run finish for a while.
Signals begin that, and its server answers meanwhile."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import httpx
import pytest
import uvicorn
from structlog.testing import capture_logs

from gateway import background_work
from gateway.drain import Drain, stopped_by_signals
from gateway.hosting.http1 import DrainingServer
from tests.gateway.scripted import (
    MODEL,
    Body,
    ScriptedEngine,
    ask,
    client_of,
    endpoint_of,
    events_of,
    make_app,
)
from tests.guards import GUARD_S

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
        answer = await client.post(endpoint_of(body), json=body)
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
    async with running(drain, asyncio.Event()) as (engine, answers), asyncio.timeout(GUARD_S):
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


async def test_background_work_that_fails_is_logged_and_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(background_work, "AGAIN_S", 0.0)
    failures, done = iter((RuntimeError("a"), OSError("b"))), list[str]()

    async def work() -> None:
        for failure in failures:
            raise failure
        done.append("done")

    with capture_logs() as logs:
        await background_work.kept_going(work)

    assert done == ["done"]
    assert [(line["event"], line["log_level"]) for line in logs] == [
        ("background_failed", "error")
    ] * 2


class Closed(asyncio.Event):
    async def __call__(self) -> None:
        self.set()


def signals(
    drain: Drain, within_s: float, closed: Closed, *, second_is_at_once: bool = True
) -> AbstractAsyncContextManager[None]:
    return stopped_by_signals(
        drain, within_s, closed, at_once=signal.SIGUSR1, second_is_at_once=second_is_at_once
    )


async def until_begun(drain: Drain) -> None:
    async with asyncio.timeout(2):
        while not drain.begun:  # noqa: ASYNC110 - a handler of the loop
            await asyncio.sleep(0.001)


async def test_sigterm_waits_for_work_and_a_second_one_does_not() -> None:
    drain, closed = Drain(), Closed()
    drain.enter()
    async with signals(drain, 60.0, closed):
        signal.raise_signal(signal.SIGTERM)
        await until_begun(drain)
        assert not closed.is_set()

        signal.raise_signal(signal.SIGTERM)
        await asyncio.wait_for(closed.wait(), 2)


async def test_where_signals_are_passed_on_a_second_sigterm_is_the_first_once_more() -> None:
    drain = Drain()
    drain.enter()
    async with signals(drain, 60.0, Closed(), second_is_at_once=False):
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
            await until_begun(drain)
            await asyncio.sleep(0.01)

        assert not drain.over.is_set()
        drain.leave()


@pytest.mark.parametrize(
    ("within_s", "received"),
    [(0.05, signal.SIGTERM), (60.0, signal.SIGUSR1)],
    ids=["the time is up", "the signal means at once"],
)
async def test_work_is_not_waited_for_where(within_s: float, received: signal.Signals) -> None:
    drain, closed = Drain(), Closed()
    drain.enter()
    async with signals(drain, within_s, closed):
        signal.raise_signal(received)
        await asyncio.wait_for(closed.wait(), 2)


async def test_a_service_that_ends_without_a_signal_closes_nothing() -> None:
    closed = Closed()
    async with signals(Drain(), 60.0, closed):
        await asyncio.sleep(0)

    assert not closed.is_set()


@asynccontextmanager
async def serving(
    engine: ScriptedEngine, drain: Drain
) -> AsyncIterator[tuple[httpx.AsyncClient, asyncio.Task[None]]]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(make_app(engine, drain=drain), log_level="critical")
        server = DrainingServer(config, drain, 60.0)
        listener.listen()
        running = asyncio.create_task(server.serve([listener]))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with asyncio.timeout(GUARD_S), httpx.AsyncClient(base_url=url) as client:
            yield client, running
            await running


@pytest.mark.system
async def test_while_it_drains_the_server_answers_new_connections_and_then_it_ends() -> None:
    drain, finish = Drain(), asyncio.Event()
    async with (
        serving(ScriptedEngine(pause=finish.wait), drain) as (client, running),
        client.stream("POST", "/v1/chat/completions", json=STREAM) as answer,
    ):
        lines = answer.aiter_lines()
        await anext(lines)
        signal.raise_signal(signal.SIGTERM)
        await until_begun(drain)
        async with httpx.AsyncClient(base_url=client.base_url) as another:
            statuses = [(await another.get(path)).status_code for path in ("/ready", "/health")]
        assert not running.done()
        finish.set()
        rest = [line async for line in lines]

    assert statuses == [503, 200]
    assert rest[-2] == "data: [DONE]"


@pytest.mark.system
async def test_sigint_ends_a_running_answer_with_an_error_at_once() -> None:
    drain = Drain()
    engine = ScriptedEngine(pause=asyncio.Event().wait)
    async with (
        serving(engine, drain) as (client, _),
        client.stream("POST", "/v1/chat/completions", json=STREAM) as answer,
    ):
        lines = answer.aiter_lines()
        await anext(lines)
        signal.raise_signal(signal.SIGINT)
        events = [line async for line in lines if line]

    assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "shutting_down"
    assert engine.closed.locked() is False
