"""Whatever one key opens and holds, another key's request and /health are answered."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi.routing import APIRoute
from starlette.routing import Route

from bench.run.services import free_port
from gateway.hosting import limits
from gateway.hosting.http1 import protocol
from gateway.ports import Delta, Job
from speculation.messages import RUN_CHARACTERS
from tests.gateway.scripted import ANN, BEN, MODEL, ScriptedEngine, make_app, served, table
from tests.guards import GUARD_S
from tests.verifier import fake_app as verifier
from tests.verifier.conftest import fake_command, serving
from tests.verifier.fake_app import UploadStream
from tests.verifier.fake_target import FACTS, FakeTarget
from verifier.sessions.admission import MIN_UPLOADS

CONNECTIONS = 24
KEPT = CONNECTIONS // 4
CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
HELD = "slowly"


@pytest.fixture(autouse=True)
def few_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_CONNECTIONS", CONNECTIONS)


class Holding(ScriptedEngine):
    """Its answers to HELD do not end."""

    async def generate(self, job: Job) -> AsyncGenerator[Delta]:
        if HELD.encode() in bytes(job.prompt):
            await asyncio.Event().wait()
        async for delta in super().generate(job):
            yield delta


@asynccontextmanager
async def edge(folder: Path, *names: str) -> AsyncIterator[tuple[str, list[Route]]]:
    """Serve on at most CONNECTIONS to these tenants, with one answer each at once."""
    file = folder / "keys.toml"
    file.write_text("".join(table(name, more="sessions = 1") for name in names))
    app = make_app(Holding(), keys_file=file)
    routes = [r for r in app.routes if isinstance(r, Route) and not isinstance(r, APIRoute)]
    async with served(app, protocol(CONNECTIONS)) as url:
        yield url, routes


async def is_answered(url: str, key: dict[str, str]) -> bool:
    """Return True if a new client of this key gets an answer, and /health is answered."""
    async with httpx.AsyncClient(base_url=url, timeout=GUARD_S) as client:
        chat = await client.post("/v1/chat/completions", json=CHAT, headers=key)
        return chat.status_code == (await client.get("/health")).status_code == 200


class Held:
    """Requests that are open, each on a connection of its own."""

    def __init__(self, url: str) -> None:
        self._address = urlsplit(url)
        self._open = list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]()

    async def add(self, method: str, path: str, key: dict[str, str]) -> None:
        """Send a request, whose body does not come. A stranger's client may be cut."""
        host, port = self._address.hostname, self._address.port
        reader, writer = await asyncio.open_connection(host, port)
        head = (
            f"{method} {path} HTTP/1.1\r\nhost: v\r\nauthorization: {key['authorization']}\r\n"
        )
        body = "content-type: application/json\r\ncontent-length: 99\r\n\r\n{"
        writer.write((head + (body if method == "POST" else "\r\n")).encode())
        self._open.append((reader, writer))

    async def statuses(self) -> list[bytes]:
        """Return the status of each that was answered and is open."""
        async with asyncio.timeout(GUARD_S):
            lines = [await reader.readline() for reader, _ in self._open]
        return [line[9:12] for line in lines]

    def close(self) -> None:
        for _, writer in self._open:
            writer.transport.abort()
        self._open.clear()


async def begun(url: str, path: str, model: str = MODEL) -> str:
    """Begin an answer of ann's that is recorded and does not end; return its id."""
    chat = [{"role": "user", "content": HELD}]
    asked = {"messages": chat} if "chat" in path else {"input": HELD}
    body = {"model": model, "background": True, "stream": True, **asked}
    if "chat" in path:
        body["stream_options"] = {"include_speculation": True}
    async with (
        httpx.AsyncClient(base_url=url, timeout=GUARD_S) as client,
        client.stream("POST", path, json=body, headers=ANN) as answer,
    ):
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                event = json.loads(line.removeprefix("data: "))
                return str(event.get("response", event)["id"])
    raise AssertionError("it was not begun")


@pytest.mark.system
@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat/completions"])
async def test_replays_leave_another_key_its_connections(tmp_path: Path, path: str) -> None:
    async with edge(tmp_path, "ann", "ben") as (url, _):
        name = await begun(url, path)
        with closing(Held(url)) as held:
            for _ in range(CONNECTIONS):
                await held.add("GET", f"{path}/{name}?stream=true", ANN)

            assert await is_answered(url, BEN)
            statuses = await held.statuses()
            assert statuses.count(b"200") == CONNECTIONS - KEPT


@pytest.mark.system
@pytest.mark.skipif(sys.platform != "linux", reason="prlimit is Linux's")
async def test_a_process_answers_others_whatever_a_key_holds(tmp_path: Path) -> None:
    keys, port = tmp_path / "keys.toml", free_port()
    keys.write_text(table("ann") + table("ben"))
    connections = 60
    descriptors = 2 * connections  # half of them are for connections
    limited = ["prlimit", f"--nofile={descriptors}:{descriptors}"]
    url = f"http://127.0.0.1:{port}"
    with serving(limited + fake_command(port, keys_file=str(keys)), port):
        paths = ["/v1/speculate/uploads"]
        for path in ("/v1/responses", "/v1/chat/completions"):
            paths.append(f"{path}/{await begun(url, path, FACTS.model)}?stream=true")
        with closing(Held(url)) as held:
            for number in range(connections):
                path = paths[number % len(paths)]
                await held.add("POST" if "uploads" in path else "GET", path, ANN)

            assert [await is_answered(url, BEN) for _ in range(5)] == [True] * 5


@pytest.mark.system
async def test_no_route_lets_a_key_hold_what_others_need(tmp_path: Path) -> None:
    async with edge(tmp_path, "ann", "ben") as (url, routes):
        for method, path in ((method, r.path) for r in routes for method in r.methods or ()):
            with closing(Held(url)) as held:
                for _ in range(CONNECTIONS):
                    await held.add(method, path, ANN)
                assert await is_answered(url, BEN), (method, path)

    assert len(routes) > 40


@pytest.mark.system
async def test_a_host_with_one_key_has_no_such_share(tmp_path: Path) -> None:
    async with edge(tmp_path, "ann") as (url, _):
        name = await begun(url, "/v1/responses")
        with closing(Held(url)) as held:
            for _ in range(CONNECTIONS - 1):
                await held.add("GET", f"/v1/responses/{name}?stream=true", ANN)

            assert await held.statuses() == [b"200"] * (CONNECTIONS - 1)


@asynccontextmanager
async def uploading(file: Path, streams: int) -> AsyncIterator[tuple[int, int]]:
    """Open upload streams of ann's at a verifier; yield how many run, and the status of a
    request of ben's."""
    async with verifier.app_of(file, FakeTarget()) as app:
        opened = [UploadStream(app) for _ in range(streams)]
        async with asyncio.timeout(GUARD_S), verifier.client_of(app, verifier.BEN) as ben:
            while not all(upload.answer for upload in opened):  # noqa: ASYNC110 - other tasks
                await asyncio.sleep(0.001)
            status = (await ben.get("/v1/model-facts")).status_code
        running = [u for u in opened if len(u.answer) == RUN_CHARACTERS]
        yield len(running), status
        for upload in opened:
            upload.leave()
        await asyncio.gather(*(upload.ended() for upload in opened))


async def test_upload_streams_are_a_few_and_count_as_requests(tmp_path: Path) -> None:
    for more, most in (
        ("", CONNECTIONS - KEPT),
        ("sessions = 1", MIN_UPLOADS),
        ("sessions = 9", 9),
        ("requests_a_minute = 3", 3),
    ):
        file = verifier.write_keys(tmp_path, "ann", "ben", more=more)
        async with uploading(file, CONNECTIONS) as (running, status):
            assert (running, status) == (most, 200), more
