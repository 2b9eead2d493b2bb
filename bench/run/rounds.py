"""This edge drafts in rounds like published systems (bench.round_policy), or uselessly.

python -m picospec.bench.run.rounds sync:4 --verifier-url ... --draft-model ...
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import numpy as np
import typer

from picospec.bench.round_policy import RoundPolicy
from picospec.edge_agent.__main__ import serve
from picospec.edge_agent.draft.drafter import StepSampler
from picospec.edge_agent.settings import EdgeSettings, load
from picospec.models.llama_cpp.model import Model
from picospec.speculation.distributions import Q_SCALE, DraftToken, QuantisedDistribution
from picospec.speculation.messages import TokenId

STEP_S: Final = 0.02
"""A step takes this long: about as long as with half a billion weights on one core."""


@dataclass(slots=True)
class UselessDrafter:
    """Implements a Drafter that proposes random tokens, and the slot of each of its sessions.

    It measures the cost of useless draft tokens, and shows that they cannot change the text.
    """

    vocabulary_size: int
    chance: np.random.Generator
    separate: bool
    """True if each token needs its distribution."""

    is_stuck: bool = False
    read_tokens: int = 0

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

    async def watch(self) -> None:
        """Do nothing, because no step hangs."""

    def close(self) -> bool:
        """Return True, because nothing is held."""
        return True


def make_drafter(model: Model | None, settings: EdgeSettings) -> UselessDrafter:
    """Return the drafter for an edge with these settings."""
    tokens = 1 if model is None else len(model.vocabulary.pieces)
    return UselessDrafter(tokens, np.random.default_rng(), settings.judge == "separate")


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
