"""The two ends of a session exchange messages; they share a target's facts, and errors."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Final, Literal, Self

import msgspec
from msgspec import Meta

# Every error that this package raises.
#
# * SpeculationError
#   + LocalProtocolError       our side broke the rules: a bug here, never the peer's fault
#   + RemoteProtocolError      the peer broke the rules: end the session, keep the process
#     - MalformedFrame         the bytes are not a message
#   x InvalidSetting           a client asks for a value that no target serves; `name` names it


class SpeculationError(Exception):
    """Base of all errors raised by this package."""


class LocalProtocolError(SpeculationError):
    """The caller asked for a step that the current state forbids."""


class RemoteProtocolError(SpeculationError):
    """The peer sent something that the current state forbids."""


class MalformedFrame(RemoteProtocolError):
    def __init__(self, reason: str, *, offset: int) -> None:
        super().__init__(f"{reason} at byte {offset}")


class InvalidSetting(SpeculationError):
    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason


# The facts that an edge needs about a target, and the limits of a session.
#
# Every number, text and list has a bound, so that no verifier can make an edge compute or keep
# more. msgspec checks them where JSON is decoded, and `speculation.wire` in an Opened.

PROTOCOL_VERSION: Final = 6
"""A verifier serves edges of this version alone. A verifier of another one answers an edge's
requests by its own API, without draft tokens."""

MAX_VOCABULARY: Final = 1 << 20
"""No vocabulary has more ids that are tokens; this is four times the largest one known."""

MAX_CONTEXT_TOKENS: Final = 1 << 24
"""No context is longer; the longest one known has ten million tokens."""

MAX_STOP_TOKENS: Final = 256
"""An Open has at most this many stop tokens: the model's own and those of the client, who may
give 64."""

MAX_TOP_LOGPROBS: Final = 20
MAX_TEMPERATURE: Final = 2
MAX_TOP_K: Final = 2**31 - 1

MAX_VERIFY: Final = 256
"""No verifier judges more draft tokens in one pass."""

MAX_ADAPTERS: Final = 1024

Judge = Literal["coupled", "separate"]
TokenId = int
Name = Annotated[str, Meta(max_length=1024)]
Names = Annotated[list[Name], Meta(max_length=256)]
Version = Annotated[int, Meta(ge=0, lt=1 << 16)]
Seconds = Annotated[float, Meta(gt=0, le=86400)]
Vocabulary = Annotated[int, Meta(ge=1, le=MAX_VOCABULARY)]
StopToken = Annotated[TokenId, Meta(ge=0, lt=MAX_VOCABULARY)]


class Limits(msgspec.Struct, frozen=True):
    """The limits that a verifier sets for one session."""

    max_verify: Annotated[int, Meta(ge=1, le=MAX_VERIFY)] = 32
    """One pass judges at most this many draft tokens."""

    max_ahead: Annotated[int, Meta(ge=1, le=4096)] = 128
    """The verifier keeps at most this many draft tokens beyond the last committed token."""

    idle_timeout_s: Seconds = 60.0


class ModelFacts(msgspec.Struct, frozen=True):
    """The facts that the edge needs before it renders a prompt. They are sent as JSON."""

    model: Name
    vocabulary_size: Vocabulary  # ids below this are tokens; no other id is generated
    vocabulary: Name  # digest of the target's tokenizer, see GET /v1/tokenizer
    context_tokens: Annotated[int, Meta(ge=1, le=MAX_CONTEXT_TOKENS)]
    stop_tokens: Annotated[list[StopToken], Meta(max_length=1024)]
    limits: Limits
    judges: Annotated[list[Judge], Meta(max_length=8)]
    features: Names
    padding: Annotated[int, Meta(ge=0, le=MAX_VOCABULARY)] = 0
    """The target computes logits for this many ids beyond the tokens."""

    defaults: Annotated[dict[Name, float], Meta(max_length=64)] = {}
    """The model's authors recommend these sampling settings, by their OpenAI names."""

    protocol: Version = PROTOCOL_VERSION

    identity: Name = ""
    """A digest of everything that determines a text: weights, engine and its settings. If two
    verifiers have the same identity, either can continue an answer that the other began."""

    adapters: Annotated[dict[Name, Name], Meta(max_length=MAX_ADAPTERS)] = {}
    """Maps each LoRA adapter, by the name that a request gives as its `model`, to the identity
    of its texts. An adapter shares all other facts with the model."""

    served: Annotated[dict[Name, Names], Meta(max_length=16)] = {}
    """Maps paths of the verifier's own API to the fields that requests there may have. An edge
    proxies a request with one of these that it cannot serve itself."""

    parts: Annotated[dict[Name, Names], Meta(max_length=16)] = {}
    """Maps these paths to the types of the content parts that requests there may have."""

    @property
    def is_compatible(self) -> bool:
        """True if the verifier speaks this package's version of the protocol."""
        return self.protocol == PROTOCOL_VERSION

    def named(self, model: str) -> ModelFacts:
        """Return the facts of an adapter, or of the model if no adapter has that name."""
        if (identity := self.adapters.get(model)) is None:
            return self
        return msgspec.structs.replace(self, model=model, identity=identity, adapters={})

    def identified(self, identity: str) -> ModelFacts | None:
        """Return the facts of the model or adapter with this identity; empty means the
        model."""
        if identity in ("", self.identity):
            return self
        names = (name for name, each in self.adapters.items() if each == identity)
        return next(map(self.named, names), None)


# The messages that the two ends of a session exchange, as values without bytes or sockets.
#
#     up     Open, Draft, Recovered, Redraw
#     down   Opened, CachedPromptTokens, Commit, Reject, Finish, Fault, Heartbeat, Multiplexed
#
# A *position* counts output tokens from 0: the first token after the prompt has position 0. An
# *epoch* numbers the edge's chains: it rises when the edge learns that its chain was wrong.

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


# Names that both ends give to what is asked of them, besides messages.


class Stopping(msgspec.Struct):
    """A client's settings that change `Open.stop_tokens`. They are in no message, because both
    ends stop at `stop_tokens` and at nothing else."""

    ignore_eos: bool = False
    stop_token_ids: tuple[TokenId, ...] = ()


STOPPING: Final = Stopping.__struct_fields__

PREDICTION: Final = "prediction"
"""A client's setting that changes no answer: its tokens are sent in `Open.predicted`."""

ANSWER_CACHE: Final = "/v1/picospec/pool"
"""A DELETE on this path makes either end forget answers; at a verifier the parameter SALT names
one of the tenant's users."""

PROMPT_LOGPROBS: Final = "prompt_logprobs"
"""A verifier with this feature gives, by its own API, the log-probabilities of a prompt. No
session has them."""

SALT: Final = "cache_salt"
"""This extra separates an edge's tenants: the verifier reuses a prompt's cache only among
sessions with the same key and salt. It changes no answer."""
