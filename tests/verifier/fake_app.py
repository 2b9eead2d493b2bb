"""The verifier's app on the fake target in this process, its clients, and an upload stream."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from fastapi import FastAPI
from starlette.types import Message as AsgiMessage
from starlette.types import Scope

from speculation import upload_records, wire
from speculation.messages import RUN_CHARACTERS, Heartbeat, Message, Open, Pushed
from speculation.upload_records import ACKNOWLEDGED, ASK, encode_record
from tests.verifier.conftest import metrics
from tests.verifier.fake_target import FakeTarget, opening
from verifier.app import build
from verifier.settings import load

ANN, BEN = "key of ann", "key of ben"
OPEN = wire.encode(opening())
NEVER = opening(fill="never", max_tokens=40)


def keys_toml(*names: str, more: str = "") -> str:
    digests = {name: hashlib.sha256(f"key of {name}".encode()).hexdigest() for name in names}
    return "".join(f'[{name}]\nsha256 = "{digests[name]}"\n{more}\n' for name in names)


def write_keys(folder: Path, *names: str, more: str = "") -> Path:
    file = folder / "keys.toml"
    file.write_text(keys_toml(*names, more=more))
    return file


@asynccontextmanager
async def app_of(keys_file: Path, target: FakeTarget) -> AsyncIterator[FastAPI]:
    """The verifier's app, with its target started."""
    app = build(load(None, {}, {"keys_file": keys_file}), lambda _: target)
    async with app.router.lifespan_context(app):
        await asyncio.sleep(0)
        yield app


def client_of(app: FastAPI, key: str) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=app)
    headers = {"authorization": f"Bearer {key}"}
    return httpx.AsyncClient(transport=transport, base_url="http://v", headers=headers)


@asynccontextmanager
async def opened(
    folder: Path, target: FakeTarget, sessions: int = 2, request: Open = NEVER
) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient, list[str], list[asyncio.Task[bytes]]]]:
    """Yield an app with sessions of ann's, her client, their names, and what they answer."""
    file = write_keys(folder, "ann", "ben")

    async def answered() -> bytes:
        return (await ann.post("/v1/speculate", content=wire.encode(request))).content

    async with app_of(file, target) as app, client_of(app, ANN) as ann:
        answers = [asyncio.create_task(answered()) for _ in range(sessions)]
        while len(target.running) < sessions:  # noqa: ASYNC110 - another task
            await asyncio.sleep(0)
        try:
            yield app, ann, list(target.running), answers
        finally:
            for answer in answers:
                answer.cancel()
            await asyncio.wait(answers)


def messages(pieces: Iterable[bytes]) -> list[Message]:
    """Return the messages of a stream, without heartbeats."""
    decoder = wire.Decoder()
    found = [message for piece in pieces for message in decoder.feed(piece)]
    return [message for message in found if not isinstance(message, Heartbeat)]


async def counted(client: httpx.AsyncClient, name: str) -> float:
    return (await metrics(client)).get(f"picospec:{name}", 0.0)


async def failed(client: httpx.AsyncClient, status: int) -> float:
    return await counted(client, f'failed_draft_messages_total{{status="{status}"}}')


class UploadStream:
    """An upload stream to an app, piece by piece, without a socket."""

    def __init__(self, app: FastAPI, key: str = ANN, *, has_records: bool = False) -> None:
        self.answer = b""
        self._acknowledged = ASK if has_records else ACKNOWLEDGED
        self._changed = asyncio.Event()
        self._pieces = asyncio.Queue[AsgiMessage]()
        authorization = (b"authorization", f"Bearer {key}".encode())
        scope: Scope = {
            "type": "http", "http_version": "2", "method": "POST", "query_string": b"",
            "path": "/v1/speculate/uploads", "headers": [authorization, (b"host", b"v")],
        }  # fmt: skip
        if has_records:
            scope["headers"].append((b"picospec-answer", b"records"))
        self.task = asyncio.create_task(app(scope, self._pieces.get, self._send))

    def write(self, piece: bytes) -> None:
        self._pieces.put_nowait({"type": "http.request", "body": piece, "more_body": True})

    def leave(self) -> None:
        self._pieces.put_nowait({"type": "http.disconnect"})

    async def _send(self, message: AsgiMessage) -> None:
        self.answer += message.get("body", b"")
        self._changed.set()

    async def acknowledged(self, piece: bytes = b"") -> None:
        """Write a piece, and wait until all that was written has been read."""
        before = self._acknowledgements
        self.write(piece + ASK)
        async with asyncio.timeout(5):
            while self._acknowledgements == before:
                self._changed.clear()
                await self._changed.wait()
        await asyncio.sleep(0)  # the sessions take their messages

    @property
    def _acknowledgements(self) -> int:
        if self._acknowledged == ACKNOWLEDGED:
            return self.answer.count(ACKNOWLEDGED)
        return sum(not record.session for record in self.records)

    @property
    def records(self) -> list[upload_records.Record]:
        """What has come after the run's name, if the answer has records."""
        return list(upload_records.RecordDecoder().feed(self.answer[RUN_CHARACTERS:]))

    async def ended(self) -> None:
        async with asyncio.timeout(5):
            await self.task


def record(session: str, *messages: Pushed) -> bytes:
    return encode_record(session, b"".join(map(wire.encode, messages)))
