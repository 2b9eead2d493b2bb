"""An edge listens at once: it is alive, and not ready, while its draft model is awaited."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI
from starlette.responses import Response

from bench.run.services import free_port
from edge_agent.starting import Starting
from local_models.errors import UnknownModel
from tests.edge_agent.processes import ROOT, wait_for
from tests.gateway.scripted import served
from tests.guards import GUARD_S


@asynccontextmanager
async def alive(starting: Starting) -> AsyncIterator[httpx.AsyncClient]:
    """Serve an edge to a client, and stop it."""
    async with (
        asyncio.timeout(GUARD_S),
        served(starting) as url,  # type: ignore[arg-type]  # it is an ASGI app
        httpx.AsyncClient(base_url=url, trust_env=False) as client,
    ):
        yield client


def app_of(events: list[str]) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        events.append("began")
        yield
        events.append("ended")

    app = FastAPI(lifespan=lifespan)
    app.add_route("/ready", lambda _: Response())
    return app


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(GUARD_S):
        while not holds():  # noqa: ASYNC110 - a thread's doing
            await asyncio.sleep(0.01)


async def test_it_is_alive_and_not_ready_until_its_app_is_there() -> None:
    events: list[str] = []
    goes_on = threading.Event()

    def make() -> FastAPI:
        goes_on.wait(GUARD_S)
        return app_of(events)

    async with alive(Starting(make, lambda: events.append("gave up"))) as client:
        health, ready = await client.get("/health"), await client.get("/ready")
        asked = await client.post("/v1/chat/completions", json={})
        assert (health.status_code, health.json()["state"]) == (200, "loading")
        assert [r.status_code for r in (ready, asked)] == [503, 503]
        assert ready.json()["error"]["code"] == "loading"

        goes_on.set()
        await until(lambda: events == ["began"])

        assert (await client.get("/ready")).status_code == 200
    assert events == ["began", "ended"]


async def test_an_error_gives_up_and_is_kept() -> None:
    events: list[str] = []

    def make() -> FastAPI:
        raise UnknownModel("nobody knows it")

    starting = Starting(make, lambda: events.append("gave up"))
    async with alive(starting):
        await until(lambda: events == ["gave up"])

    assert isinstance(starting.error, UnknownModel)


async def test_it_stops_at_once_while_it_waits() -> None:
    goes_on = threading.Event()

    async with alive(Starting(lambda: goes_on.wait(30) and app_of([]), lambda: None)):  # type: ignore[arg-type, return-value]
        pass

    goes_on.set()


def edge(*options: str) -> tuple[subprocess.Popen[str], int]:
    port = free_port()
    command = [sys.executable, "-m", "edge_agent", "--port", str(port), *options]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PICOSPEC_")}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    ), port


def test_an_edge_whose_verifier_is_away_is_alive_and_ends_at_sigterm() -> None:
    process, port = edge("--verifier-url", f"http://127.0.0.1:{free_port()}")
    with process:
        wait_for(port)
        health = httpx.get(f"http://127.0.0.1:{port}/health", timeout=GUARD_S)
        ready = httpx.get(f"http://127.0.0.1:{port}/ready", timeout=GUARD_S)
        process.send_signal(signal.SIGTERM)

        assert process.wait(GUARD_S) == 0
    assert health.status_code == 200
    assert ready.status_code == 503


def test_an_edge_with_an_unknown_draft_model_ends_and_says_why() -> None:
    process, _ = edge("--draft-model", "nonsense")
    with process:
        assert process.wait(GUARD_S) == 1
        assert process.stderr is not None
        assert "the edge cannot start: " in process.stderr.read()
