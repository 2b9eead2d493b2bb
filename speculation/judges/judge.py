"""What a judge is to the rest: two halves, and the rule of a pass between them.

    edge       draws draft tokens, and answers a rejection where that is left to it
    rule       says what one pass makes of its draft tokens, for whoever has the logits
    verifier   makes the rules, and keeps what a rejection still needs

The machines, their drivers and the targets use these alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from picospec.speculation.protocol.errors import LocalProtocolError, RemoteProtocolError
from picospec.speculation.protocol.messages import (
    Answer,
    Commit,
    Draft,
    Open,
    Reject,
    TokenId,
)
from picospec.speculation.sampling.distributions import Distribution
from picospec.speculation.sampling.draft_token import DraftSampler, DraftToken

Row = Callable[[int], Distribution]
"""Row(i): the target's distribution p at the i-th position of the pass, i = 0..K."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """A draft token that was rejected, where the verifier cannot draw what takes its place."""

    token: TokenId
    p: Distribution
    """This whole p judged it."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a pass generated: the accepted draft tokens, then a token of the target's own or a
    rejection."""

    tokens: tuple[TokenId, ...]
    accepted: int
    rejection: Rejection | None = None

    def after(self, told: int) -> Judgement:
        """Return it without its first `told` accepted draft tokens."""
        return replace(self, tokens=self.tokens[told:], accepted=self.accepted - told)


class Noise(NamedTuple):
    """The shared noise that a pass begins with."""

    seed: int
    at: int
    """The first row has this `noise.place`."""


class Rule(Protocol):
    """How one pass is judged: a value, which may travel to another process."""

    @property
    def noise(self) -> Noise | None:
        """Set where each row is needed for nothing but the token that this noise picks."""

    def judge(self, row: Row, draft: Sequence[TokenId]) -> Judgement:
        """Judge the draft tokens of the pass. No row is computed after that of the first
        rejected one."""


class EdgeHalf:
    """One answer's, at the edge; by default the verifier leaves no token to it."""

    sampler: DraftSampler
    """Draws the draft tokens."""

    sends_at_once = False
    """Whether each draft token is sent as soon as it is drawn, whatever the policy says."""

    def reopened(self) -> bool:
        """Note that a session begins; return whether the one before was lost after a rejection
        that is yet to be answered: the draft token after the committed text was rejected."""
        return False

    def rejected(self, reject: Reject, drafted: DraftToken) -> Answer | None:
        """Return what answers a rejection, None for one that was answered. drafted: the draft
        token at that position. Raise RemoteProtocolError for what no honest verifier sends."""
        raise RemoteProtocolError("Reject: this judge leaves no token to the edge")


class VerifierHalf(ABC):
    """One session's, at the verifier; by default it leaves no token to the edge."""

    needs_draft = False
    """Whether no pass may begin without a draft token."""

    @property
    def owed_at(self) -> int | None:
        """The position of a token that the edge owes: until it comes, no pass may begin."""
        return None

    def check(self, draft: Draft) -> None:
        """Raise RemoteProtocolError unless a Draft has the weights that the judge needs."""
        if draft.q is not None:
            raise RemoteProtocolError("Draft.q: this judge takes no weights")

    def judgeable(self, pending: int, most: int) -> int:
        """Return for how many draft tokens rows are counted, of `most` that a pass may have."""
        return min(pending, most)

    @abstractmethod
    def rule(self, start: int, weights: Sequence[int]) -> Rule:
        """Return the rule of a pass from a position on. weights: of its draft tokens."""

    def rejected(self, rejection: Rejection, commit: Commit) -> Reject:
        """Return what is sent of a rejection. commit: of the tokens accepted before it."""
        raise LocalProtocolError("this judge leaves no token to the edge")

    def received(self, answer: Answer, text: Sequence[TokenId]) -> Commit | Reject | None:
        """Return what an edge's answer brings about: the Commit that it completes, or the
        rejection again; None for an answer that is late or repeated. text: what is committed.
        Raise RemoteProtocolError, and change nothing, for what no honest edge sends."""
        raise RemoteProtocolError(f"{type(answer).__name__}: no token is left to the edge")


@dataclass(frozen=True, slots=True)
class Judge:
    """u: uniforms in [0, 1) of the half's own, which the other end cannot foresee."""

    edge: Callable[[Open, Iterator[float]], EdgeHalf]
    verifier: Callable[[Open, Iterator[float]], VerifierHalf]
    takes_any_draft: bool
    """Whether a draft token may come from anywhere, and be dropped for what it is: from prompt
    lookup, a grammar, the verifier itself or a draft model of another vocabulary."""

    has_logprobs: bool
    """Whether each committed token has a row of the target, and so log-probabilities."""

    since: int
    """The oldest version of the protocol in which it has the messages of today."""
