"""The bench compares these systems (arms); docs/performance.md describes each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

from bench.run.rivals import PLAIN, TOKENS, Rival
from bench.run.round_policy import RoundPolicy
from bench.run.services import LINKED, EdgePlan
from edge_agent.settings import EdgeSettings

GAMMA: Final = 4
"""A round has this many tokens if the arm's name has no number; it is the paper's number."""

ANSWER_CACHE_TOKENS: Final[int] = EdgeSettings.model_fields["answer_cache_tokens"].default
"""An edge's cache holds this many tokens by default."""

Place = Literal["cloud", "far", "near", "alone"]
Predicts = Literal["", "own", "other"]


@dataclass(frozen=True, slots=True)
class Arm:
    name: str
    place: Place
    """`cloud`: the verifier's own API is asked through the link. `far`: the edge is on the
    user's side of the link. `near`: the edge is on the verifier's side. `alone`: the draft
    model is asked without a link."""

    edge: EdgePlan | None = None
    predicts: Predicts = ""
    """If prompts have predictions, a request sends its prompt's own, or that of another prompt
    of its family."""

    rival: Rival | None = None
    """This rival, if any, answers in place of this product's verifier."""

    @property
    def engine(self) -> str:
        """Identifies the services that answer; arms of one engine are started together."""
        return self.name if self.rival else ""

    def at_long_work(self) -> Arm:
        """Return the arm for scenarios. A rival, and the product's edge as it ships, remember
        requests if they can."""
        rival, edge = self.rival and replace(self.rival, remembers=True), self.edge
        if edge and not edge.rounds:
            edge = replace(edge, answer_cache_tokens=ANSWER_CACHE_TOKENS)
        return replace(self, rival=rival, edge=edge)


_FIXED: Final = {
    arm.name: arm
    for arm in (
        Arm("cloud", "cloud"),
        Arm("edge-only", "alone"),
        Arm("picospec", "far", EdgePlan(link=LINKED)),
        Arm("picospec-separate", "far", EdgePlan(judge="separate", link=LINKED)),
        Arm("picospec-nofill", "far", EdgePlan(fill="never", link=LINKED)),
        Arm("picospec-nolookup", "far", EdgePlan(lookup=False, link=LINKED)),
        Arm("picospec-noown", "far", EdgePlan(ngram_drafts=False, link=LINKED)),
        Arm("picospec-useless", "far", EdgePlan(rounds="useless", link=LINKED)),
        Arm("picospec-predicted", "far", EdgePlan(link=LINKED), "own"),
        Arm("picospec-mispredicted", "far", EdgePlan(link=LINKED), "other"),
    )
}

_ROUNDS: Final = ("sync", "paper", "colocated")

NAMES: Final = (
    *_FIXED, *(f"{name}:G" for name in _ROUNDS), PLAIN, *(f"{name}:K" for name in TOKENS)
)  # fmt: skip


def parse(text: str) -> list[Arm]:
    """Parse arms, separated by commas. Raises a ValueError that names an unknown one."""
    arms = [_arm(name.strip()) for name in text.split(",") if name.strip()]
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        raise ValueError(f"an arm is there twice: {text}")
    if "cloud" not in names:
        raise ValueError("`cloud` must be among the arms: all others are measured against it")
    return arms


def _arm(name: str) -> Arm:
    if name in _FIXED:
        return _FIXED[name]
    if rival := Rival.parse(name):
        return Arm(rival.name, "cloud", rival=rival)
    kind, _, gamma = name.partition(":")
    if kind not in _ROUNDS:
        raise ValueError(f"no arm is called {name!r}; there are {', '.join(NAMES)}")
    name = f"{kind}:{gamma or GAMMA}"
    rounds = name.replace("colocated", "sync")
    RoundPolicy.parse(rounds)
    if kind == "colocated":
        return Arm(name, "near", EdgePlan(fill="never", colocated=True, rounds=rounds))
    return Arm(name, "far", EdgePlan(fill="never", link=LINKED, rounds=rounds))
