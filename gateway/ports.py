"""What the OpenAI API needs from the service that uses it: an Engine, and perhaps a Fallback.

The edge agent implements Engine by speculation with a verifier, and the verifier implements it
by its target alone (the plain engine). The gateway treats both alike.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, Literal, Protocol, Self

from picospec.gateway.tokenizer import TokenizerSource
from picospec.gateway.tracing import NO_SPAN, Span
from picospec.gateway.watching import Event, Origin

FinishReason = Literal["stop", "length"]

HARMLESS: Final = ("prediction",)
"""Parameters that every engine serves, because they cannot change an answer."""

SEEDS: Final = 2**64
"""The number of seeds; a seed is from 0 to SEEDS - 1. A negative one is SEEDS more: it has the
bits of a signed number, as in vLLM."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Settings that transform the target's distribution p, applied in this order."""

    temperature: float = 1.0
    """At 0, the most likely token is always chosen."""

    min_p: float = 0.0
    top_k: int = 0
    """At 0, all tokens are kept."""

    top_p: float = 1.0


class Owner(Protocol):
    """Whoever asks. It lives as long as their key."""

    @property
    def name(self) -> str:
        """Nobody else has it."""


@dataclass(frozen=True, slots=True)
class Job:
    """One choice to generate."""

    request_id: str
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    seed: int
    """The gateway draws it when the client gives none."""

    top_logprobs: int | None = None
    """The number of most likely tokens to report at each position; None: no logprobs."""

    extras: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    """Request parameters beyond Sampling, by their OpenAI names, all in Facts.features."""

    watched: bool = False
    """The client wants to know what speculation does; an engine without it tells nothing."""

    span: Span = NO_SPAN
    """The request's span; what the engine does for the job becomes parts of it."""

    identity: str = ""
    """Facts.identity of the model for which the prompt was made; empty: any."""

    owner: Owner | None = None
    """Whoever asked; None if nobody is known. What an engine remembers of an answer, no other
    owner may notice, unless the settings share it."""


UNLIKELY: Final = -9999.0
"""The log-probability that OpenAI gives for minus infinity, which JSON cannot express."""


class TokenLogprob(Protocol):
    """Natural logarithms of softmax(logits), before any sampling setting is applied."""

    @property
    def logprob(self) -> float: ...
    @property
    def top(self) -> Sequence[tuple[int, float]]:
        """The most likely tokens as (token, logprob), in descending order."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counters of speculation for one job; without drafts, only `target_passes` is not 0."""

    target_passes: int = 0
    drafts: int = 0
    """The number of passes that verified at least one draft token."""

    draft_tokens: int = 0
    accepted_tokens: int = 0
    accepted_per_position: tuple[int, ...] = ()
    """Entry i is the number of passes whose i-th draft token was accepted, counted from 0."""

    accepted_prediction_tokens: int = 0
    """Tokens of the client's prediction that were draft tokens and are in the answer."""

    rejected_prediction_tokens: int = 0
    """Tokens of the client's prediction that were draft tokens and are not in the answer."""

    cached_tokens: int = 0
    """Tokens of the prompt that the target did not have to read."""


@dataclass(frozen=True, slots=True)
class Delta:
    """Tokens that are committed, in order; the last Delta of a job carries `finish`.

    A stop token is included in `tokens`; the gateway does not show it.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None = None
    """Each token has an entry if the job asked for log-probabilities; else it is None."""

    finish: FinishReason | None = None
    statistics: Statistics | None = None
    """The counters so far; required with `finish`. Because a stop string may end the choice at
    any Delta, an engine should send them with each."""

    origins: tuple[Origin, ...] | None = None
    """The origin of each token, if the job is watched; None: the target had them all."""

    events: tuple[Event, ...] = ()
    """What happened before these tokens, if the job is watched."""


class Described(Protocol):
    """What both engines know of their target, as the verifier describes it."""

    @property
    def model(self) -> str: ...
    @property
    def context_tokens(self) -> int: ...
    @property
    def stop_tokens(self) -> Sequence[int]: ...
    @property
    def vocabulary_size(self) -> int: ...
    @property
    def features(self) -> Sequence[str]: ...
    @property
    def defaults(self) -> Mapping[str, float]: ...
    @property
    def identity(self) -> str: ...
    @property
    def vocabulary(self) -> str: ...
    @property
    def adapters(self) -> Mapping[str, str]: ...


@dataclass(frozen=True, slots=True)
class Facts:
    """Properties of the engine's model."""

    model: str
    context_tokens: int
    """The limit of prompt and completion together."""

    stop_tokens: frozenset[int]
    vocabulary_size: int
    features: frozenset[str] = frozenset()
    """OpenAI parameters beyond Sampling that this engine serves; any other gets a 400."""

    defaults: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    """The model's own temperature, top_p, top_k, min_p and repetition_penalty, for requests
    that leave them out."""

    identity: str = ""
    """A text that changes when the model, its tokenizer or its engine do."""

    vocabulary: str = ""
    """The digest of the target's tokenizer; empty: any."""

    adapters: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """LoRA adapters: the identity of each, by the name that requests give in place of the
    model's."""

    @classmethod
    def of(cls, target: Described) -> Self:
        return cls(
            target.model,
            target.context_tokens,
            frozenset(target.stop_tokens),
            target.vocabulary_size,
            frozenset((*target.features, *HARMLESS)),
            MappingProxyType(dict(target.defaults)),
            target.identity,
            target.vocabulary,
            MappingProxyType(dict(target.adapters)),
        )

    def named(self, model: str | None) -> Self:
        """Return the facts of an adapter; these, if no adapter has that name."""
        if model is None or (identity := self.adapters.get(model)) is None:
            return self
        return replace(self, model=model, identity=identity)


class Fallback(Protocol):
    """Another engine, with a model of its own, for when the service's engine cannot answer."""

    @property
    def name(self) -> str:
        """What clients are told of an answer that comes from it."""

    @property
    def engine(self) -> Engine: ...
    @property
    def tokenizer(self) -> TokenizerSource: ...
    async def is_needed(self) -> bool:
        """Return whether a request that comes now must be answered by it."""

    def count_answers(self, count: int) -> None:
        """Count answers that it begins."""


class Engine(Protocol):
    async def facts(self) -> Facts:
        """Raise gateway.errors.Unavailable while the target cannot be reached."""

    def generate(self, job: Job) -> AsyncGenerator[Delta]:
        """Stream one choice. Closing the generator cancels the work at both ends.

        Raises gateway.errors.ApiError, before the first Delta or between two.
        """
