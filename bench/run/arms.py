"""The systems compared; docs/performance.md says what each arm is.

They share the target, hosts, link, prompts and seeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from bench.link.path import Conditions
from bench.round_policy import RoundPolicy
from bench.run.services import EdgePlan

GAMMA: Final = 4
"""Tokens a round of an arm whose name does not say: the paper's."""

LINKED: Final = Conditions()
"""The link of an edge until a turn sets its conditions."""

Place = Literal["cloud", "far", "near", "alone"]


@dataclass(frozen=True, slots=True)
class Arm:
    name: str
    place: Place
    """cloud: the verifier's own API is asked through the link. far: the edge is on the user's
    side of the link. near: the edge is on the verifier's side. alone: the draft model is asked
    without a link."""

    edge: EdgePlan | None = None


_FIXED: Final = {
    arm.name: arm
    for arm in (
        Arm("cloud", "cloud"),
        Arm("edge-only", "alone"),
        Arm("picospec", "far", EdgePlan(link=LINKED)),
        Arm("picospec-separate", "far", EdgePlan(judge="separate", link=LINKED)),
        Arm("picospec-nofill", "far", EdgePlan(fill="never", link=LINKED)),
        Arm("picospec-nolookup", "far", EdgePlan(lookup=False, link=LINKED)),
        Arm("picospec-useless", "far", EdgePlan(rounds="useless", link=LINKED)),
        Arm("colocated-edge", "near", EdgePlan()),
    )
}
_ROUNDS: Final = ("sync", "paper", "colocated")
NAMES: Final = (*_FIXED, *(f"{name}:G" for name in _ROUNDS))


def parse(text: str) -> list[Arm]:
    """Read arms, separated by commas. Raises ValueError that names the one it does not know."""
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
    kind, _, gamma = name.partition(":")
    if kind not in _ROUNDS:
        raise ValueError(f"no arm is called {name!r}; there are {', '.join(NAMES)}")
    gamma = gamma or str(GAMMA)
    rounds = f"{'sync' if kind == 'colocated' else kind}:{gamma}"
    RoundPolicy.parse(rounds)
    if kind == "colocated":
        edge = EdgePlan(fill="never", colocated=True, rounds=rounds)
        return Arm(f"{kind}:{gamma}", "near", edge)
    return Arm(f"{kind}:{gamma}", "far", EdgePlan(fill="never", link=LINKED, rounds=rounds))
