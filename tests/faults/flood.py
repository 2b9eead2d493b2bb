"""The generator of loads, valid and hostile: `python -m tests.faults.flood LOAD`.

A load is run twice by the same generator, once with valid requests and once with hostile ones
of the same number and size. It prints, as JSON, how each request was answered.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Annotated, Final

import httpx
import typer

from speculation import wire
from speculation.messages import Draft, Open, Sampling
from tests.faults.rig.asking import BRIEF, MODEL
from tests.faults.rig.lines import Line, lines

LINES: Final = 8
"""Connections over which messages are sent."""

OPENS: Final = 1000
HALF_OPEN: Final = 500
BODY_BYTES: Final = 1 << 20
MESSAGE_EVERY_S: Final = 1 / 200
BODY_EVERY_S: Final = 1 / 4
QUESTION_EVERY_S: Final = 1 / 50
ALLOWED_EVERY_S: Final = 2.0
"""Time between two questions that a key's limit allows, in test_tenant_flood.py."""


@dataclass
class Flood:
    verifier: int
    edge: int
    """Ports."""

    seconds: float
    is_hostile: bool
    opening: Open
    key: str = ""
    tally: Counter[str] = field(default_factory=Counter)
    chance: random.Random = field(default_factory=lambda: random.Random(1))

    def lines(self, port: int, count: int) -> AbstractAsyncContextManager[list[Line]]:
        return lines(port, count, self.tally, self.key)

    async def _every(self, period_s: float, send: Callable[[int], Awaitable[None]]) -> None:
        """Call `send` with 0, 1, ... at a fixed rate, however long the answers take."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        async with asyncio.TaskGroup() as tasks:
            for number in range(round(self.seconds / period_s)):
                await asyncio.sleep(begun + number * period_s - loop.time())
                tasks.create_task(send(number))

    async def messages(self) -> None:
        """Openings and draft messages, or what is valid and as small; 200 a second."""
        await self._send_all(self.verifier, MESSAGE_EVERY_S, self._message)

    async def questions(self) -> None:
        """Short questions to the edge: as many as a key's limit allows, or fifty a second."""
        content = json.dumps({"model": MODEL, **BRIEF}).encode()
        request = ("POST", "/v1/chat/completions", content)
        period_s = QUESTION_EVERY_S if self.is_hostile else ALLOWED_EVERY_S
        await self._send_all(self.edge, period_s, lambda _: request)

    async def _send_all(
        self, port: int, period_s: float, request: Callable[[int], tuple[str, str, bytes]]
    ) -> None:
        """Send requests at a fixed rate over a few connections."""
        async with self.lines(port, LINES) as opened:
            free: asyncio.Queue[Line] = asyncio.Queue()
            for line in opened:
                free.put_nowait(line)

            async def send(number: int) -> None:
                line = await free.get()
                try:
                    await line.send(*request(number))
                finally:
                    free.put_nowait(line)

            await self._every(period_s, send)

    def _message(self, number: int) -> tuple[str, str, bytes]:
        valid = wire.encode(Draft(epoch=0, start=0, offset=0, tokens=(1, 2, 3)))
        if not self.is_hostile and number % 2:
            return "GET", "/v1/model-facts", b""
        if not self.is_hostile:
            return "POST", "/tokenize", json.dumps({"model": MODEL, "prompt": "a"}).encode()
        frame = wire.encode(self.opening)
        noise = self.chance.randbytes(len(frame))
        openings = (noise, frame[:-1], frame + b"\0", b"\xff" * 9, b"{}", frame[1:], valid)
        if number % 2:
            return "POST", "/v1/speculate", self.chance.choice(openings)
        unknown = self.chance.randbytes(9).hex()
        return "POST", f"/v1/speculate/{unknown}/drafts", self.chance.choice((valid, noise))

    async def opens(self) -> None:
        """A thousand openings at once, or as many as there may be, and other requests."""
        frame = wire.encode(self.opening)

        async def send(number: int, line: Line) -> None:
            if self.is_hostile or number % 16 == 0:
                await line.send("POST", "/v1/speculate", frame)
            else:
                await line.send("GET", "/v1/model-facts")

        async with self.lines(self.verifier, OPENS) as opened:
            await asyncio.gather(*(send(number, line) for number, line in enumerate(opened)))
            await asyncio.sleep(self.seconds)

    async def connections(self) -> None:
        """Connections that are held: with half a request, or after a whole one."""
        async with (
            self.lines(self.verifier, HALF_OPEN // 2) as verifiers,
            self.lines(self.edge, HALF_OPEN // 2) as edges,
        ):
            for line in verifiers + edges:
                if self.is_hostile:
                    (await line.connect()).write(self._half())
                else:
                    await line.send("GET", "/health")
            await asyncio.sleep(self.seconds)

    def _half(self) -> bytes:
        head = b"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 99\r\n"
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        return self.chance.choice((b"", head[:40], head, head + b"\r\n{", preface))

    async def bodies(self) -> None:
        """Bodies as long as they may be, four a second, to both ends by turns."""
        whole = {"model": MODEL, **BRIEF, "max_tokens": 1, "user": ""}
        room = BODY_BYTES - len(json.dumps(whole))
        valid = json.dumps({**whole, "user": "u" * room}).encode()
        deep = b'{"messages":' + b"[" * (BODY_BYTES - 12)
        noise = self.chance.randbytes(BODY_BYTES)

        async def send(number: int) -> None:
            port, path = (self.verifier, self.edge)[number % 2], "/v1/chat/completions"
            body = (noise, deep, valid + b" ")[number % 3] if self.is_hostile else valid
            if self.is_hostile and port == self.verifier and number % 4:
                path = "/v1/speculate"
            async with self.lines(port, 1) as (line,):
                await line.send("POST", path, body)

        await self._every(BODY_EVERY_S, send)


LOADS: Final = ("messages", "opens", "connections", "bodies")


def opening(verifier: int, key: str = "") -> Open:
    """Return what opens a session that waits for drafts."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    url = f"http://127.0.0.1:{verifier}/v1/model-facts"
    facts = httpx.get(url, headers=headers, trust_env=False).json()
    return Open(
        model=facts["model"], vocabulary=facts["vocabulary"], prompt=(1, 2, 3, 4) * 10,
        sampling=Sampling(temperature=0.0), seed=1, max_tokens=64, stop_tokens=(),
        judge="coupled", fill="never",
    )  # fmt: skip


def main(
    load: str,
    verifier: Annotated[int, typer.Option(help="Port of a verifier.")],
    edge: Annotated[int, typer.Option(help="Port of its edge.")],
    seconds: float = 10.0,
    hostile: bool = False,
    key: str = "",
) -> None:
    flood = Flood(verifier, edge, seconds, hostile, opening(verifier, key), key)
    asyncio.run(getattr(flood, load)())
    print(json.dumps(flood.tally))  # noqa: T201


if __name__ == "__main__":
    typer.run(main)
