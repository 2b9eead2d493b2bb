"""The JSON of an answer: what chat completions and completions share, and where they differ."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from gateway.account import Account
from gateway.detokenise import LogprobEntry
from gateway.ports import UNLIKELY, FinishReason
from gateway.statistics import speculative_decoding, total

Json = dict[str, object]
Entries = Sequence[LogprobEntry]


@dataclass(frozen=True, slots=True)
class Answer(ABC):
    """The answer to one request. Each method returns a choice, without its index."""

    id_prefix: ClassVar[str]
    object: ClassVar[str]
    chunk_object: ClassVar[str]

    id: str
    created: int
    """Unix time, in seconds."""

    model: str
    wants_logprobs: bool

    def body(self, choices: Sequence[Json], *, chunk: bool) -> Json:
        """Return the whole body, or that of one chunk of a stream."""
        return {
            "id": self.id,
            "object": self.chunk_object if chunk else self.object,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    @abstractmethod
    def first_chunk(self) -> Json | None:
        """Return a choice's first chunk, which has no text; None if the API has none."""

    @abstractmethod
    def text_chunk(self, text: str, entries: Entries) -> Json: ...

    @abstractmethod
    def last_chunk(self, finish: FinishReason) -> Json: ...

    @abstractmethod
    def choice(self, text: str, entries: Entries, finish: FinishReason | None) -> Json:
        """Return a choice that is not streamed."""


def statistics_fields(account: Account) -> Json:
    """Return the fields that end an answer: vLLM's `metrics` and llama.cpp's `timings`."""
    counted = total(account.statistics.values())
    known = speculative_decoding(counted) if account.statistics else None
    return {"metrics": {"speculative_decoding": known}, "timings": account.timings()}


def finite(logprob: float) -> float:
    """Return the log-probability, but UNLIKELY for minus infinity, which JSON cannot express."""
    return max(logprob, UNLIKELY)
