"""Runs all arms of one engine: services, links with changeable conditions, and clients."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from time import monotonic

import httpx

from bench.host import processor_s, stolen_s
from bench.link import Conditions, EmulatedLink
from bench.run.arms import Arm
from bench.run.client import Client, Question, Reply
from bench.run.services import Services, ServicesPlan, Started, linked
from local_models.store import open_store

SETTLING_CHECKS = 24
"""An edge makes this many health checks after a change of the link. Each is a sample of its
smoothed round trip (weight 1/8), so 4 % of the old round trip is left after them."""

SETTLING_S = 30.0
"""These checks may take this many seconds."""

MAX_WARM_UPS = 24
"""At most this many requests warm up one prompt. Each lets the draft model read another chunk
of it (edge_agent.draft.llama)."""

ANSWER_TIMEOUT_S = 600.0
"""An answer fails after this many seconds without a byte."""

_BYTES = 'picospec:edge_link_bytes_total{direction="%s"}'
_DRAFT_MODEL_READ = "picospec:edge_read_tokens"
_PREFILLED = "picospec:prefilled_tokens_total"
_VLLM_PROMPTS = "vllm:prompt_tokens_total"
_VLLM_CACHED = "vllm:prompt_tokens_cached_total"
_DRAFT_MODEL_TOKENS = ("picospec:edge_draft_tokens_total", "picospec:edge_stale_steps_total")

Costs = Mapping[str, float]
"""Costs are counters of one arm, or their increase by an answer, by an Answer's field names."""


@dataclass(frozen=True, slots=True)
class LiveArm:
    """A LiveArm has the client that asks a running arm, and the sources of its costs."""

    client: Client
    edge: httpx.AsyncClient | None
    group: int | None
    """The processor time of this process group counts as the edge's."""

    verifier: httpx.AsyncClient | None = None
    """This client reads the verifier's metrics, without the link."""

    async def ask(self, question: Question, *, cold: bool = False) -> tuple[Reply, Costs]:
        """Make both ends read the prompt, unless the question is to find them cold; then
        measure."""
        if not cold:
            await self._warm_up(question)
        before = await self._costs()
        reply = await self.client.ask(question)
        return reply, {name: now - before[name] for name, now in (await self._costs()).items()}

    async def _warm_up(self, question: Question) -> None:
        """Request the beginning of the answer until the draft model has generated a token."""
        short = replace(question, tokens=1 if self.edge is None else 2)
        before, drafted = await self._costs(), "draft_model_tokens"
        for _ in range(MAX_WARM_UPS):
            await self.client.ask(short)
            if self.edge is None or (await self._costs())[drafted] > before[drafted]:
                return

    async def _costs(self) -> Costs:
        values, far = await _metrics(self.edge), await _metrics(self.verifier)
        return {
            "bytes_up": values[_BYTES % "up"],
            "bytes_down": values[_BYTES % "down"],
            "draft_model_tokens": sum(values[name] for name in _DRAFT_MODEL_TOKENS),
            "read_tokens": far[_PREFILLED] + far[_VLLM_PROMPTS] - far[_VLLM_CACHED],
            "draft_model_read_tokens": values[_DRAFT_MODEL_READ],
            "edge_cpu_s": processor_s(self.group) if self.group else 0.0,
            "stolen_s": stolen_s(),
        }


class LiveArms(Started):
    """Runs all arms of one engine, by name. Entering it raises ServiceError or ModelError."""

    def __init__(self, plan: ServicesPlan, arms: Sequence[Arm]) -> None:
        super().__init__()
        self.by_name: dict[str, LiveArm] = {}
        self._arms = arms
        edges = {arm.name: arm.edge for arm in arms if arm.edge}
        self._services = Services(replace(plan, edges=edges, rival=arms[0].rival))
        self._links: list[EmulatedLink] = []
        self._far_edges: list[httpx.AsyncClient] = []

    async def _start(self) -> None:
        await self.enter_async_context(self._services)
        for arm in self._arms:
            self.by_name[arm.name] = await self._live(arm)

    async def become(self, conditions: Conditions) -> None:
        """Change every link, and wait until the edges have noticed the change."""
        for link in self._links:
            link.change(conditions)
        await asyncio.gather(*(_settle(edge) for edge in self._far_edges))

    async def _live(self, arm: Arm) -> LiveArm:
        services = self._services
        if arm.place == "alone":
            return await self._alone()
        cloud = arm.place == "cloud"
        url = services.verifier_url if cloud else services.edge_urls[arm.name]
        if arm.place == "far":
            link = services.links[arm.name]
        else:
            url, link = await self.enter_async_context(linked(url))
        self._links.append(link)
        edge = await self._http(services.edge_urls[arm.name], 30) if arm.edge else None
        if edge and arm.place == "far":
            self._far_edges.append(edge)
        client = Client(await self._http(url, ANSWER_TIMEOUT_S))
        verifier = await self._http(services.verifier_url, 30)
        return LiveArm(client, edge, services.pids.get(arm.name), verifier)

    async def _http(self, url: str, timeout_s: float) -> httpx.AsyncClient:
        http = httpx.AsyncClient(base_url=url, trust_env=False, timeout=timeout_s)
        return await self.enter_async_context(http)

    async def _alone(self) -> LiveArm:
        """Serve the draft model as a target, on the edge's cores."""
        plan = self._services.plan
        model = str(open_store(os.environ).find(plan.draft_model, "draft").path)
        arguments = ("--llama.slots", "1", "--llama.threads", "1")
        draft_only = replace(
            plan, target_model=model, edges={}, target="llama", verifier_arguments=arguments,
            verifier_python=sys.executable, verifier_cores=plan.edge_cores,
        )  # fmt: skip
        alone = await self.enter_async_context(Services(draft_only))
        client = Client(await self._http(alone.verifier_url, ANSWER_TIMEOUT_S))
        return LiveArm(client, None, alone.pids["verifier"])


async def _metrics(service: httpx.AsyncClient | None) -> defaultdict[str, float]:
    """Return a service's counters: those with labels by their full names, and also summed by
    the bare names. Empty without a service, or if it has no metrics."""
    values: defaultdict[str, float] = defaultdict(float)
    if service is None or (answered := await service.get("/metrics")).status_code != 200:
        return values
    for line in answered.text.splitlines():
        if line.startswith(("picospec:", "vllm:")):
            name, value = line.rsplit(" ", 1)
            for each in {name, name.partition("{")[0]}:
                values[each] += float(value)
    return values


async def _settle(edge: httpx.AsyncClient) -> None:
    until_s = monotonic() + SETTLING_S
    for _ in range(SETTLING_CHECKS):
        await edge.get("/ready")  # makes the edge ask the verifier, which takes a round trip
        if monotonic() > until_s:
            return
