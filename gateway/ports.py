"""What the OpenAI face needs from whoever stands behind it: an Engine and a Tokenizer.

Both ends implement these: the edge agent with drafts and a link, the verifier with its own
target (the plain engine). The gateway cannot tell them apart, and must not try.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal, Protocol

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """The settings that shape the target's distribution p, applied in this order."""

    temperature: float = 1.0
    """0 means the most likely token, always."""

    min_p: float = 0.0
    top_k: int = 0
    """0 keeps all."""

    top_p: float = 1.0


@dataclass(frozen=True, slots=True)
class Job:
    """One choice to generate."""

    request_id: str
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    seed: int
    """0 <= seed < 2**63. The gateway draws one when the client gives none."""

    top_logprobs: int | None = None
    """None: no log-probabilities. n: those of the tokens said, and of the n most likely."""

    extras: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    """Request parameters beyond Sampling, by OpenAI name; only those in Facts.features."""


UNLIKELY: Final = -9999.0
"""A log-probability: OpenAI's stand-in for minus infinity, which JSON cannot say."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural logarithms under softmax(logits), before any sampling setting."""

    logprob: float
    top: tuple[tuple[int, float], ...]
    """(token, logprob), most likely first."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """What speculation did for one job. All zero on the plain engine, but for passes."""

    target_passes: int = 0
    drafts: int = 0
    """Passes that verified at least one draft token."""

    draft_tokens: int = 0
    accepted_tokens: int = 0
    accepted_per_position: tuple[int, ...] = ()
    """Entry i: passes whose i-th draft token was accepted."""


@dataclass(frozen=True, slots=True)
class Delta:
    """Tokens the target has really said, in order; the last Delta of a job carries `finish`.

    A stop token is included in `tokens`; the gateway does not show it.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None = None
    """One per token when the job asked for them."""

    finish: FinishReason | None = None
    statistics: Statistics | None = None
    """So far. With `finish` at least; on every Delta, they survive an end by a stop string."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the model behind the engine is."""

    model: str
    context_tokens: int
    """Prompt and completion together."""

    stop_tokens: frozenset[int]
    vocabulary_size: int
    features: frozenset[str] = frozenset()
    """OpenAI parameters beyond Sampling that this engine serves; all others are refused."""


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str


class Tokenizer(Protocol):
    def chat(self, messages: Sequence[Message]) -> list[int]:
        """Render the chat template, assistant's turn opened; ValueError if it refuses."""
        ...

    def encode(self, text: str) -> list[int]:
        """Tokens of plain text; markers of special tokens in it stay text."""
        ...

    def piece(self, token: int) -> bytes:
        """UTF-8 bytes of one token, perhaps half a character; special tokens give b""."""
        ...


TokenizerSource = Callable[[], Awaitable[Tokenizer]]
"""Gives the target's tokenizer; raises gateway.errors.Unavailable while there is none.

`chat` and `encode` are called from one thread, `piece` from the event loop's, at the same time.
"""


class Engine(Protocol):
    async def facts(self) -> Facts:
        """Raise gateway.errors.Unavailable while the target cannot be reached."""
        ...

    def generate(self, job: Job) -> AsyncGenerator[Delta]:
        """Stream one choice. Closing the generator cancels the work at both ends.

        Raises gateway.errors.ApiError, before the first Delta or between two.
        """
        ...
