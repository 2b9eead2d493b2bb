"""Keeps what is known of the verifiers, and chooses the best of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final, Generic, TypeVar

from edge_agent.link.prefixes import Prefixes, PromptBlocks, Speed
from speculation.learning import running_mean
from speculation.messages import RUN_CHARACTERS
from speculation.model_facts import ModelFacts
from speculation.speedup import SpeedupEstimates

RTT_WEIGHT: Final = 0.125
"""The latest round trip has this weight in the mean, as in TCP (RFC 6298, section 2)."""

BUSY_S: Final = 0.1
"""A verifier whose sessions are all taken counts as this much farther away. Each session more
lengthens the passes of the others, by tens of milliseconds where many share them."""

SHARED_S: Final = 0.01
"""A verifier counts as this much farther away for each session of this edge there, which its
load will show later."""

STAY_S: Final = 0.05
"""Where the prompt is unknown, the verifier in use counts as this much nearer: it may have the
beginning of the text in its KV cache."""


class Event(Enum):
    """The events that show a verifier's state."""

    ANSWERED = auto()  # it took a session or a draft
    IS_READY = auto()  # it said that it opens sessions
    DRAINS = auto()  # it said that it opens none, because it is about to stop
    LOST = auto()  # it did not answer in time, or one of its streams was cut


@dataclass(frozen=True, slots=True)
class KnownModel:
    """What the latest facts of a verifier say of its model. Before the first, nothing but its
    name is known, if the settings have one."""

    name: str = ""
    identity: str = ""
    identities: frozenset[str] = frozenset()
    """The identities of the model and its adapters."""

    names: frozenset[str] = frozenset()
    """Their names."""

    is_compatible: bool = True
    """True if the verifier speaks this edge's version of the protocol, as far as is known."""


@dataclass(slots=True, eq=False)
class KnownVerifier:
    """What is known of a verifier. label: names it where its address must not be shown."""

    label: str
    latest: Event | None = None
    """The latest event; None before the verifier was asked."""

    model: KnownModel = KnownModel()
    rtt_s: float = 0.0
    """The smoothed round trip; 0 until the first sample."""

    load: float = 0.0
    """The share of its sessions that are taken, from 0 to 1."""

    open_sessions: int = 0
    """This many sessions of this edge run there or are being opened."""

    run: str = ""
    """Names the verifier's process; empty before its first session."""

    prefixes: Prefixes = field(default_factory=Prefixes, compare=False)
    speedups: SpeedupEstimates = field(default_factory=SpeedupEstimates, compare=False)
    """They tell what the edge's drafted and looked-up tokens earn there."""

    def note(self, event: Event) -> None:
        if not (event is Event.ANSWERED and self.latest is Event.DRAINS):
            self.latest = event  # a draining verifier finishes its sessions, and opens no more

    def timed(self, round_trip_s: float) -> None:
        self.rtt_s = running_mean(self.rtt_s or None, round_trip_s, RTT_WEIGHT)

    def learn(self, facts: ModelFacts) -> None:
        self.model = KnownModel(
            facts.model,
            facts.identity,
            frozenset((facts.identity, *facts.adapters.values())),
            frozenset((facts.model, *facts.adapters)),
            facts.is_compatible,
        )

    def began(self, session: str) -> None:
        """Note that the verifier has begun a session. Another process has an empty cache."""
        run = session[:RUN_CHARACTERS]
        if self.run and run != self.run:
            self.prefixes.forget()
        self.run = run

    @property
    def is_ready(self) -> bool:
        """True if the verifier opens sessions, as far as is known."""
        return self.latest in (Event.ANSWERED, Event.IS_READY)

    def may_serve(self, identity: str) -> bool:
        """Return True if it could go on with texts of this identity, as far as is known."""
        model = self.model
        return model.is_compatible and (not model.identity or identity in model.identities)


V = TypeVar("V", bound=KnownVerifier)


class KnownVerifiers(Generic[V]):
    """The verifiers of one model. current: the one in use, whose facts were returned last."""

    def __init__(self, verifiers: Sequence[V]) -> None:
        self.all = verifiers
        self.current = verifiers[0]
        self.speed = Speed()

    @property
    def is_ready(self) -> bool:
        """True if any verifier is ready, as far as is known."""
        return any(verifier.is_ready for verifier in self.all)

    @property
    def preferred(self) -> str:
        """The identity for new answers: the one of most ready verifiers, and of several the one
        in use. In a rolling upgrade it changes once."""
        ready = Counter(v.model.identity for v in self.all if v.is_ready and v.model.identity)
        ready.setdefault(self.current.model.identity, 0)
        return max(ready, key=lambda i: (ready[i], i == self.current.model.identity))

    def use(self, verifiers: Sequence[V]) -> None:
        """Use these verifiers from now on; if there are none, nothing is in use."""
        self.all = verifiers
        if verifiers and self.current not in verifiers:
            self.current = self.ranked(self.current.model.identity)[0]

    def ranked(self, identity: str, prompt: PromptBlocks | None = None) -> list[V]:
        """Return the verifiers, best first: ready ones, of this identity, near and idle, which
        have most of the prompt, if that is known."""

        def cost(verifier: V) -> tuple[bool, bool, float]:
            cost_s = verifier.rtt_s + BUSY_S * verifier.load + SHARED_S * verifier.open_sessions
            if prompt is not None:
                cost_s += self.speed.reads_s(prompt, verifier.prefixes)
            elif verifier is self.current:
                cost_s -= STAY_S
            return not verifier.is_ready, not verifier.may_serve(identity), cost_s

        return sorted(self.all, key=cost)

    def choose(
        self, identity: str, without: Container[object] = (), prompt: PromptBlocks | None = None
    ) -> V | None:
        """Return the best verifier that can go on with texts of this identity, if any; ready
        ones come first."""
        ranked = (v for v in self.ranked(identity, prompt) if v.may_serve(identity))
        return next((v for v in ranked if v not in without), None)
