"""The systems compared; docs/performance.md says what each arm is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, Literal

from picospec.bench.round_policy import RoundPolicy
from picospec.bench.run.rivals import PLAIN, TOKENS, Rival
from picospec.bench.run.services import LINKED, EdgePlan
from picospec.edge_agent.settings import EdgeSettings
from picospec.gateway.tokenizer import NONE

GAMMA: Final = 4
"""A round has so many tokens where the arm's name does not say; this is the paper's number."""

WATCHED: Final = MappingProxyType({"include_speculation": True})
"""The page asks for this too, to show how the text comes about."""

STEADY: Final = MappingProxyType({"steady": True})
"""The page asks for this too, so that its text does not come in bursts."""

POOL_TOKENS: Final[int] = EdgeSettings.model_fields["pool_tokens"].default
"""An edge's pool holds so many tokens, as the product ships."""

Place = Literal["cloud", "far", "near", "alone"]
Predicts = Literal["", "own", "other"]


@dataclass(frozen=True, slots=True)
class Arm:
    name: str
    place: Place
    """At `cloud` the verifier's own API is asked through the link; at `far` the edge is on the
    user's side of the link, at `near` on the verifier's; at `alone` the draft model is asked
    without a link."""

    edge: EdgePlan | None = None
    predicts: Predicts = ""
    """Where prompts have predictions, the request predicts this prompt's own, or that of
    another prompt of its family."""

    stream_options: Mapping[str, object] = field(default_factory=lambda: NONE)
    """See bench.run.client.Question.stream_options."""

    rival: Rival | None = None
    """It answers in place of this product's verifier; with None the verifier does."""

    @property
    def engine(self) -> str:
        """Identifies the services that answer: arms of one engine are started together."""
        return self.name if self.rival else ""

    def at_long_work(self) -> Arm:
        """Return the arm as it is asked for scenarios. What can remember requests does: a
        rival, and the product's edge as it ships. An edge also tells whose the tokens are."""
        rival = self.rival and replace(self.rival, remembers=True)
        edge, watched = self.edge, WATCHED if self.edge else NONE
        if edge and not edge.rounds:
            edge = replace(edge, pool_tokens=POOL_TOKENS)
        options = {**self.stream_options, **watched}
        return replace(self, rival=rival, edge=edge, stream_options=options)


_FIXED: Final = {
    arm.name: arm
    for arm in (
        Arm("cloud", "cloud"),
        Arm("edge-only", "alone"),
        Arm("picospec", "far", EdgePlan(link=LINKED)),
        Arm("picospec-separate", "far", EdgePlan(judge="separate", link=LINKED)),
        Arm("picospec-nofill", "far", EdgePlan(fill="never", link=LINKED)),
        Arm("picospec-nolookup", "far", EdgePlan(lookup=False, link=LINKED)),
        Arm("picospec-pool", "far", EdgePlan(pool_tokens=POOL_TOKENS, link=LINKED)),
        Arm("picospec-noown", "far", EdgePlan(verifier_drafts=False, link=LINKED)),
        Arm("picospec-useless", "far", EdgePlan(rounds="useless", link=LINKED)),
        Arm("picospec-predicted", "far", EdgePlan(link=LINKED), "own"),
        Arm("picospec-mispredicted", "far", EdgePlan(link=LINKED), "other"),
        Arm("picospec-watched", "far", EdgePlan(link=LINKED), stream_options=WATCHED),
        Arm("picospec-steady", "far", EdgePlan(link=LINKED), stream_options=STEADY),
        Arm("colocated-edge", "near", EdgePlan()),
    )
}
_ROUNDS: Final = ("sync", "paper", "colocated")
_OTHER_DRAFT: Final = "picospec@"
"""An arm whose name begins so ends with a draft model: it is the product with that one."""

NAMES: Final = (
    *_FIXED, f"{_OTHER_DRAFT}MODEL", *(f"{name}:G" for name in _ROUNDS),
    PLAIN, *(f"{name}:K" for name in TOKENS),
)  # fmt: skip


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
    other, _, model = name.partition(_OTHER_DRAFT)
    if model and not other:
        return Arm(name, "far", EdgePlan(link=LINKED, draft_model=model))
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
