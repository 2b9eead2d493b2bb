"""Fake verifiers in processes of their own, and an edge's answers from them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager

from picospec.edge_agent.draft.drafter import NoDrafter
from picospec.edge_agent.link.connection import Connection
from picospec.edge_agent.link.uplink import Uplink
from picospec.edge_agent.link.verifiers import Verifiers
from picospec.edge_agent.metrics import EdgeMetrics
from picospec.gateway.drain import beside
from picospec.gateway.ports import Job, Sampling
from tests.edge_agent.engines import engine
from tests.edge_agent.fake_verifier import target_at
from tests.edge_agent.processes import Process, start

TOKENS = 200
"""Of an answer: at 10 ms each it takes two seconds."""

TEXT = [target_at(position) for position in range(TOKENS)]


@contextmanager
def running(*names: str) -> Iterator[list[Process]]:
    with ThreadPoolExecutor() as threads:
        processes = list(threads.map(start, names))
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()


@asynccontextmanager
async def using(
    urls: list[str], metrics: EdgeMetrics, deadline_s: float = 10.0, ca: bytes | None = None
) -> AsyncIterator[Verifiers]:
    connections = [Connection(url, key=None, ca_certificate=ca) for url in urls]
    uplinks = [Uplink(each, metrics, i) for i, each in enumerate(connections)]
    verifiers = Verifiers(uplinks, metrics, deadline_s)
    try:
        async with beside(verifiers.watch()):
            await verifiers.probe()
            yield verifiers
    finally:
        await verifiers.close()


class Answer:
    """Return what an edge without drafts answers; `lose` is called once, after 20 tokens."""

    def __init__(
        self, verifiers: Verifiers, metrics: EdgeMetrics | None = None, tokens: int = TOKENS
    ) -> None:
        self.tokens: list[int] = []
        self.gap_s = 0.0
        """The longest time between two tokens."""

        self._edge = engine(verifiers, metrics, NoDrafter())
        self._job = Job("r", (1, 2, 3), tokens, Sampling(), 5)

    async def run(
        self, lose: Callable[[], Awaitable[object] | None] | None = None
    ) -> list[int]:
        last = time.monotonic()
        async with asyncio.timeout(20):
            async for delta in self._edge.generate(self._job):
                if self.tokens:
                    self.gap_s = max(self.gap_s, time.monotonic() - last)
                last = time.monotonic()
                self.tokens += delta.tokens
                if lose and len(self.tokens) >= 20:
                    if (lost := lose()) is not None:
                        await lost
                    lose = None
        return self.tokens


async def ask(url: str, path: str) -> bytes:
    return (await Connection(url, key=None, ca_certificate=None).ask("GET", path)).content


async def seen(url: str) -> dict[str, int]:
    """What a fake verifier has counted."""
    return dict(json.loads(await ask(url, "/seen")))


async def until_cancelled(url: str, more_than: int = 0, within_s: float = 5.0) -> None:
    """Wait until a fake verifier knows that sessions have been left, more than so many."""
    async with asyncio.timeout(within_s):
        while (await seen(url))["cancelled"] <= more_than:  # noqa: ASYNC110 - a process
            await asyncio.sleep(0.02)
