"""Loads a server with clients, and measures the processor time of each process meanwhile.

The clients and the link, if there is one, run in this process; each server has others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from time import perf_counter, process_time
from typing import Final

import httpx
import msgspec

from picospec.bench.capacity.clients import Client, ScriptedDrafter, scripted
from picospec.bench.capacity.figures import Answered
from picospec.bench.data.host import processor_s_by_title
from picospec.bench.link.path import Conditions
from picospec.bench.link.relay_server import HOST, Link
from picospec.bench.pace.script import VOCABULARY
from picospec.bench.run.client import AnswerError
from picospec.bench.run.services import READY_WITHIN_S, Started, port
from picospec.bench.simulator.clock import Curve
from picospec.bench.simulator.source import Source
from picospec.gateway.hosting.processes import Child, Service, while_alive
from picospec.gateway.hosting.readiness import until_ready

DRAFT_S: Final = 0.005
"""A scripted edge makes a draft token in this time."""

WARM_UP: Final = 24
"""Each client first asks for this many tokens, which opens its connections."""

_KINDS: Final = {"VLLM::EngineCore": "engine", "VLLM::Worker": "worker"}
"""A process whose title has this is one of vLLM's; any other serves the API."""


class Server(Started):
    """Runs a service. Entering it raises ServiceError."""

    def __init__(self, service: Service) -> None:
        super().__init__()
        self.service = service
        self.group = 0

    async def _start(self) -> None:
        relays = await self.enter_async_context(asyncio.TaskGroup())
        child = Child(self.service, lambda name, line: None, relays)
        await self.enter_async_context(child)
        async with httpx.AsyncClient(trust_env=False) as client:
            ready = until_ready([self.service], client, within_s=READY_WITHIN_S)
            await while_alive([child], ready)
        self.group = child.pid


@dataclass(slots=True)
class Meter:
    """Sums up what a load brought, over its turns."""

    tokens: int = 0
    passes: int = 0
    seconds: float = 0.0
    spent_s: dict[str, float] = field(default_factory=dict)
    """Processor seconds, by kind of process."""

    @contextmanager
    def measuring(self, group: int) -> Iterator[None]:
        before, began_s = _spent_s(group), perf_counter()
        yield
        self.seconds += perf_counter() - began_s
        for kind, after in _spent_s(group).items():
            spent = after - before.get(kind, 0.0)
            self.spent_s[kind] = self.spent_s.get(kind, 0.0) + spent

    def count(self, answers: Sequence[Answered]) -> None:
        self.tokens += sum(answer.tokens for answer in answers)
        self.passes += sum(answer.passes for answer in answers)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

    @property
    def figures(self) -> dict[str, float]:
        kinds = {f"{kind}, us a token": 1e6 * s / self.tokens for kind, s in self.spent_s.items()}
        return {
            "tokens/s": self.tokens_per_s,
            "passes a token": self.passes / self.tokens,
            **kinds,
            "busy cores": sum(self.spent_s.values()) / self.seconds,
        }


def _spent_s(group: int) -> dict[str, float]:
    """Return the processor seconds of a server's processes, by kind, and of this process."""
    found: dict[str, float] = {}
    for title, seconds in processor_s_by_title(group).items():
        kind = next((kind for part, kind in _KINDS.items() if part in title), "API")
        found[kind] = found.get(kind, 0.0) + seconds
    return found | {"clients": process_time()}


async def answers(
    clients: Sequence[Client], sources: Sequence[Source], tokens: int
) -> list[Answered]:
    """Let each client ask for its source at once."""
    pairs = zip(clients, sources, strict=True)
    return list(await asyncio.gather(*(client(source, tokens) for client, source in pairs)))


@asynccontextmanager
async def linked(url: str, rtt_ms: float) -> AsyncGenerator[str]:
    """Yield a URL that reaches a service over this distance; 0: the service's own."""
    if not rtt_ms:
        yield url
        return
    async with Link((HOST, port(url)), Conditions(rtt_ms)) as link:
        yield f"http://{HOST}:{link.port}"


@asynccontextmanager
async def edges(url: str, sources: Sequence[Source]) -> AsyncGenerator[list[Client]]:
    """Yield a scripted edge for each source. Its answers have as many tokens as were asked."""
    drafter = ScriptedDrafter(
        {source.prompt: source for source in sources}, Curve({1: DRAFT_S}), VOCABULARY
    )
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(scripted(url, drafter, ignore_eos=True))
            for _ in sources
        ]


def plain(url: str, model: str) -> Client:
    """Return a client of the completions of vLLM's own API. It takes as little processor time
    as it can, because two cores may carry clients and servers."""

    async def ask(source: Source, tokens: int) -> Answered:
        body = msgspec.json.encode({
            "model": model, "prompt": source.prompt, "max_tokens": tokens, "temperature": 0,
            "ignore_eos": True, "stream": True,
        })  # fmt: skip
        head = (
            f"POST /v1/completions HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        asked_s, arrivals_s, end = perf_counter(), list[float](), b""
        reader, writer = await asyncio.open_connection(HOST, port(url))
        try:
            writer.write(head.encode() + body)
            while data := await reader.read(1 << 16):
                arrivals_s.append(perf_counter())
                end = (end + data)[-1024:]
        finally:
            writer.close()
        if b"data: [DONE]" not in end or b'"finish_reason":"length"' not in end:
            raise AnswerError(f"no whole answer; it ends with {end!r}")
        return Answered(asked_s, perf_counter(), arrivals_s, tokens, tokens, tokens)

    return ask
