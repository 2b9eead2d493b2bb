"""A door reads one API's requests into ours, and writes our answers in that API's shape.

A door has a schema of its request, a function that converts such a request to a
GenerationRequest, and an Answer that writes the result. Everything between is the same for all
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
"""A part of an answer is its kind, its text, and the start of a call, which has no text yet."""

Body = TypeVar("Body", bound=RequestModel)


@dataclass(frozen=True, slots=True)
class Heading:
    """Holds what is known of an answer before its first token."""

    id: str
    created: int
    """The answer was created at this Unix time, in seconds."""

    model: str
    choices: int
    account: Account
    """The account counts a delta before `events` gets it, so that usage is up to date."""

    fingerprint: str | None = None
    """OpenAI calls it `system_fingerprint`; not every answer has one."""


class Answer(ABC):
    """Writes one answer, streamed or whole."""

    media_type: ClassVar[str] = "text/event-stream; charset=utf-8"
    """A stream has this media type."""

    keep_alive: ClassVar[bytes] = b": keep-alive\n\n"
    """This is sent while there is nothing else to send; b"" for nothing. Clients skip a
    comment, as the standard of server-sent events says."""

    def waiting(self) -> bytes:
        """Return the bytes to send while there is nothing else to send."""
        return self.keep_alive

    @abstractmethod
    def events(self, index: int, delta: TextDelta) -> bytes:
        """Return the stream's bytes for the next delta of choice `index`."""

    def end(self) -> bytes:
        """Return the stream's bytes after all choices have finished."""
        return b""

    def failure(self, error: ApiError) -> bytes:
        """Return the bytes that end the stream after an error."""
        return sent_event(error.body())

    @abstractmethod
    def full_answer(self, choices: Sequence[TextDelta]) -> object:
        """Return the answer to encode if it is not streamed. choices: one delta for each."""


@dataclass(frozen=True, slots=True)
class DoorRequest:
    """Holds what a request asks for, and how its answer is written."""

    body: GenerationRequest
    id_prefix: str
    answer: Callable[[Heading], Answer]
    ignored: tuple[str, ...] = ()
    """These fields of the door's own request have no effect, besides those of `body`."""

    names: Mapping[str, str] = field(default_factory=dict)
    """Maps a field of `body` to its name in the client's request, if they differ. An error
    names the field as the client does."""

    instead: Callable[[str], Response] | None = None
    """Takes the model's name and returns the whole answer if nothing is to be generated, as
    when Ollama's client only loads a model; None otherwise."""


Convert = Callable[[Body], DoorRequest]
"""Converts a door's request. Raises InvalidRequest with the door's names of fields."""


def parts_of(delta: TextDelta) -> Iterator[Part]:
    """Yield the parts of a delta in the order in which a model writes them: the rest of the
    open call, reasoning, text and calls."""
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
    """Return a server-sent event with JSON data. name: the event's name, "" for none."""
    named = b"event: %b\n" % name.encode() if name else b""
    return b"%bdata: %b\n\n" % (named, msgspec.json.encode(content))


def finite(logprob: float) -> float:
    """Return `logprob`, or UNLIKELY for minus infinity, which JSON cannot express."""
    return max(logprob, UNLIKELY)
