"""An upload stream to the app in this process, and the sessions that it feeds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from starlette.types import Message, Scope

from speculation import upload_records, wire
from speculation.messages import RUN_CHARACTERS, Pushed
from speculation.upload_records import ACKNOWLEDGED, ASK, encode_record
from tests.verifier.conftest import metrics
from tests.verifier.fake_app import ANN, app_of, client_of, write_keys
from tests.verifier.fake_target import FakeTarget, opening

NEVER = opening(fill="never", max_tokens=40)


class UploadStream:
    """An upload stream to an app, piece by piece, without a socket."""

    def __init__(self, app: FastAPI, key: str = ANN, *, has_records: bool = False) -> None:
        self.answer = b""
        self.pieces: list[bytes] = []
        self._acknowledged = ASK if has_records else ACKNOWLEDGED
        self._changed = asyncio.Event()
        self._pieces = asyncio.Queue[Message]()
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

    async def _send(self, message: Message) -> None:
        self.pieces.append(message.get("body", b""))
        self.answer += self.pieces[-1]
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


@asynccontextmanager
async def opened(
    folder: Path, target: FakeTarget, sessions: int = 2
) -> AsyncIterator[tuple[FastAPI, list[str], list[asyncio.Task[bytes]]]]:
    """Yield an app with sessions of ann's, their names, and what they will answer."""
    file = write_keys(folder, "ann", "ben")

    async def text() -> bytes:
        return (await ann.post("/v1/speculate", content=wire.encode(NEVER))).content

    async with app_of(file, target) as app, client_of(app, ANN) as ann:
        answers = [asyncio.create_task(text()) for _ in range(sessions)]
        async with asyncio.timeout(5):
            while len(target.running) < sessions:  # noqa: ASYNC110 - another task
                await asyncio.sleep(0)
        try:
            yield app, list(target.running), answers
        finally:
            for answer in answers:
                answer.cancel()
            await asyncio.wait(answers)


def record(session: str, *messages: Pushed) -> bytes:
    return encode_record(session, b"".join(map(wire.encode, messages)))


async def counted(app: FastAPI, name: str) -> float:
    async with client_of(app, ANN) as client:
        return (await metrics(client)).get(f"picospec:{name}", 0.0)


async def failed(app: FastAPI, status: int) -> float:
    return await counted(app, f'failed_draft_messages_total{{status="{status}"}}')
