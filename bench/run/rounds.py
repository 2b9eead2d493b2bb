"""An edge that speculates in rounds, as published systems do: the product but for its pacing,
and without lookup.

    python -m bench.run.rounds sync:4 --verifier-url ... --draft-model ...

sync:G    Vanilla speculation (Leviathan et al. 2023): draft G tokens, send them, wait.
paper:G   PicoSpec as published (arXiv:2603.19133): while a round of G is away the next one is
          drafted, from the edge's own last token; one round in flight.

Drafter, wire, judge and verifier are the product's, so that only the policy differs. The target
says a token of its own after a round that stands. `paper` loses nothing by it: where the next
round disagrees, it would have been refused a round trip later. It drafts one token more while
it waits, which that token confirms. A round is published to be cut when drafting takes too
long; here all have G tokens, but at the answer's end.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Self

import typer
from pydantic import ValidationError

from edge_agent.__main__ import serve
from edge_agent.engine import MakePace
from edge_agent.pace import Pace
from edge_agent.settings import load
from speculation.drafting.policy import DraftSettings
from speculation.drafting.session import DraftingSession
from speculation.protocol.messages import Limits

MOST = 16
"""The largest round. In the simulator longer ones are never the best over all families."""


class RoundPace(Pace):
    """gamma: drafts in a round."""

    def __init__(
        self, gamma: int, pacing: DraftSettings, limits: Limits, rtt_s: Callable[[], float]
    ) -> None:
        super().__init__(pacing, limits, rtt_s)
        self.gamma = gamma

    def should_flush(self, session: DraftingSession, *, drafting: bool, separate: bool) -> bool:
        """Send a whole round, when none is away."""
        return session.unsent > 0 and not drafting and not session.away


class SyncPace(RoundPace):
    def may_draft(self, session: DraftingSession) -> bool:
        return not session.away and session.unsent < self.gamma


class PaperPace(RoundPace):
    def may_draft(self, session: DraftingSession) -> bool:
        return session.unsent < self.gamma + (session.away > 0)


@dataclass(frozen=True, slots=True)
class Rule:
    kind: type[RoundPace]
    gamma: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "sync:4". Raises ValueError."""
        name, _, gamma = text.partition(":")
        kinds = {"sync": SyncPace, "paper": PaperPace}
        if name not in kinds or not gamma.isdecimal() or not 1 <= int(gamma) <= MOST:
            raise ValueError(f"expected sync:G or paper:G with G in 1..{MOST}, not {text!r}")
        return cls(kinds[name], int(gamma))

    @property
    def make_pace(self) -> MakePace:
        return partial(self.kind, self.gamma)


def main(
    rule: Annotated[str, typer.Argument(help="sync:G or paper:G.")],
    host: Annotated[str, typer.Option()],
    port: Annotated[int, typer.Option()],
    verifier_url: Annotated[str, typer.Option()],
    draft_model: Annotated[str, typer.Option()],
) -> None:
    """Serve the OpenAI API, drafting in rounds; other settings come from the environment."""
    named = {
        "host": host, "port": port, "verifier_url": verifier_url, "draft_model": draft_model,
        "lookup": False,
    }  # fmt: skip
    try:
        make_pace = Rule.parse(rule).make_pace
        settings = load(None, os.environ, named)
    except (ValidationError, ValueError) as error:
        sys.exit(f"settings: {error}")
    serve(settings, make_pace)


if __name__ == "__main__":
    typer.run(main)
