"""The messages that the two ends of a session exchange, as values without bytes or sockets.

    up     Open, Draft, Recovered, Redraw
    down   Opened, CachedPromptTokens, Commit, Reject, Finish, Fault, Heartbeat, Multiplexed

A *position* counts output tokens from 0: the first token after the prompt has position 0. An
*epoch* numbers the edge's chains: it rises when the edge learns that its chain was wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final, Literal, Self

import msgspec

from speculation.model_facts import PROTOCOL_VERSION, Judge, Limits, TokenId

STREAM_HEARTBEAT_S = 0.3
"""An open stream is silent for at most this time; then a Heartbeat is sent. Three such times
without a byte mean that the link or the verifier's process is lost."""

RUN_CHARACTERS = 8
"""The names of all sessions of one run of a verifier share this many first characters. By them
an edge tells a restarted or different verifier from one that was out of reach."""

MAX_PREDICTED = 16384
"""The prediction of an Open has at most this many tokens, a file of some 60 kB; their index
takes 11 MB in a session."""

Fill = Literal["always", "auto", "never"]
FinishReason = Literal["stop", "length"]


class Sampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The settings that shape a distribution, in the order in which they are applied."""

    temperature: float = 1.0  # 0 means the argmax
    min_p: float = 0.0
    top_k: int = 0  # 0 keeps all
    top_p: float = 1.0
    extras: dict[str, msgspec.Raw] = msgspec.field(default_factory=dict)
    """Settings that only some targets serve (ModelFacts.features), by their OpenAI names."""


@dataclass(frozen=True, slots=True)
class Open:
    model: str
    vocabulary: str
    prompt: tuple[TokenId, ...]
    sampling: Sampling
    seed: int  # 0 <= seed < 2**64
    max_tokens: int
    stop_tokens: tuple[TokenId, ...]
    judge: Judge = "coupled"
    fill: Fill = "auto"
    top_logprobs: int | None = None
    committed: tuple[TokenId, ...] = ()
    """Another session has committed these output tokens. This session goes on after them as if
    it had generated them itself."""

    identity: str = ""
    """The verifier must have this ModelFacts.identity; if empty, any verifier will do."""

    ngram_drafts: bool = False
    """True if the verifier may propose draft tokens itself; only in `coupled`."""

    predicted: tuple[TokenId, ...] = ()
    """The client expects these tokens in the answer; they serve as the verifier's own draft
    tokens."""

    replaces: str = ""
    """The session that this one replaces because its stream was cut; empty for none. The name
    is a secret, so it proves that the sender of this Open had that session."""

    rejected: bool = False
    """`separate`: another verifier has rejected the draft token at the position after
    `committed`. The token is not judged again, only its Reject is sent anew."""

    version: int = PROTOCOL_VERSION


@dataclass(frozen=True, slots=True)
class Draft:
    """Draft tokens for the positions from `start` on, which continue this epoch's chain."""

    epoch: int
    start: int
    offset: int
    """The number of draft tokens between `start` and the committed text that the edge knew;
    other Drafts have them."""

    tokens: tuple[TokenId, ...]
    q: tuple[int, ...] | None = None
    """`separate`: the weight of each token in the q that it was drawn from, in 1/65536."""

    pauses: bool = False
    """The verifier need not wait: no Draft will follow until the edge knows of more committed
    tokens."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """`separate`: the token that the edge drew in place of the rejected one. epoch: the chain
    that follows the token."""

    epoch: int
    position: int
    token: TokenId


@dataclass(frozen=True, slots=True)
class Redraw:
    """`separate`: asks for the Reject at this position again, with fresh samples of the tail.
    draw: the number of this Redraw, from 1."""

    epoch: int
    position: int
    draw: int


@dataclass(frozen=True, slots=True)
class Opened:
    session: str
    limits: Limits


@dataclass(frozen=True, slots=True)
class CachedPromptTokens:
    """The target had this many of the first tokens, of the prompt and `Open.committed`, in its
    cache and did not read them."""

    tokens: int


UNLIKELY: Final = -9999.0
"""This log-probability stands for minus infinity, as in OpenAI's API: neither the protocol nor
JSON has infinite numbers."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural logarithms of softmax(logits), before any sampling setting."""

    logprob: float
    top: tuple[tuple[TokenId, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Commit:
    """These tokens are the target's: they may be shown to the user."""

    epoch: int
    start: int
    tokens: tuple[TokenId, ...]
    accepted: int = 0
    """This many of `tokens` were draft tokens of the edge."""

    verifier_accepted: int = 0
    """This many tokens after the accepted ones were the verifier's n-gram drafts. The target
    generated the others."""

    queue_s: float = 0.0
    """The pass began this long after the end of the session's last one. This and pass_s are
    sent in units of 0.1 ms."""

    pass_s: float = 0.0
    logprobs: tuple[TokenLogprob, ...] | None = None

    @property
    def drafts(self) -> int:
        """The number of tokens that were draft tokens, of the edge or the verifier's own."""
        return self.accepted + self.verifier_accepted

    def after(self, known: int) -> Self:
        """Return the Commit without its first `known` tokens."""
        if known == 0:
            return self
        return replace(
            self,
            start=self.start + known,
            tokens=self.tokens[known:],
            accepted=max(0, self.accepted - known),
            verifier_accepted=max(0, self.verifier_accepted - max(0, known - self.accepted)),
            logprobs=self.logprobs and self.logprobs[known:],
        )


@dataclass(frozen=True, slots=True)
class Reject:
    """`separate`: the draft token at `position` was rejected, and those before it accepted; the
    edge draws the recovered token from this p. Every probability is a float32, as in the p that
    judged the token."""

    epoch: int
    position: int
    draw: int  # the number of the Redraw that it answers, else 0
    head: tuple[tuple[TokenId, float], ...]  # the likeliest tokens and their p
    tail_mass: float  # sum of p over all tokens not in the head
    tail: tuple[tuple[TokenId, float], ...] = ()
    """These tokens were drawn from the tail's distribution, in this order, each with its p."""


@dataclass(frozen=True, slots=True)
class Totals:
    passes: int = 0
    judged: int = 0
    accepted: int = 0
    filled: int = 0  # fill-in passes: those without a draft token
    verifier_accepted: int = 0  # accepted draft tokens of the verifier

    def plus(self, more: Totals) -> Totals:
        return Totals(
            self.passes + more.passes,
            self.judged + more.judged,
            self.accepted + more.accepted,
            self.filled + more.filled,
            self.verifier_accepted + more.verifier_accepted,
        )


@dataclass(frozen=True, slots=True)
class Finish:
    reason: FinishReason
    totals: Totals = field(default_factory=Totals)


@dataclass(frozen=True, slots=True)
class Fault:
    """The session ended early, or never began. `code` is stable, `text` is for people."""

    code: str
    text: str
    retryable: bool = False


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The verifier is alive and has nothing to send."""


@dataclass(frozen=True, slots=True)
class Multiplexed:
    """The session's further messages come on the upload stream whose edge asked for them; only
    Heartbeats follow here, for proxies that close silent streams."""


Answer = Recovered | Redraw
"""An edge answers a Reject with one of these."""

Pushed = Draft | Answer
Up = Open | Pushed
Down = Opened | CachedPromptTokens | Commit | Reject | Finish | Fault | Heartbeat | Multiplexed
Message = Up | Down
