"""What an edge must know of a target, and what one session may ask of a verifier.

Every number, text and list has a bound, so that no verifier can have an edge compute or keep
more. msgspec checks them where JSON is decoded, and `speculation.protocol.wire` in an Opened.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

PROTOCOL_VERSION: Final = 6

SPOKEN: Final = (5, 6)
"""The versions in which a verifier serves edges. One of version 5 asks for the rest of a stream
that was cut, gets a 404, and opens the answer anew, as one of version 6 does at once."""

MAX_VOCABULARY: Final = 1 << 20
"""No vocabulary has more ids that are tokens: four times as many as the largest known."""

MAX_CONTEXT_TOKENS: Final = 1 << 24
"""No context is longer; the longest known has ten million tokens."""

MAX_VERIFY: Final = 256
"""No verifier judges more draft tokens in one pass."""

MAX_ADAPTERS: Final = 1024
"""No more LoRA adapters are served beside a model."""

Judge = Literal["coupled", "separate"]
TokenId = int
Name = Annotated[str, Meta(max_length=1024)]
Names = Annotated[list[Name], Meta(max_length=256)]
Version = Annotated[int, Meta(ge=0, lt=1 << 16)]
Seconds = Annotated[float, Meta(gt=0, le=86400)]
Vocabulary = Annotated[int, Meta(ge=1, le=MAX_VOCABULARY)]
StopToken = Annotated[TokenId, Meta(ge=0, lt=MAX_VOCABULARY)]


class Limits(msgspec.Struct, frozen=True):
    """What one session may ask of the verifier."""

    max_verify: Annotated[int, Meta(ge=1, le=MAX_VERIFY)] = 32
    """One pass judges at most so many draft tokens."""

    max_ahead: Annotated[int, Meta(ge=1, le=4096)] = 128
    """The verifier keeps at most so many draft tokens beyond the last committed one."""

    idle_timeout_s: Seconds = 60.0


class ModelFacts(msgspec.Struct, frozen=True):
    """What the edge must know of the target before it renders a prompt. It is sent as JSON."""

    model: Name
    vocabulary_size: Vocabulary  # the ids that are tokens; no other is ever generated
    vocabulary: Name  # the digest of the target's tokenizer, see GET /v1/tokenizer
    context_tokens: Annotated[int, Meta(ge=1, le=MAX_CONTEXT_TOKENS)]
    stop_tokens: Annotated[list[StopToken], Meta(max_length=1024)]
    limits: Limits
    judges: Annotated[list[Judge], Meta(max_length=8)]
    features: Names
    padding: Annotated[int, Meta(ge=0, le=MAX_VOCABULARY)] = 0
    """The target computes logits of so many ids past the tokens."""

    defaults: Annotated[dict[Name, float], Meta(max_length=64)] = {}
    """The model's makers recommend these sampling settings, by their OpenAI names."""

    protocol: Version = PROTOCOL_VERSION
    """The oldest version that the verifier speaks: edges that know no other field read it."""

    newest_protocol: Version = 0
    """The newest one; 0: it is the only one."""

    identity: Name = ""
    """A digest of all that shapes a text: weights, engine, and its settings. Of two verifiers
    that have the same one, either can go on with an answer that the other began."""

    adapters: Annotated[dict[Name, Name], Meta(max_length=MAX_ADAPTERS)] = {}
    """Each LoRA adapter of the model has, by the name that a request gives as its `model`, the
    identity of its texts. All else is the model's."""

    @property
    def speaks(self) -> bool:
        """Whether the verifier speaks this package's version of the protocol."""
        return PROTOCOL_VERSION in (self.protocol, self.newest_protocol)

    def named(self, model: str) -> ModelFacts:
        """Return the facts of an adapter; these, if no adapter has that name."""
        if (identity := self.adapters.get(model)) is None:
            return self
        return msgspec.structs.replace(self, model=model, identity=identity, adapters={})

    def identified(self, identity: str) -> ModelFacts | None:
        """Return the facts of the model or adapter whose texts have an identity, or of the
        model if it is empty."""
        if identity in ("", self.identity):
            return self
        names = (name for name, each in self.adapters.items() if each == identity)
        return next(map(self.named, names), None)
