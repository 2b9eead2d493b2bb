"""The judges, by the names that settings and an Open use for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from speculation.coupled import Coupled, CoupledEdge, CoupledVerifier
from speculation.judge import Judge, Rule
from speculation.model_facts import Judge as Name
from speculation.separate import SeparateEdge, SeparateVerifier

JUDGES: Final[Mapping[Name, Judge]] = {
    "coupled": Judge(CoupledEdge, CoupledVerifier, takes_any_draft=True, has_logprobs=True),
    "separate": Judge(
        SeparateEdge, SeparateVerifier, takes_any_draft=False, has_logprobs=False
    ),
}


def seeded(seed: int, at: int) -> Rule:
    """Return the rule by which the target draws with a seed when there is no edge. at: see
    Noise."""
    return Coupled(seed, at)
