"""This edge drafts in rounds like published systems (bench.run.round_policy), or uselessly.

python -m bench.run.rounds sync:4 --verifier-url ... --draft-model ...
"""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass
from typing import Annotated, Final

import numpy as np
import typer

from bench.run.round_policy import RoundPolicy
from bench.traces import Text
from edge_agent import engine
from edge_agent.__main__ import serve
from edge_agent.draft import loading
from edge_agent.draft.drafter import NoDrafter, StepSampler
from edge_agent.settings import EdgeSettings, load
from local_models.llama_cpp.context_length import Length
from local_models.llama_cpp.model import Model
from speculation.distributions import Q_SCALE, QuantisedDistribution
from speculation.draft_token import DraftToken

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

    def take(self, prompt: Text, *_: object, **__: object) -> UselessDrafter:
        return self

    async def step(
        self, context: Text, sampler: StepSampler, *, ahead: Text = ()
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
    size, separate = len(model.vocabulary.pieces), settings.judge == "separate"
    return UselessDrafter(size, np.random.default_rng(), separate)


def become(rounds: str) -> None:
    """Make the edge of this process, which serves one arm, draft like it. Raises ValueError."""
    if rounds == "useless":
        loading.make_drafter = make_drafter  # type: ignore[assignment]
    else:
        policy = RoundPolicy.parse(rounds)
        engine.StreamPolicy = lambda *_, **__: policy  # type: ignore[assignment, attr-defined]


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
        become(rounds)
        serve(load(None, os.environ, named))
    except ValueError as error:
        sys.exit(f"settings: {error}")


if __name__ == "__main__":
    typer.run(main)
