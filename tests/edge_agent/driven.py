"""A driver between a fake slot and fake links, and what it emits."""

from __future__ import annotations

import asyncio

import numpy as np
from prometheus_client import CollectorRegistry

from picospec.edge_agent.driver import DraftModel, Driver
from picospec.edge_agent.metrics import EdgeMetrics
from picospec.speculation import coupled
from picospec.speculation.draft_machine import DraftMachine
from picospec.speculation.drafting import StreamPolicy
from picospec.speculation.judges import JUDGES
from picospec.speculation.lookup import PromptLookup
from picospec.speculation.messages import Commit, Finish, Open, Sampling, TokenId
from tests.edge_agent.fakes import LIMITS, CountingSlot, ScriptedLink, ScriptedSessions

PROMPT = (50, 51, 52)
"""So that CountingSlot drafts 3 for position 0."""

STOP = 777


class Edge:
    """A driver, and what it emitted. links: one for each session, the first one first."""

    def __init__(
        self,
        *links: ScriptedLink,
        slot: CountingSlot | None = None,
        max_tokens: int = 40,
        separate: bool = False,
        prompt: tuple[TokenId, ...] = PROMPT,
        lookup: bool = False,
    ) -> None:
        sampler = coupled.sampler(Sampling(), 0, len(prompt))
        judge = "separate" if separate else "coupled"
        request = Open("m", "v", prompt, Sampling(), 0, max_tokens, (STOP,), judge)
        self.machine = DraftMachine(
            request,
            StreamPolicy(),
            LIMITS,
            JUDGES[judge].edge(request, iter(np.random.default_rng(3).random, 2.0)),
            rtt_s=lambda: 0.0,
            drafts=slot is not None,
            lookup=PromptLookup(prompt) if lookup else None,
        )
        self.emitted: list[TokenId] = []
        model = DraftModel(slot, lambda _: sampler, prompt) if slot else None
        self.sessions = ScriptedSessions(*links)
        metrics = EdgeMetrics(CollectorRegistry())
        self.driver = Driver(self.machine, self.sessions, model, metrics)

    async def emit(self, commit: Commit) -> None:
        assert commit.start == len(self.emitted)
        self.emitted.extend(commit.tokens)

    async def run(self) -> Finish:
        async with asyncio.timeout(2):
            return await self.driver.run(self.emit)
