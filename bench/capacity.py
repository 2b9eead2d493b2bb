"""Measures what one verifier gives many clients at once, as their number grows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from math import ceil
from time import perf_counter, process_time
from typing import Final

import msgspec
import numpy as np

from bench.clients import Answered, Client, ScriptedDrafter, facts_of, plain, scripted
from bench.link import Conditions
from bench.run.services import linked
from bench.simulator.hosts import device
from bench.simulator.source import Source
from speculation.model_facts import ModelFacts

ANSWERS: Final = 3
"""Each client asks for at least this many answers: one of every family."""

ARMS: Final = ("cloud", "picospec")
PLAIN: Final = ("cloud",)
"""These arms also run on a server without sessions, such as vLLM's own."""


Asked = Sequence[Source]
"""A client asks for these answers one by one."""


@dataclass(frozen=True, slots=True)
class Load:
    """A Load has a verifier on this machine, and what it is loaded with."""

    url: str
    sources: Sequence[Source]
    rtt_ms: float
    step_s: float
    """A draft step that reads one token takes this long; see bench.simulator.hosts.device."""

    async def rows(
        self, counts: Sequence[int], arms: Sequence[str] = ARMS
    ) -> AsyncGenerator[Row]:
        """Measure the arms at each count of sessions, in alternating order. Raises
        AnswerError, gateway.errors.ApiError or httpx.HTTPError."""
        facts = await facts_of(self.url) if arms != PLAIN else None
        async with linked(self.url, Conditions(self.rtt_ms)) as (far_url, _):
            for turn, count in enumerate(counts):
                sources = divided(self.sources, count)
                for arm in arms[:: -1 if turn % 2 else 1]:
                    async with AsyncExitStack() as stack:
                        client = partial(self._client, stack, arm, far_url, facts)
                        row = await _measured(arm, [await client() for _ in sources], sources)
                    yield row

    async def _client(
        self, stack: AsyncExitStack, arm: str, url: str, facts: ModelFacts | None
    ) -> Client:
        if facts is None or arm == "cloud":
            return await stack.enter_async_context(plain(url))
        sources = {source.prompt: source for source in self.sources}
        drafter = ScriptedDrafter(sources, device(self.step_s), facts.vocabulary_size)
        return await stack.enter_async_context(scripted(url, drafter))


def divided(sources: Sequence[Source], clients: int) -> list[list[Source]]:
    """Return the questions of each client: ANSWERS of them, each client beginning at another
    one. With few clients each asks more, so that every question is asked."""
    each = max(ANSWERS, ceil(len(sources) / clients))
    return [list(islice(cycle(sources), n, n + each)) for n in range(clients)]


async def _measured(arm: str, clients: Sequence[Client], sources: Sequence[Asked]) -> Row:
    """Measure after a warm-up that reads all prompts and opens all connections."""
    await _all(clients, sources, 1)
    busy_s, began_s = process_time(), perf_counter()
    answers = await _all(clients, sources)
    busy_share = (process_time() - busy_s) / (perf_counter() - began_s)
    return Row(len(clients), arm, figures(answers), busy_share)


async def _all(
    clients: Sequence[Client], sources: Sequence[Asked], tokens: int | None = None
) -> list[list[Answered]]:
    """Make all clients ask concurrently. tokens: the limit of an answer; None: the trace's."""

    async def ask(client: Client, own: Sequence[Source]) -> list[Answered]:
        return [await client(source, tokens or len(source.tokens)) for source in own]

    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(ask(*pair)) for pair in zip(clients, sources, strict=True)]
    return [task.result() for task in running]


class Figures(msgspec.Struct, frozen=True):
    tokens_per_s: float
    """All clients together have this rate, from the first request to the last answer's end."""

    slowest_tokens_per_s: float
    """The slowest client has this rate over all its answers."""

    passes_per_token: float
    gap_ms_p50: float
    gap_ms_p95: float
    scripted_share: float
    """This share of the tokens is the trace's."""


class Row(msgspec.Struct, frozen=True):
    """A Row has the figures of one load."""

    sessions: int
    arm: str
    measured: Figures
    busy_share: float
    """Clients and link used this share of one core. Near 1 they are the bottleneck."""


def figures(clients: Sequence[Sequence[Answered]]) -> Figures:
    """Return the figures of all answers. clients: the answers of each client, in order."""
    answers = [answer for own in clients for answer in own]
    seconds = max(a.ended_s for a in answers) - min(a.asked_s for a in answers)
    tokens, passes = sum(a.tokens for a in answers), sum(a.passes for a in answers)
    rates = [sum(a.tokens for a in own) / (own[-1].ended_s - own[0].asked_s) for own in clients]
    gaps_ms = [1000 * gap for a in answers for gap in np.diff(a.arrivals_s)] or [0.0]
    p50_ms, p95_ms = map(float, np.percentile(gaps_ms, (50, 95)))
    followed = sum(a.scripted for a in answers) / tokens
    return Figures(tokens / seconds, min(rates), passes / tokens, p50_ms, p95_ms, followed)
