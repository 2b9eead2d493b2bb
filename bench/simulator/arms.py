"""The systems compared (see docs/performance.md), as the few things in which they differ.

Here `colocated` is `sync` on the target's host: without a link, but drafting takes the target's
time. Hosts, link, prompts and the head start while the target reads the prompt are the same for
all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from picospec.bench.round_policy import RoundPolicy
from picospec.speculation.drafting.policy import DraftPolicy, StreamPolicy
from picospec.speculation.protocol.messages import Fill


@dataclass(frozen=True, slots=True)
class Arm:
    """By default the target alone."""

    name: str = "cloud"
    fill: Fill = "always"
    policy: DraftPolicy | None = None
    """With None nothing is drafted."""

    own_drafts: bool = False
    """It says whether the verifier proposes draft tokens too."""

    lookup: bool = False
    """It says whether tokens are also proposed by prompt lookup."""

    gamma: int = 0
    """A round has so many draft tokens; 0 where there are no rounds."""

    branches: int = 0
    """So many branches are drafted beside the chain while a round is away, see
    bench.simulator.acespec."""

    colocated: bool = False
    """It says whether the draft model runs on the target's host."""

    waits: bool = False
    """It says whether the target rests while the draft model works."""


def sync(gamma: int) -> Arm:
    """Return vanilla speculation with `gamma` draft tokens a round."""
    return Arm("sync", "never", RoundPolicy(gamma), gamma=gamma, waits=True)


def paper(gamma: int) -> Arm:
    """Return PicoSpec as published, see bench.round_policy."""
    return Arm("paper", "never", RoundPolicy(gamma, overlaps=True), gamma=gamma)


def acespec(gamma: int, branches: int) -> Arm:
    """Return `paper` with a cache of branches, see bench.simulator.acespec."""
    return replace(paper(gamma), name="acespec", branches=branches)


def colocated(gamma: int) -> Arm:
    """Return vanilla speculation whose draft model runs on the target's host."""
    policy = RoundPolicy(gamma)
    return Arm("colocated", "never", policy, gamma=gamma, colocated=True, waits=True)


def picospec(
    name: str = "picospec", *, fill: Fill = "auto", own_drafts: bool = True, lookup: bool = True
) -> Arm:
    """Return this product, with or without one of its parts."""
    own = own_drafts and fill == "auto"
    return Arm(name, fill, StreamPolicy(may_rest=fill != "never"), own, lookup)
