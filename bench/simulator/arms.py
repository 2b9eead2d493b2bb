"""The compared systems (see docs/performance.md) differ in a few things.

`colocated` is `sync` on the target's host: no link, but drafting takes the target's time.
Hosts, link, prompts and the head start while the target reads the prompt are the same for all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from picospec.bench.run.rounds import RoundPolicy
from picospec.bench.simulator.rivals import Speculation
from picospec.speculation.drafting import DraftPolicy, StreamPolicy
from picospec.speculation.messages import Fill


@dataclass(frozen=True, slots=True)
class Arm:
    """An Arm is a compared system; by default the target alone."""

    name: str = "cloud"
    fill: Fill = "always"
    policy: DraftPolicy | None = None
    """The edge drafts by this policy; None drafts nothing."""

    own_drafts: bool = False
    """True if the verifier proposes draft tokens too."""

    lookup: bool = False
    """True if prompt lookup proposes tokens too."""

    pool_tokens: int = 0
    """The edge keeps this many tokens of each client's answers; 0 without a pool."""

    rival: Speculation | None = None
    """The target runs in vLLM alone, with this speculation; see bench.simulator.rivals."""

    gamma: int = 0
    """A round has this many draft tokens; 0 without rounds."""

    branches: int = 0
    """This many branches are drafted beside the chain while a round is away; see
    bench.simulator.rivals."""

    colocated: bool = False
    """True if the draft model runs on the target's host."""

    waits: bool = False
    """True if the target is idle while the draft model works."""


def sync(gamma: int) -> Arm:
    """Return vanilla speculation with `gamma` draft tokens a round."""
    return Arm("sync", "never", RoundPolicy(gamma), gamma=gamma, waits=True)


def paper(gamma: int) -> Arm:
    """Return PicoSpec as published; see bench.run.rounds."""
    return Arm("paper", "never", RoundPolicy(gamma, overlaps=True), gamma=gamma)


def acespec(gamma: int, branches: int) -> Arm:
    """Return `paper` with a cache of branches; see bench.simulator.rivals."""
    return replace(paper(gamma), name="acespec", branches=branches)


def colocated(gamma: int) -> Arm:
    """Return vanilla speculation with the draft model on the target's host."""
    policy = RoundPolicy(gamma)
    return Arm("colocated", "never", policy, gamma=gamma, colocated=True, waits=True)


def picospec(
    name: str = "picospec", *, fill: Fill = "auto", own_drafts: bool = True, lookup: bool = True
) -> Arm:
    """Return this product, with or without one of its parts."""
    own = own_drafts and fill == "auto"
    return Arm(name, fill, StreamPolicy(may_rest=fill != "never"), own, lookup)
