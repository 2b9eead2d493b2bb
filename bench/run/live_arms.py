"""All arms of a run, started once: services, links whose conditions change, and clients."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from time import monotonic
from types import TracebackType
from typing import Self

import httpx

from bench.link.path import Conditions
from bench.link.relay_server import Link
from bench.run.arms import Arm
from bench.run.client import Client, Question, Reply
from bench.run.host import processor_s, stolen_s
from bench.run.services import HOST, Stand, StandPlan
from edge_agent.draft_model.loading import find
from models.store import open_store

SETTLING_CHECKS = 24
"""Health checks after a change of the link: each is a sample of the edge's smoothed round trip
(weight 1/8), so that 4 % of the old one is left."""

MOST_READINGS = 24
"""Of one prompt. Each gets the draft model a chunk further (edge_agent.draft_model.llama_drafter)."""

ANSWER_TIMEOUT_S = 600.0
"""Without a byte of an answer."""

_BYTES = 'picospec:edge_link_bytes_total{direction="%s"}'
_GUESSED = ("picospec:edge_draft_tokens_total", "picospec:edge_stale_steps_total")


@dataclass(frozen=True, slots=True)
class Costs:
    """Counters of one arm, or what one answer added to them."""

    bytes_up: float = 0.0
    """Frames of the protocol, without HTTP; 0 where there is no edge."""

    bytes_down: float = 0.0
    link_bytes_up: float = 0.0
    """What TCP carried over the link, HTTP and all."""

    link_bytes_down: float = 0.0
    guessed: float = 0.0
    """Tokens the draft model made, too late or not, judged or not."""

    edge_cpu_s: float = 0.0
    stolen_s: float = 0.0

    def since(self, before: Costs) -> Costs:
        return Costs(
            self.bytes_up - before.bytes_up,
            self.bytes_down - before.bytes_down,
            self.link_bytes_up - before.link_bytes_up,
            self.link_bytes_down - before.link_bytes_down,
            self.guessed - before.guessed,
            self.edge_cpu_s - before.edge_cpu_s,
            self.stolen_s - before.stolen_s,
        )


@dataclass(frozen=True, slots=True)
class Seat:
    """Where an arm is asked, and what is counted of it."""

    client: Client
    link: Link | None
    edge: httpx.AsyncClient | None
    group: int | None
    """The edge's process group."""

    async def ask(self, question: Question) -> tuple[Reply, Costs]:
        """Have both ends read the prompt; then measure."""
        await self._have_read(question)
        before = await self._costs()
        reply = await self.client.ask(question)
        return reply, (await self._costs()).since(before)

    async def _have_read(self, question: Question) -> None:
        """Ask for the beginning of the answer, until the draft model has taken part.

        It reads a chunk of the prompt at a time, and stops when the answer is complete.
        """
        short = replace(question, tokens=1 if self.edge is None else 2)
        before = await self._costs()
        for _ in range(MOST_READINGS):
            await self.client.ask(short)
            if self.edge is None or (await self._costs()).since(before).guessed:
                return

    async def _costs(self) -> Costs:
        metrics = "" if self.edge is None else (await self.edge.get("/metrics")).text
        values = dict(
            line.rsplit(" ", 1) for line in metrics.splitlines() if not line.startswith("#")
        )
        return Costs(
            float(values.get(_BYTES % "up", 0)),
            float(values.get(_BYTES % "down", 0)),
            self.link.bytes_up if self.link else 0.0,
            self.link.bytes_down if self.link else 0.0,
            sum(float(values.get(name, 0)) for name in _GUESSED),
            processor_s(self.group) if self.group else 0.0,
            stolen_s(),
        )


class Arena:
    """Open it with `async with`; leaving stops everything. Raises ServiceError, ModelError."""

    def __init__(self, plan: StandPlan, arms: Sequence[Arm]) -> None:
        self.seats: dict[str, Seat] = {}
        self._arms = arms
        self._stand = Stand(
            replace(plan, edges={arm.name: arm.edge for arm in arms if arm.edge})
        )
        self._links: list[Link] = []
        self._edges: list[httpx.AsyncClient] = []
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            await self._open.enter_async_context(self._stand)
            for arm in self._arms:
                self.seats[arm.name] = await self._seat(arm)
        except BaseException:
            await self._open.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._open.aclose()

    async def become(self, conditions: Conditions) -> None:
        """Change every link, and wait until the edges have noticed."""
        for link in self._links:
            link.change(conditions)
        await asyncio.gather(*(_settle(edge) for edge in self._edges))

    async def _seat(self, arm: Arm) -> Seat:
        match arm.place:
            case "cloud":
                url, link = await self._far(self._stand.verifier_url)
            case "near":
                url, link = await self._far(self._stand.edge_urls[arm.name])
            case "far":
                url, link = self._stand.edge_urls[arm.name], self._stand.links[arm.name]
                self._links.append(link)
            case "alone":
                return await self._alone()
        edge = await self._edge(arm) if arm.edge else None
        return Seat(await self._client(url), link, edge, self._stand.pids.get(arm.name))

    async def _far(self, url: str) -> tuple[str, Link]:
        """Return the way to a service through a link."""
        link = Link((HOST, int(url.rsplit(":", 1)[1])))
        self._links.append(await self._open.enter_async_context(link))
        return f"http://{HOST}:{link.port}", link

    async def _client(self, url: str) -> Client:
        http = httpx.AsyncClient(base_url=url, trust_env=False, timeout=ANSWER_TIMEOUT_S)
        return Client(await self._open.enter_async_context(http))

    async def _edge(self, arm: Arm) -> httpx.AsyncClient:
        edge = httpx.AsyncClient(
            base_url=self._stand.edge_urls[arm.name], trust_env=False, timeout=30
        )
        await self._open.enter_async_context(edge)
        if arm.place == "far":
            self._edges.append(edge)
        return edge

    async def _alone(self) -> Seat:
        """Serve the draft model by itself, on the edge's cores."""
        plan = self._stand.plan
        model = find(plan.draft_model, open_store(os.environ))
        alone = Stand(
            StandPlan(
                str(model),
                plan.draft_model,
                {},
                verifier_arguments=("--llama.slots", "1", "--llama.threads", "1"),
                verifier_cores=plan.edge_cores,
            )
        )
        await self._open.enter_async_context(alone)
        client = await self._client(alone.verifier_url)
        return Seat(client, None, None, alone.pids["verifier"])


async def _settle(edge: httpx.AsyncClient) -> None:
    until_s = monotonic() + 30
    for _ in range(SETTLING_CHECKS):
        await edge.get("/health")  # a verifier that is away is found out by asking
        if monotonic() > until_s:
            return
