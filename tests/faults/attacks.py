"""Sends what one key can send to stop everybody else, at one end, and counts what it gets.

    python -m tests.faults.attacks KIND --port PORT --key KEY --seconds N

A key has ten requests at once and then sends one a second, whatever its limits say. All bodies
are made before the first is sent, and this process takes little of the processor.
"""

from __future__ import annotations

import asyncio
import json
import resource
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import cycle
from typing import Annotated, Final

import typer

from speculation import wire
from speculation.messages import Draft, Opened
from tests.faults.flood import opening
from tests.faults.rig.asking import MODEL
from tests.faults.rig.lines import Line, lines

Requests = list[tuple[str, bytes]]
"""Paths and bodies."""

SIZES: Final = (8 << 20, 1 << 20)
"""Bytes of a body: what a service took without asking, and the least that it takes."""

TEXTS: Final = (*SIZES, 1 << 15)
AT_ONCE: Final = 10
EVERY_S: Final = 1.0
DRAFT_BODIES: Final = 48
CONNECTIONS: Final = 2100


def _filled(path: str, size: int, begin: str, unit: str, end: str) -> tuple[str, bytes]:
    """Return a body of almost `size` bytes, in which a unit is repeated."""
    head = f'{{"model":"{MODEL}","max_tokens":1,{begin}'
    count = (size - len(head) - len(end) - 64) // (len(unit) + 1)
    return path, f"{head}{','.join([unit] * count)}{end}}}".encode()


def _chats(begin: str, unit: str, end: str) -> Requests:
    return [_filled("/v1/chat/completions", size, begin, unit, end) for size in SIZES]


def _prompts(begin: str, unit: str, end: str) -> Requests:
    return [_filled("/v1/completions", size, begin, unit, end) for size in SIZES]


def _texts(unit: str) -> Requests:
    texts = [unit * (size // len(unit) - 64) for size in TEXTS]
    body = {"model": MODEL, "max_tokens": 1}
    return [("/v1/completions", json.dumps({**body, "prompt": t}).encode()) for t in texts]


def _grammars() -> Requests:
    ask = {"model": MODEL, "max_tokens": 1, "messages": [{"role": "user", "content": "a"}]}
    schemas = ({"type": "integer", "multipleOf": 1_000_003 + 2 * n} for n in range(400))
    shapes = ({"name": "a", "schema": schema} for schema in schemas)
    forms = ({"type": "json_schema", "json_schema": shape} for shape in shapes)
    return [
        ("/v1/chat/completions", json.dumps({**ask, "response_format": form}).encode())
        for form in forms
    ]


_HI: Final = '"messages":[{"role":"user","content":"a"}]'
_TOOL: Final = (
    '{"type":"function","function":{"name":"f","parameters":'
    '{"type":"object","properties":{"a":{"type":"string"}}}}}'
)
BODIES: Final[Mapping[str, Callable[[], Requests]]] = {
    "messages": lambda: _chats('"messages":[', '{"role":"user","content":"a"}', "]"),
    "parts": lambda: _chats(
        '"messages":[{"role":"user","content":[', '{"type":"text","text":"a"}', "]}]"
    ),
    "messages of parts": lambda: _chats(
        '"messages":[', '{"role":"user","content":[{"type":"text","text":"a"}]}', "]"
    ),
    "tools": lambda: _chats(f'{_HI},"tools":[', _TOOL, "]"),
    "unknown fields": lambda: _chats(f"{_HI},", '"unknown":1', ""),
    "prompts": lambda: _prompts('"prompt":[', "[1]", "]"),
    "ids": lambda: _prompts('"prompt":[', "1", "]"),
    "quotes": lambda: _chats('"messages":[{"role":"user","content":"', '\\"\\"', '"}]'),
    "words": lambda: _texts("lighthouse keeper "),
    "spaces": lambda: _texts(" "),
}
GRAMMARS: Final = "grammars"
DRAFTS: Final = "drafts"
IDLE: Final = "connections"
KINDS: Final = (*BODIES, GRAMMARS, IDLE)
"""At either end; a verifier also takes DRAFTS."""


async def send(requests: Requests, port: int, key: str, seconds: float) -> Counter[str]:
    """Send them over and over, with AT_ONCE connections."""
    tally: Counter[str] = Counter()
    each, loop = cycle(requests), asyncio.get_running_loop()
    ends_at = loop.time() + seconds

    async def one(line: Line, period_s: float, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        while loop.time() < ends_at:
            path, body = next(each)
            await line.send("POST", path, body)
            await asyncio.sleep(period_s)

    async with lines(port, AT_ONCE, tally, key) as opened:
        period_s = EVERY_S * AT_ONCE
        each_one = (one(line, period_s, (n > 1) * n * 0.01) for n, line in enumerate(opened))
        await asyncio.gather(*each_one)
    return tally


async def drafts(port: int, key: str, seconds: float) -> Counter[str]:
    """Send full bodies of drafts to a session, many at once, and open another when it ends."""
    tally: Counter[str] = Counter()
    frame = wire.encode(Draft(epoch=0, start=0, offset=0, tokens=(1,)))
    bodies = [frame * (65536 // len(frame)), frame * (4096 // len(frame))]
    opened, loop = wire.encode(opening(port, key)), asyncio.get_running_loop()
    ends_at = loop.time() + seconds
    while loop.time() < ends_at:
        async with lines(port, DRAFT_BODIES + 1, tally, key) as (first, *others):
            if (path := await _open(first, opened)) is None:
                await asyncio.sleep(0.1)
                continue
            while "404" not in tally and loop.time() < ends_at:
                body = bodies[tally.total() % 2]
                await asyncio.gather(*(line.send("POST", path, body) for line in others))
            tally["sessions"] += 1
            tally["ended"] += tally.pop("404", 0)
    return tally


async def _open(line: Line, opened: bytes) -> str | None:
    """Return where a new session takes drafts; None if it is refused."""
    await line.send("POST", "/v1/speculate", opened)
    if not line.tally.pop("200", 0):
        return None
    chunk = await line.reader.readexactly(int(await line.reader.readline(), 16))
    first = next(wire.Decoder().feed(chunk))
    return f"/v1/speculate/{first.session}/drafts" if isinstance(first, Opened) else None


async def idle(port: int, seconds: float) -> Counter[str]:
    """Hold connections that send nothing, or half a request."""
    tally: Counter[str] = Counter()
    async with lines(port, CONNECTIONS, tally) as held:
        for number, line in enumerate(held):
            try:
                async with asyncio.timeout(2.0):
                    writer = await line.connect()
                if number % 2:
                    writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n")
                tally["connected"] += 1
            except (OSError, TimeoutError) as error:
                tally[type(error).__name__] += 1
                break
        await asyncio.sleep(seconds)
    return tally


async def attack(kind: str, port: int, key: str, seconds: float) -> Counter[str]:
    if kind == IDLE:
        return await idle(port, seconds)
    if kind == DRAFTS:
        return await drafts(port, key, seconds)
    return await send(_grammars() if kind == GRAMMARS else BODIES[kind](), port, key, seconds)


def main(
    kind: str, port: Annotated[int, typer.Option()], key: str = "", seconds: float = 2.0
) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 8192), most))
    print(json.dumps(asyncio.run(attack(kind, port, key, seconds))))  # noqa: T201


if __name__ == "__main__":
    typer.run(main)
