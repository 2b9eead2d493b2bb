"""What each door has of its own: how its request is read, and how its answer is written.

A door has a schema of its request, a function that reads such a request as the one kind that is
answered, and the answer that writes the result. Everything between is the same behind all
doors: keys, limits, drain, tokens, speculation and fail-over.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeVar

import msgspec
from starlette.responses import Response

from picospec.gateway.accounts.account import Account
from picospec.gateway.doors.request import GenerationRequest
from picospec.gateway.errors import ApiError
from picospec.gateway.output.detokenise import LogprobEntry, TextDelta
from picospec.gateway.output.message import CallStart
from picospec.gateway.ports import UNLIKELY
from picospec.gateway.schemas.base import RequestModel

Json = dict[str, object]
Entries = Sequence[LogprobEntry]
Part = tuple[Literal["reasoning", "text", "call"], str, CallStart | None]
"""A part of an answer: its kind, its text, and how a call begins, which has no text yet."""

Body = TypeVar("Body", bound=RequestModel)


@dataclass(frozen=True, slots=True)
class Heading:
    """What is known of an answer before its first token."""

    id: str
    created: int
    """Unix time, in seconds."""

    model: str
    choices: int
    account: Account
    """It has counted a delta before `events` gets that delta, so that usage is up to date."""

    fingerprint: str | None = None
    """OpenAI calls it `system_fingerprint`; not every answer has one."""


class Answer(ABC):
    """Writes one answer, streamed or whole."""

    media_type: ClassVar[str] = "text/event-stream; charset=utf-8"
    """The type of the stream."""

    keep_alive: ClassVar[bytes] = b": keep-alive\n\n"
    """What is sent while nothing else is; b"" for nothing. Clients skip a comment, as the
    standard of server-sent events says."""

    def waiting(self) -> bytes:
        """Return what is sent while nothing else is."""
        return self.keep_alive

    @abstractmethod
    def events(self, index: int, delta: TextDelta) -> bytes:
        """Return what the stream has for the next delta of choice `index`."""

    def end(self) -> bytes:
        """Return what the stream has after all choices have finished."""
        return b""

    def failure(self, error: ApiError) -> bytes:
        """Return what the stream ends with after an error."""
        return sent_event(error.body())

    @abstractmethod
    def whole(self, choices: Sequence[TextDelta]) -> object:
        """Return the answer that is not streamed. choices: each as one delta."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for, and how its answer is written."""

    body: GenerationRequest
    id_prefix: str
    answer: Callable[[Heading], Answer]
    ignored: tuple[str, ...] = ()
    """Fields of the door's own request that have no effect, besides those of `body`."""

    names: Mapping[str, str] = field(default_factory=dict)
    """From a field of `body` to the name that it has in the client's request, where these
    differ. An error names the field as the client does."""

    instead: Callable[[str], Response] | None = None
    """Where nothing is to be generated, as when Ollama's client only loads a model: a function
    that takes the model's name and returns the whole answer."""


Read = Callable[[Body], Asked]
"""Reads a door's request. Raises InvalidRequest, by the door's names of fields."""


def parts_of(delta: TextDelta) -> Iterator[Part]:
    """Yield what a delta shows, in the order in which a model writes it: what the open call
    still gets, reasoning, text and calls."""
    calls: list[Part] = [
        ("call", "", piece) if isinstance(piece, CallStart) else ("call", piece.text, None)
        for piece in (delta.parsed.calls if delta.parsed is not None else ())
    ]
    begins = next((i for i, (_, _, start) in enumerate(calls) if start), len(calls))
    yield from calls[:begins]
    if delta.parsed is not None and delta.parsed.reasoning:
        yield "reasoning", delta.parsed.reasoning, None
    if delta.text or delta.entries:
        yield "text", delta.text, None
    yield from calls[begins:]


def sent_event(content: object, name: str = "") -> bytes:
    """Return a server-sent event with JSON in it. name: the event's, where it has one."""
    named = b"event: %b\n" % name.encode() if name else b""
    return b"%bdata: %b\n\n" % (named, msgspec.json.encode(content))


def finite(logprob: float) -> float:
    """Return UNLIKELY for minus infinity, which JSON cannot express."""
    return max(logprob, UNLIKELY)
