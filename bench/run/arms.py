"""The systems compared. They share the target, hosts, link, prompts and seeds.

cloud             the target alone, streaming through the link: what a user has without us
picospec          this product as it ships: judge `coupled`, fill `auto`
picospec-separate the same with judge `separate`
picospec-nofill   the same with fill `never`
picospec-nolookup the same without prompt lookup
picospec-useless  the same with a drafter that guesses at random
sync:G            vanilla speculation, stop and wait, G tokens a round (bench.run.rounds)
paper:G           PicoSpec as published, one round of G in flight (bench.run.rounds)
colocated:G       sync:G with its draft model on the verifier's cores; the answer comes through
                  the link
colocated-edge    the product's edge next to the verifier, on cores of its own: speculation
                  without a network, and with a second processor in the data centre
edge-only         the draft model alone, for reference: another text
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from bench.round_policy import RoundPolicy
from bench.run.services import EdgePlan

GAMMA: Final = 4
"""Of a round arm whose name does not say: the paper's."""

Place = Literal["cloud", "far", "near", "alone"]


@dataclass(frozen=True, slots=True)
class Arm:
    name: str
    place: Place
    """cloud: the verifier's own API through the link. far: an edge before the link.
    near: an edge behind the link. alone: the draft model, without a link."""

    edge: EdgePlan | None = None

    @property
    def kind(self) -> str:
        """The name without its gamma."""
        return self.name.partition(":")[0]


_FIXED: Final = {
    "cloud": Arm("cloud", "cloud"),
    "edge-only": Arm("edge-only", "alone"),
    "picospec": Arm("picospec", "far", EdgePlan(linked=True)),
    "picospec-separate": Arm(
        "picospec-separate", "far", EdgePlan(judge="separate", linked=True)
    ),
    "picospec-nofill": Arm("picospec-nofill", "far", EdgePlan(fill="never", linked=True)),
    "picospec-nolookup": Arm("picospec-nolookup", "far", EdgePlan(lookup=False, linked=True)),
    "picospec-useless": Arm("picospec-useless", "far", EdgePlan(drafter="noise", linked=True)),
    "colocated-edge": Arm("colocated-edge", "near", EdgePlan()),
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
    rounds = f"{'sync' if kind == 'colocated' else kind}:{gamma or GAMMA}"
    RoundPolicy.parse(rounds)
    near = kind == "colocated"
    edge = EdgePlan(fill="never", linked=not near, beside=near, rounds=rounds)
    return Arm(f"{kind}:{gamma or GAMMA}", "near" if near else "far", edge)
