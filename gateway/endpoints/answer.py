"""Every endpoint writes its answers by this interface, from the same parts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import msgspec

from gateway.errors import ApiError
from gateway.output.detokenise import LogprobEntry, TextDelta
from gateway.output.message import CallStart
from gateway.request_context import Usage
from speculation.messages import UNLIKELY

Json = dict[str, object]
Entries = Sequence[LogprobEntry]
Part = tuple[Literal["reasoning", "text", "call"], str, CallStart | None]
"""A part of an answer is its kind, its text, and the start of a call, which has no text yet."""


@dataclass(frozen=True, slots=True)
class Heading:
    """Holds what is known of an answer before its first token."""

    id: str
    created: int
    """The answer was created at this Unix time, in seconds."""

    model: str
    choices: int
    usage: Usage
    """The usage counts a delta before `events` gets it, so that usage is up to date."""

    fingerprint: str | None = None
    """OpenAI calls it `system_fingerprint`; not every answer has one."""


class Answer(ABC):
    """Writes one answer, streamed or whole."""

    media_type: ClassVar[str] = "text/event-stream; charset=utf-8"
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

    def write(self, entries: Entries) -> Sequence[object]:
        """Return log-probabilities for `full_answer`, encoded as far as they can be: an answer
        has up to a million, and nothing else runs while all of it is encoded."""
        return ()

    @abstractmethod
    def full_answer(self, choices: Sequence[TextDelta]) -> object:
        """Return the answer to encode if it is not streamed. choices: one delta for each, with
        its entries as `write` has returned them."""


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
    if delta.text or delta.entries or delta.written:
        yield "text", delta.text, None
    yield from calls[begins:]


def sent_event(content: object, name: str = "") -> bytes:
    """Return a server-sent event with JSON data. name: the event's name, "" for none."""
    named = b"event: %b\n" % name.encode() if name else b""
    return b"%bdata: %b\n\n" % (named, msgspec.json.encode(content))


def finite(logprob: float | None) -> float | None:
    """Return `logprob`, or UNLIKELY for minus infinity, which JSON cannot express."""
    return None if logprob is None else max(logprob, UNLIKELY)
