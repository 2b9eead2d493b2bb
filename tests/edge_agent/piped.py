"""A pipeline between a fake seat and a fake link, and what it emits."""

from __future__ import annotations

import asyncio

import numpy as np
from edge_agent.pace import Pace
from edge_agent.pipeline import Pipeline
from edge_agent.steps import Guesser

from edge_agent.draft_model.drafter import DraftSlot as Seat
from edge_agent.draft_model.drafter import Seat
from edge_agent.metrics import EdgeMetrics
from speculation.drafting.policy import DraftSettings
from speculation.drafting.session import DraftingSession
from speculation.proposing.prompt_lookup import Lookup
from speculation.protocol.messages import Commit, Finish, Sampling, TokenId
from speculation.sampling import draft_sampler as guessing
from tests.edge_agent.fakes import LIMITS, ScriptedLink

PROMPT = (50, 51, 52)
"""So that CountingSeat guesses 3 for position 0."""


class Edge:
    """A pipeline, and what it emitted."""

    def __init__(
        self,
        metrics: EdgeMetrics,
        link: ScriptedLink,
        seat: Seat | None = None,
        *,
        max_tokens: int = 40,
        pacing: DraftSettings | None = None,
        separate: bool = False,
        stop: TokenId = 777,
        prompt: tuple[TokenId, ...] = PROMPT,
        lookup: bool = False,
    ) -> None:
        pick = guessing.coupled(Sampling(), 0, len(prompt))
        self.session = DraftingSession(max_tokens=max_tokens, stop_tokens=(stop,))
        self.spoken: list[TokenId] = []
        self.link = link
        self.pipeline = Pipeline(
            self.session,
            link,
            None if seat is None else Guesser(seat, pick, prompt),
            Pace(pacing or DraftSettings(), LIMITS, lambda: 0.0),
            metrics,
            uniforms=iter(np.random.default_rng(3).random, 2.0),
            lookup=Lookup(prompt) if lookup else None,
            separate=separate,
        )

    async def emit(self, commit: Commit) -> None:
        assert commit.start == len(self.spoken)
        self.spoken.extend(commit.tokens)

    async def run(self) -> Finish:
        async with asyncio.timeout(2):
            return await self.pipeline.run(self.emit)
