"""Runs all arms of one engine: services, links with changeable conditions, and clients."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import monotonic
from types import MappingProxyType
from typing import Final, Literal

import httpx

from bench.results import processor_s, stolen_s
from bench.run.client import Client, Question, Reply
from bench.run.rivals import PLAIN, TOKENS, Rival
from bench.run.rounds import RoundPolicy
from bench.run.services import LINKED, EdgePlan, Services, ServicesPlan, Started
from edge_agent.draft.loading import find
from edge_agent.settings import EdgeSettings
from gateway.ports import NONE
from local_models.store import open_store
from picospec.link import Conditions, Link

# The bench compares these systems (arms); docs/performance.md describes each.

GAMMA: Final = 4
"""A round has this many tokens if the arm's name has no number; it is the paper's number."""

WATCHED: Final = MappingProxyType({"include_speculation": True})
"""The page sends this option too, to show how the text comes about."""

ANSWER_CACHE_TOKENS: Final[int] = EdgeSettings.model_fields["answer_cache_tokens"].default
"""An edge's cache holds this many tokens by default."""

Place = Literal["cloud", "far", "near", "alone"]
Predicts = Literal["", "own", "other"]


@dataclass(frozen=True, slots=True)
class Arm:
    name: str
    place: Place
    """`cloud`: the verifier's own API is asked through the link. `far`: the edge is on the
    user's side of the link. `near`: the edge is on the verifier's side. `alone`: the draft
    model is asked without a link."""

    edge: EdgePlan | None = None
    predicts: Predicts = ""
    """If prompts have predictions, a request sends its prompt's own, or that of another prompt
    of its family."""

    stream_options: Mapping[str, object] = field(default_factory=lambda: NONE)
    """The request's stream_options have these fields too, see bench.run.client.Question."""

    rival: Rival | None = None
    """This rival, if any, answers in place of this product's verifier."""

    @property
    def engine(self) -> str:
        """Identifies the services that answer; arms of one engine are started together."""
        return self.name if self.rival else ""

    def at_long_work(self) -> Arm:
        """Return the arm for scenarios. A rival, and the product's edge as it ships, remember
        requests if they can. An edge also reports the origins of its tokens."""
        rival = self.rival and replace(self.rival, remembers=True)
        edge, watched = self.edge, WATCHED if self.edge else NONE
        if edge and not edge.rounds:
            edge = replace(edge, answer_cache_tokens=ANSWER_CACHE_TOKENS)
        options = {**self.stream_options, **watched}
        return replace(self, rival=rival, edge=edge, stream_options=options)


_FIXED: Final = {
    arm.name: arm
    for arm in (
        Arm("cloud", "cloud"),
        Arm("edge-only", "alone"),
        Arm("picospec", "far", EdgePlan(link=LINKED)),
        Arm("picospec-separate", "far", EdgePlan(judge="separate", link=LINKED)),
        Arm("picospec-nofill", "far", EdgePlan(fill="never", link=LINKED)),
        Arm("picospec-nolookup", "far", EdgePlan(lookup=False, link=LINKED)),
        Arm(
            "picospec-pool",
            "far",
            EdgePlan(answer_cache_tokens=ANSWER_CACHE_TOKENS, link=LINKED),
        ),
        Arm("picospec-noown", "far", EdgePlan(ngram_drafts=False, link=LINKED)),
        Arm("picospec-useless", "far", EdgePlan(rounds="useless", link=LINKED)),
        Arm("picospec-predicted", "far", EdgePlan(link=LINKED), "own"),
        Arm("picospec-mispredicted", "far", EdgePlan(link=LINKED), "other"),
        Arm("picospec-watched", "far", EdgePlan(link=LINKED), stream_options=WATCHED),
        Arm("colocated-edge", "near", EdgePlan()),
    )
}
_ROUNDS: Final = ("sync", "paper", "colocated")
_OTHER_DRAFT: Final = "picospec@"
"""The name of an arm with another draft model begins with this, and ends with the model."""

NAMES: Final = (
    *_FIXED, f"{_OTHER_DRAFT}MODEL", *(f"{name}:G" for name in _ROUNDS),
    PLAIN, *(f"{name}:K" for name in TOKENS),
)  # fmt: skip


def parse(text: str) -> list[Arm]:
    """Parse arms, separated by commas. Raises a ValueError that names an unknown one."""
    arms = [_arm(name.strip()) for name in text.split(",") if name.strip()]
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        raise ValueError(f"an arm is there twice: {text}")
    if "cloud" not in names:
        raise ValueError("`cloud` must be among the arms: all others are measured against it")
    return arms


def _arm(name: str) -> Arm:
    if name in _FIXED:
        return _FIXED[name]
    other, _, model = name.partition(_OTHER_DRAFT)
    if model and not other:
        return Arm(name, "far", EdgePlan(link=LINKED, draft_model=model))
    if rival := Rival.parse(name):
        return Arm(rival.name, "cloud", rival=rival)
    kind, _, gamma = name.partition(":")
    if kind not in _ROUNDS:
        raise ValueError(f"no arm is called {name!r}; there are {', '.join(NAMES)}")
    name = f"{kind}:{gamma or GAMMA}"
    rounds = name.replace("colocated", "sync")
    RoundPolicy.parse(rounds)
    if kind == "colocated":
        return Arm(name, "near", EdgePlan(fill="never", colocated=True, rounds=rounds))
    return Arm(name, "far", EdgePlan(fill="never", link=LINKED, rounds=rounds))


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
        self._links: list[Link] = []
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
        match arm.place:
            case "cloud":
                url, link = await self.linked(services.verifier_url)
            case "near":
                url, link = await self.linked(services.edge_urls[arm.name])
            case "far":
                url, link = services.edge_urls[arm.name], services.links[arm.name]
            case "alone":
                return await self._alone()
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
        model = str(find(plan.draft_model, open_store(os.environ)))
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
