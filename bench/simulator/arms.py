"""The systems compared, as the few things in which they differ.

cloud              the target alone, streaming
sync               vanilla speculation: draft gamma tokens, send, wait (Leviathan et al. 2023)
paper              PicoSpec as published (arXiv:2603.19133), see bench.round_policy
picospec           this product, fill `auto`
picospec-nofill    the same, fill `never`
picospec-nolookup  the same as picospec, without prompt lookup
colocated          sync beside the target: no link, but drafting takes the target's time

Hosts, link, prompts and the head start while the target reads the prompt are the same for all.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.round_policy import RoundPolicy
from speculation.drafting.policy import DraftPolicy, StreamPolicy
from speculation.protocol.messages import Fill


@dataclass(frozen=True, slots=True)
class Arm:
    """By default the target alone."""

    name: str = "cloud"
    fill: Fill = "always"
    policy: DraftPolicy | None = None
    """None: nothing is drafted."""

    lookup: bool = False
    """Whether tokens are also proposed by prompt lookup."""

    gamma: int = 0
    """Draft tokens in a round; 0 where there are no rounds."""

    colocated: bool = False
    """Whether the draft model runs on the target's host."""

    waits: bool = False
    """Whether the target rests while the draft model works."""


def sync(gamma: int) -> Arm:
    return Arm("sync", "never", RoundPolicy(gamma), gamma=gamma, waits=True)


def paper(gamma: int) -> Arm:
    return Arm("paper", "never", RoundPolicy(gamma, overlaps=True), gamma=gamma)


def colocated(gamma: int) -> Arm:
    policy = RoundPolicy(gamma)
    return Arm("colocated", "never", policy, gamma=gamma, colocated=True, waits=True)


def picospec(name: str = "picospec", *, fill: Fill = "auto", lookup: bool = True) -> Arm:
    return Arm(name, fill, StreamPolicy(may_rest=fill != "never"), lookup=lookup)
