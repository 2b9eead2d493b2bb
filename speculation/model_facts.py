"""The facts that an edge needs about a target, and the limits of a session.

Every number, text and list has a bound, so that no verifier can make an edge compute or keep
more. msgspec checks them where JSON is decoded, and `speculation.wire` in an Opened.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

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
"""OpenAI's API has these bounds of `top_logprobs` and `temperature`."""

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
