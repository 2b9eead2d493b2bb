"""This edge drafts in rounds like published systems (bench.run.rounds), or uselessly.

python -m bench.run.rounds sync:4 --verifier-url ... --draft-model ...
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Self

import numpy as np
import typer

from edge_agent.__main__ import serve
from edge_agent.draft.drafter import NoDrafter, StepSampler
from edge_agent.settings import EdgeSettings, load
from local_models.llama_cpp.context_length import Length
from local_models.llama_cpp.model import Model
from speculation.distributions import Q_SCALE, QuantisedDistribution
from speculation.draft_token import DraftToken
from speculation.drafting import DraftingSession
from speculation.messages import Limits, TokenId
from speculation.proposer import Latencies

# Published systems draft in rounds of a fixed length, where PicoSpec streams.
#
# sync:G    Vanilla speculation (Leviathan et al. 2023): draft G tokens, send them, wait.
# paper:G  PicoSpec as published (arXiv:2603.19133): while a round of G is away, the next one is
#           drafted from the edge's own last token. One round is away at a time.
#
# The target generates a bonus token after a round that was accepted. While `paper` waits, it
# drafts one more token, which the bonus token may confirm. This loses nothing: if the bonus
# token is another one, the next round would have been rejected anyway, a round trip later.

MAX_GAMMA: Final = 16
"""A round has at most this many draft tokens: in the simulator longer ones are never best."""


@dataclass(frozen=True, slots=True)
class RoundPolicy:
    """Drafts in rounds. gamma: draft tokens of a round. overlaps: draft while a round is
    away."""

    gamma: int
    overlaps: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse "sync:4" or "paper:4". Raises ValueError."""
        name, _, gamma = text.partition(":")
        known = name in ("sync", "paper") and gamma.isdecimal()
        if not known or not 1 <= int(gamma) <= MAX_GAMMA:
            raise ValueError(f"expected sync:G or paper:G, G in 1..{MAX_GAMMA}, not {text!r}")
        return cls(int(gamma), overlaps=name == "paper")

    def may_draft(self, session: DraftingSession, latencies: Latencies, limits: Limits) -> bool:
        if self.overlaps:
            return session.unsent < self.gamma + (session.in_flight > 0)
        return not session.in_flight and session.unsent < self.gamma

    def may_look_up(self, *_: object) -> bool:
        return False

    def should_send(self, session: DraftingSession, *, drafting: bool) -> bool:
        """Return True if a whole round is drafted and none is away."""
        return session.unsent > 0 and not drafting and not session.in_flight


STEP_S: Final = 0.02
"""A step takes this long: about as long as with half a billion weights on one core."""


@dataclass
class UselessDrafter(NoDrafter):
    """Implements a Drafter that proposes random tokens, and the slot of each of its sessions.

    It measures the cost of useless draft tokens, and shows that they cannot change the text.
    """

    vocabulary_size: int
    chance: np.random.Generator
    separate: bool
    """True if each token needs its distribution."""

    def take(
        self, prompt: Sequence[TokenId], owner: object = None, *, whole: bool = False
    ) -> UselessDrafter:
        return self

    async def step(
        self,
        context: Sequence[TokenId],
        sampler: StepSampler,
        *,
        ahead: Sequence[TokenId] = (),
    ) -> list[DraftToken]:
        """Return a random token with confidence 1 and, in `separate`, all weight on it."""
        await asyncio.sleep(STEP_S)
        token = int(self.chance.integers(self.vocabulary_size))
        certain = QuantisedDistribution(np.array([token]), np.array([Q_SCALE]))
        return [DraftToken(token, 1.0, certain if self.separate else None)]

    def leave(self) -> None:
        """Do nothing, because nothing is held."""


def make_drafter(model: Model, settings: EdgeSettings, _: Length) -> UselessDrafter:
    """Return the drafter for an edge with these settings."""
    return UselessDrafter(
        len(model.vocabulary.pieces), np.random.default_rng(), settings.judge == "separate"
    )


def main(
    rounds: Annotated[str, typer.Argument(help="sync:G, paper:G or useless.")],
    host: Annotated[str, typer.Option()],
    port: Annotated[int, typer.Option()],
    verifier_url: Annotated[str, typer.Option()],
    draft_model: Annotated[str, typer.Option()],
) -> None:
    """Serve the OpenAI API without lookup; other settings come from the environment."""
    named: dict[str, object] = {
        "host": host, "port": port, "verifier_url": verifier_url, "draft_model": draft_model,
        "lookup": False,
    }  # fmt: skip
    try:
        if rounds == "useless":
            serve(load(None, os.environ, named), None, make_drafter)
        else:
            serve(load(None, os.environ, named), RoundPolicy.parse(rounds))
    except ValueError as error:
        sys.exit(f"settings: {error}")


if __name__ == "__main__":
    typer.run(main)
