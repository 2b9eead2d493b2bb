"""How an edge speculates: what its settings, a test or a measurement choose."""

from __future__ import annotations

from dataclasses import dataclass, field

from picospec.speculation.drafting.policy import DraftPolicy, DraftSettings
from picospec.speculation.protocol.messages import Fill, Judge


@dataclass(frozen=True, slots=True)
class Speculation:
    """The same for all answers of an edge."""

    judge: Judge = "coupled"
    fill: Fill = "auto"
    drafting: DraftSettings = field(default_factory=DraftSettings)
    lookup: bool = True
    """Whether tokens are also proposed by prompt lookup; only in `coupled`."""

    grammars: bool = True
    """Whether drafts keep to the grammar of an answer that has one; only in `coupled`."""

    verifier_drafts: bool = True
    """Whether the verifier proposes draft tokens too, where it has none of the edge's; only in
    `coupled` with fill `auto`."""

    policy: DraftPolicy | None = None
    """It replaces StreamPolicy, as where a published system is measured."""

    pool_tokens: int = 0
    """Tokens of answers kept for each owner of answers."""

    share_prefixes: bool = False
    """Whether the verifier may use what it has read for one key of the edge for another."""
