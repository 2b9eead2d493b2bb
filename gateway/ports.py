"""A service gives the OpenAI API an Engine, a tokenizer and, if it has one, a Fallback.

The edge agent implements Engine by speculation with a verifier, and the verifier implements it
by its target alone (the plain engine). The gateway treats both alike.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, Protocol, Self

import msgspec

from gateway.tracing import NO_SPAN, Span
from gateway.watching import Event, Origin
from speculation.errors import InvalidSetting
from speculation.messages import Fill, FinishReason, Open, Sampling, TokenLogprob, Totals
from speculation.model_facts import Judge, ModelFacts, TokenId
from speculation.request_names import PREDICTION, SALT, STOPPING, Stopping

Json = Mapping[str, object]
"""A chat template gets JSON objects of this type."""

NONE: Final[Json] = MappingProxyType({})

MAX_CHAT_BYTES: Final = 32 << 20
"""A chat rendered as text has at most this many bytes, unless a caller sets a smaller limit."""


class GatewayTokenizer(Protocol):
    @property
    def template(self) -> str:
        """Return the text of the chat template; empty if there is none."""

    @property
    def named_tokens(self) -> Json:
        """Return the spellings of the tokens that chat templates know as `eos_token` etc."""

    @property
    def takes_tools(self) -> bool:
        """True if the chat template shows tools to the model."""

    @property
    def hides_unused_tools(self) -> bool:
        """True if the target's server hides tools that must not be called from the template."""

    def chat(
        self,
        messages: Sequence[Json],
        *,
        tools: Sequence[Json] = (),
        options: Json = NONE,
        max_bytes: int = MAX_CHAT_BYTES,
    ) -> list[int]:
        """Return the tokens of a chat, with the assistant's turn opened. Raises ValueError.

        Raises OverflowError if the rendered text has more than `max_bytes`, and OSError if the
        chat cannot be rendered now.

        messages: objects with `role`, `content` (a text, or parts of the type "text", which are
        joined unless the template reads parts), and optionally `tool_calls`, `reasoning` and
        `reasoning_content`, `tool_call_id`, `name`. A tool call's `arguments` are an object.
        tools: OpenAI's tool objects. options: more variables for the template; with
        `continue_final_message`, the chat ends with the last message's content.
        """

    def encode(self, text: str, *, special: bool = True, begin: bool = True) -> list[int]:
        """Return the tokens of a raw prompt.

        special: markers in the text become special tokens. begin: the tokens that begin every
        prompt of this model are added.
        """

    def infill(
        self,
        prefix: str,
        suffix: str,
        snippets: Sequence[Mapping[str, str]] = (),
        max_tokens: int = 0,
    ) -> list[int]:
        """Return the tokens of a prompt for the text between `prefix` and `suffix`.

        Markers in the texts stay text. snippets: objects with `filename` and `text`, of other
        files; the prompt begins with as many of the last ones as fit into max_tokens.

        Raises ValueError if the model has no tokens for infilling.
        """

    def piece(self, token: int, special: bool = False) -> bytes:
        """Return a token's UTF-8 bytes, which may be a part of a character.

        special: a special token yields its spelling; without `special` it yields b"".
        """


TokenizerSource = Callable[[str], Awaitable[GatewayTokenizer]]
"""Returns the target's tokenizer, which must have the given digest (Facts.vocabulary) unless
that is empty. Raises gateway.errors.Unavailable while there is none. `chat` and `encode` are
called in worker threads while `piece` is called in the event loop's thread."""


HARMLESS: Final = (PREDICTION,)
"""Every engine serves these parameters, because they cannot change an answer."""

SEEDS: Final = 2**64
"""Seeds are from 0 to SEEDS - 1. SEEDS is added to a negative seed: the bits are read as those
of a signed number, as in vLLM."""


class TenantOwner(Protocol):
    """An owner is the tenant who asks. The object lives as long as the tenant's key."""

    @property
    def name(self) -> str:
        """Return the owner's name, which no other owner has."""

    @property
    def identity(self) -> str:
        """Return what stands for the owner in salts, see gateway.tenants."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job is one choice to generate."""

    request_id: str
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    seed: int
    """The gateway draws the seed when the client gives none."""

    top_logprobs: int | None = None
    """This many of the most likely tokens are reported at each position; None: no logprobs."""

    extras: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    """Maps OpenAI's names, all in Facts.features, to request parameters beyond Sampling."""

    watched: bool = False
    """True if the client wants reports of speculation; an engine without it reports nothing."""

    span: Span = NO_SPAN
    """The engine's work for the job becomes parts of this span, which is the request's."""

    identity: str = ""
    """The prompt was made for the model with this Facts.identity; empty: any model."""

    owner: TenantOwner | None = None
    """The job is for this owner; None if unknown. No other owner may notice what an engine
    remembers of an answer, unless the settings share it."""

    prompt_logprobs: int | None = None
    """The log-probabilities of the prompt's tokens are wanted, with those of this many of the
    most likely tokens in place of each. Only then may max_tokens be 0."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counts speculation for one job."""

    totals: Totals = field(default_factory=Totals)
    """Until a job has finished, only accepted draft tokens may count as judged, and only passes
    that accepted any as having had some."""

    accepted_per_position: tuple[int, ...] = ()
    """Entry i is the number of passes whose i-th draft token was accepted, counted from 0."""

    accepted_prediction_tokens: int = 0
    """Counts tokens of the client's prediction that were drafted and are in the answer."""

    rejected_prediction_tokens: int = 0
    """Counts tokens of the client's prediction that were drafted and are not in the answer."""

    cached_tokens: int = 0
    """The target did not have to read this many tokens of the prompt."""

    @property
    def target_passes(self) -> int:
        return self.totals.passes

    @property
    def drafts(self) -> int:
        """Return how many passes verified at least one draft token."""
        return self.totals.passes - self.totals.filled

    @property
    def draft_tokens(self) -> int:
        return self.totals.judged

    @property
    def accepted_tokens(self) -> int:
        return self.totals.accepted

    @property
    def acceptance(self) -> float:
        """Return the fraction of the draft tokens that were accepted; 0.0 without any."""
        return self.accepted_tokens / self.draft_tokens if self.draft_tokens else 0.0


@dataclass(frozen=True, slots=True)
class Delta:
    """A Delta carries committed tokens, in order; the last Delta of a job carries `finish`.

    A stop token is included in `tokens`; the gateway does not show it.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None = None
    """Each token has an entry if the job asked for log-probabilities; else this is None."""

    finish: FinishReason | None = None
    statistics: Statistics | None = None
    """These are the counters so far; `finish` requires them. Because a stop string may end the
    choice at any Delta, an engine should send them with each."""

    origins: tuple[Origin, ...] | None = None
    """Each token has its origin here if the job is watched; None: all are the target's."""

    events: tuple[Event, ...] = ()
    """These events happened before the tokens, if the job is watched."""

    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    """The first Delta of a job that asked for them has an entry for each token of the prompt
    but the first, which no token comes before."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Describes the engine's model."""

    model: str
    context_tokens: int
    """Prompt and completion together have at most this many tokens."""

    stop_tokens: frozenset[int]
    vocabulary_size: int
    features: frozenset[str] = frozenset()
    """The engine serves these OpenAI parameters beyond Sampling; any other gets a 400."""

    defaults: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    """Requests that leave out temperature, top_p, top_k, min_p or repetition_penalty get the
    model's own values from here."""

    identity: str = ""
    """This text changes when the model, its tokenizer or its engine changes."""

    vocabulary: str = ""
    """The target's tokenizer has this digest; empty: any tokenizer will do."""

    adapters: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Maps the name of each LoRA adapter, which requests give in place of the model's, to the
    adapter's identity."""

    served: Mapping[str, Sequence[str]] = field(default_factory=lambda: MappingProxyType({}))
    """Maps paths of the verifier's own API to the fields that it serves there."""

    parts: Mapping[str, Sequence[str]] = field(default_factory=lambda: MappingProxyType({}))
    """Maps these paths to the types of the content parts that requests there may have."""

    @classmethod
    def of(cls, target: ModelFacts) -> Self:
        facts = msgspec.convert(target, cls, from_attributes=True)
        return replace(facts, features=facts.features.union(HARMLESS))

    def named(self, model: str | None) -> Self:
        """Return the facts of the adapter `model`, or these if no adapter has that name."""
        if model is None or (identity := self.adapters.get(model)) is None:
            return self
        return replace(self, model=model, identity=identity)


def opening(
    job: Job,
    facts: ModelFacts,
    *,
    judge: Judge = "coupled",
    fill: Fill = "auto",
    salt: str | None = None,
) -> Open:
    """Return the Open for a job, which is the same with and without an edge. Raises
    InvalidSetting for a stop token that is no token.

    salt: see SALT; it is not sent to a verifier that does not know it.
    """
    extras = {
        name: msgspec.Raw(msgspec.json.encode(value))
        for name, value in job.extras.items()
        if name not in STOPPING and name != PREDICTION
    }
    if salt is not None and SALT in facts.features:
        extras[SALT] = msgspec.Raw(msgspec.json.encode(salt))
    return Open(
        model=facts.model,
        vocabulary=facts.vocabulary,
        prompt=job.prompt,
        sampling=msgspec.structs.replace(job.sampling, extras=extras),
        seed=job.seed,
        max_tokens=job.max_tokens,
        stop_tokens=_stop_tokens(job.extras, facts),
        judge=judge,
        fill=fill,
        top_logprobs=job.top_logprobs,
        identity=facts.identity,
    )


def _stop_tokens(extras: Mapping[str, object], facts: ModelFacts) -> tuple[TokenId, ...]:
    """Return the stop tokens: the model's own, unless they are ignored, and the client's."""
    stopping = msgspec.convert({k: v for k, v in extras.items() if k in STOPPING}, Stopping)
    for token in stopping.stop_token_ids:
        if not 0 <= token < facts.vocabulary_size:
            raise InvalidSetting("stop_token_ids", f"{token} is not a token")
    own = () if stopping.ignore_eos else facts.stop_tokens
    return tuple(dict.fromkeys((*own, *stopping.stop_token_ids)))


class Fallback(Protocol):
    """A fallback is an engine and model that answer when the service's engine cannot."""

    is_elsewhere: bool
    """True if the proxy asks another server for its answers; its engine only has facts."""

    @property
    def name(self) -> str:
        """Return the name by which clients learn that the fallback has answered."""

    @property
    def engine(self) -> Engine: ...
    @property
    def tokenizer(self) -> TokenizerSource: ...
    async def can_answer(self, path: str) -> bool:
        """Return True if this fallback can answer a request to this path now."""

    def count_answers(self, count: int) -> None:
        """Count answers that the fallback begins."""


class Engine(Protocol):
    async def facts(self) -> Facts:
        """Return the model's facts. Raises gateway.errors.Unavailable without a target."""

    def generate(self, job: Job) -> AsyncGenerator[Delta]:
        """Stream one choice. Closing the generator cancels the work at both ends.

        Raises gateway.errors.ApiError, before the first Delta or between two.
        """
