"""Asks a verifier for many answers at once: by plain requests, and by scripted edges.

A scripted edge is the product's own edge, but a script replaces its draft model: it drafts the
tokens of a trace after the time that a device would take. So one process can run many edges.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Final, cast

import httpx
import msgspec
from prometheus_client import CollectorRegistry
from pydantic import AnyHttpUrl

from bench.run.client import AnswerError
from bench.simulator.hosts import Curve
from bench.simulator.source import Source
from bench.traces import Text
from edge_agent.app import open_verifiers
from edge_agent.draft.drafter import NoDrafter, StepSampler
from edge_agent.draft.target_tokenizer import TargetTokenizer
from edge_agent.engine import EdgeEngine
from edge_agent.metrics import EdgeMetrics
from edge_agent.settings import EdgeSettings
from gateway.errors import EngineFault
from gateway.ports import Job, Statistics
from local_models.llama_cpp.prefix import common_prefix
from local_models.tokenizer import Tokenizer
from speculation.draft_token import DraftToken
from speculation.messages import Sampling
from speculation.model_facts import ModelFacts, TokenId


async def facts_of(url: str) -> ModelFacts:
    """Return what a verifier tells of its model. Raises httpx.HTTPError."""
    async with httpx.AsyncClient(base_url=url, trust_env=False) as api:
        known = (await api.get("/v1/model-facts")).raise_for_status().content
    return msgspec.json.decode(known, type=ModelFacts)


@dataclass(frozen=True, slots=True)
class Answered:
    """An Answered measures one answer. All times are seconds on one clock."""

    asked_s: float
    ended_s: float
    arrivals_s: Sequence[float]
    tokens: int
    passes: int
    scripted: int
    """This many first tokens are the trace's; all draft tokens after them are wrong."""

    text: Text = ()
    """These are a session's tokens; a plain answer's are not recorded."""


TIMEOUT_S: Final = 600.0
"""A plain answer fails after this many seconds without a byte."""

GREEDY: Final = Sampling(temperature=0.0)

Client = Callable[[Source, int], Awaitable[Answered]]
"""A Client asks for an answer to a source with at most this many tokens. Raises AnswerError,
gateway.errors.ApiError or httpx.TransportError."""


@asynccontextmanager
async def plain(url: str) -> AsyncGenerator[Client]:
    """Yield a client of the verifier's own API."""
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=TIMEOUT_S) as http:
        listed = (await http.get("/v1/models")).raise_for_status().json()

        async def ask(source: Source, tokens: int) -> Answered:
            body = {
                "model": listed["data"][0]["id"], "prompt": source.prompt, "temperature": 0,
                "max_tokens": tokens, "stream": True, "stream_options": {"include_usage": True},
            }  # fmt: skip
            asked_s, arrivals_s, usage = perf_counter(), list[float](), dict[str, int]()
            async with http.stream("POST", "/v1/completions", json=body) as response:
                async for line in response.aiter_lines():
                    if line.startswith("data: {"):
                        chunk = msgspec.json.decode(line.removeprefix("data: "))
                        if any(choice["text"] for choice in chunk.get("choices", ())):
                            arrivals_s.append(perf_counter())
                        usage = chunk.get("usage") or usage
            if not (count := usage.get("completion_tokens", 0)):
                raise AnswerError(f"status {response.status_code}, and no whole answer")
            return Answered(asked_s, perf_counter(), arrivals_s, count, count, count)

        yield ask


@asynccontextmanager
async def scripted(
    url: str, drafter: ScriptedDrafter, sampling: Sampling = GREEDY, identity: str = "",
    **extras: object,
) -> AsyncGenerator[Client]:  # fmt: skip
    """Yield a client that is a scripted edge. The others are of each request, as in Job."""
    metrics = EdgeMetrics(CollectorRegistry())
    settings = EdgeSettings(verifier_url=AnyHttpUrl(url))
    verifiers = open_verifiers(settings, metrics)
    pairing = cast(TargetTokenizer, TargetsVocabulary())
    engine = EdgeEngine(verifiers, drafter, settings, metrics, pairing)

    async def ask(source: Source, tokens: int) -> Answered:
        job = Job("load", source.prompt, tokens, sampling, 0, extras=extras, identity=identity)
        asked_s, arrivals_s = perf_counter(), list[float]()
        text, counted = list[TokenId](), Statistics()
        async with aclosing(engine.generate(job)) as deltas:
            async for delta in deltas:
                counted = delta.statistics or counted
                if delta.tokens:
                    arrivals_s.append(perf_counter())
                    text += delta.tokens
        text_tokens, same = len(text), common_prefix(text, source.tokens)
        passes = counted.target_passes
        return Answered(asked_s, perf_counter(), arrivals_s, text_tokens, passes, same, text)

    try:
        yield ask
    finally:
        await engine.close()
        await verifiers.close()


@dataclass(frozen=True)
class ScriptedDrafter(NoDrafter):
    """Implements a Drafter that is never full. sources: by their prompts. step_s: seconds of a
    step, by the tokens it reads. vocabulary: the number of the target's tokens."""

    sources: Mapping[tuple[TokenId, ...], Source]
    step_s: Curve
    vocabulary: int

    def take(self, prompt: Text, *_: object, **__: object) -> ScriptedSlot:
        return ScriptedSlot(self, self.sources[tuple(prompt)])


@dataclass(slots=True)
class ScriptedSlot:
    """Implements a DraftSlot that has read its prompt. Once the target's text leaves the trace,
    all its draft tokens are wrong. A step begins as much earlier as the loop, which many edges
    share, noticed the end of the last one too late: each edge would have a loop of its own."""

    drafter: ScriptedDrafter
    source: Source
    _read: list[TokenId] = field(default_factory=list)
    _late_s: float = 0.0

    async def step(
        self, context: Text, sampler: StepSampler, *, ahead: Text = ()
    ) -> list[DraftToken]:
        began_at = perf_counter() - self._late_s
        output = list(context[len(self.source.prompt) :])
        unread = max(0, len(output) - common_prefix(self._read, output) - 1)
        drafts = self.source.drafts(output, ahead)
        self._read = [*output, *(draft.token for draft in drafts[:-1])]
        step_s = self.drafter.step_s.of(1 + unread + len(ahead))
        await asyncio.sleep(began_at + step_s - perf_counter())
        self._late_s = min(step_s, perf_counter() - began_at - step_s)
        return [replace(d, token=d.token % self.drafter.vocabulary) for d in drafts]

    def leave(self) -> None:
        """Do nothing, because nothing is held."""


class TargetsVocabulary:
    """Is to an edge as a TargetTokenizer whose draft model has the target's vocabulary."""

    relation: Final = "identical"
    translation: Final = None
    draft_tokens: Final = 0

    async def __call__(self, vocabulary: str) -> Tokenizer:
        raise EngineFault("a scripted edge reads no text")
