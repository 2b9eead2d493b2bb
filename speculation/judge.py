"""The interface of a judge: two halves, and the rule of a pass between them.

    edge       draws draft tokens, and answers rejections if the judge leaves that to the edge
    rule       judges the draft tokens of one pass, in the process that has the logits
    verifier   makes the rules, and keeps what a pending rejection needs

The machines, their drivers and the targets use only these.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from speculation.distributions import Distribution
from speculation.draft_token import DraftSampler, DraftToken
from speculation.errors import LocalProtocolError, RemoteProtocolError
from speculation.messages import Answer, Commit, Draft, Open, Reject
from speculation.model_facts import TokenId

Row = Callable[[int], Distribution]
"""Row(i): the target's distribution p at the i-th position of the pass, i = 0..K."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """A draft token was rejected, and the edge must draw the token that takes its place."""

    token: TokenId
    p: Distribution
    """The whole distribution that judged it."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """The result of a pass: the accepted draft tokens, then a token of the target's own or a
    rejection."""

    tokens: tuple[TokenId, ...]
    accepted: int
    rejection: Rejection | None = None

    def after(self, known: int) -> Judgement:
        """Return the judgement without its first `known` accepted draft tokens."""
        return replace(self, tokens=self.tokens[known:], accepted=self.accepted - known)


class Noise(NamedTuple):
    """The shared noise of a pass, from its first row on."""

    seed: int
    at: int
    """The `noise.noise_index` of the first row."""


class Rule(Protocol):
    """The rule judges one pass. It is a value, so it can travel to another process."""

    @property
    def noise(self) -> Noise | None:
        """Set if each row is used only for the token that this noise picks, else None."""

    def judge(self, row: Row, draft: Sequence[TokenId]) -> Judgement:
        """Judge the draft tokens of the pass. No row is computed after that of the first
        rejected draft token."""


class EdgeHalf:
    """One answer's half at the edge. By default the verifier leaves no token to it."""

    sampler: DraftSampler
    sends_at_once = False
    """True if each draft token is sent as soon as it is drawn, whatever the policy decides."""

    def reopened(self) -> bool:
        """Note that a session begins. Return True if the previous session was lost while a
        rejection was unanswered: the draft token after the committed text was rejected."""
        return False

    def rejected(self, reject: Reject, drafted: DraftToken) -> Answer | None:
        """Return the answer to a rejection, None if it was answered before. drafted: the draft
        token at that position. Raise RemoteProtocolError for what no correct verifier sends."""
        raise RemoteProtocolError("Reject: this judge leaves no token to the edge")


class VerifierHalf(ABC):
    """One session's half at the verifier. By default it leaves no token to the edge."""

    needs_draft = False
    """True if no pass may begin without a draft token."""

    @property
    def awaited_position(self) -> int | None:
        """The position of a token that the edge must draw before a pass may begin, if any."""
        return None

    def check(self, draft: Draft) -> None:
        """Raise RemoteProtocolError unless a Draft has the weights that the judge needs."""
        if draft.q is not None:
            raise RemoteProtocolError("Draft.q: this judge takes no weights")

    def judgeable(self, pending: int, most: int) -> int:
        """Return how many draft tokens to count rows for. most: those that a pass may have."""
        return min(pending, most)

    @abstractmethod
    def rule(self, start: int, weights: Sequence[int]) -> Rule:
        """Return the rule of a pass from a position on. weights: those of its draft tokens."""

    def rejected(self, rejection: Rejection, commit: Commit) -> Reject:
        """Return the Reject to send. commit: the tokens accepted before the rejection."""
        raise LocalProtocolError("this judge leaves no token to the edge")

    def received(self, answer: Answer, text: Sequence[TokenId]) -> Commit | Reject | None:
        """Return the Commit that an edge's answer completes, or the rejection again; None for a
        late or repeated answer. text: the committed tokens. Raise RemoteProtocolError, and
        change nothing, for an answer that no correct edge sends."""
        raise RemoteProtocolError(f"{type(answer).__name__}: no token is left to the edge")


@dataclass(frozen=True, slots=True)
class Judge:
    """Each half gets uniforms in [0, 1) of its own, which the other end cannot predict."""

    edge: Callable[[Open, Iterator[float]], EdgeHalf]
    verifier: Callable[[Open, Iterator[float]], VerifierHalf]
    takes_any_draft: bool
    """True if any source may propose a draft token, and a token may be dropped for its value:
    prompt lookup, a grammar, the verifier itself or a draft model of another vocabulary."""

    has_logprobs: bool
    """True if each committed token has a row of the target, and so log-probabilities."""
