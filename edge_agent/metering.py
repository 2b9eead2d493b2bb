"""Counts the tokens of a proxied answer by what the other service says of them.

The end of an answer is parsed once, when the answer has passed. What the answer does not count
is charged by bytes: a prompt by those of its request, and a stream by its events.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import chain
from typing import Final

from speculation.untrusted import Malformed, decode_json

EVENTS: Final = "text/event-stream; charset=utf-8"

_BEGINNING_BYTES: Final = 4096
"""This much of a beginning is kept: the first event of Anthropic's API counts the prompt."""

_END_BYTES: Final = 1 << 19
"""At least this much of an end is kept, and at most twice as much: the last event of OpenAI's
Responses repeats the text and the tools."""

_USAGE: Final = b'"usage":'
_USAGE_BYTES: Final = 1 << 10
"""`usage` has fewer bytes. vLLM writes it before the log-probabilities of a prompt."""

_LAST_EVENTS: Final = 8
"""One of this many last events has the counts of a stream, such as the one before [DONE]."""

_STREAMS: Final = {
    "application/json": (b"", b""),
    "application/x-ndjson": (b"\n", b"\n"),
    EVENTS: (b"\ndata:", b"\n\n"),
}
"""Maps the types of answers that may have counts to the mark of each event of a stream, and to
the separator of events."""

_PROMPT: Final = (
    ("prompt_tokens",),  # OpenAI
    ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"),  # Anthropic
    ("prompt_eval_count",),  # Ollama
    ("tokens_evaluated",),  # llama-server
    ("prompt_n", "cache_n"),  # llama.cpp's timings
)
"""An API counts a prompt under the first of these names, and under the others what that leaves
out. OpenAI's Responses have only the first of Anthropic's names."""

_GENERATED: Final = (
    *("completion_tokens", "output_tokens"),
    *("eval_count", "predicted_n", "tokens_predicted"),
)
"""Our verifier counts all choices in `predicted_n`, and one in `tokens_predicted`."""

_NAMES: Final = frozenset((*chain(*_PROMPT), *_GENERATED))
_MOST_TOKENS: Final = 10**9
"""A larger number is a mistake of the other service and counts nothing."""


class Meter:
    """Counts the tokens of one answer. kind: its content type, as the client gets it."""

    def __init__(self, kind: str) -> None:
        self.events = 0
        self._has_counts = kind in _STREAMS
        self._mark, self._separator = _STREAMS.get(kind, (b"", b""))
        self._beginning = b""
        self._end = bytearray(b"\n")  # so that an event on the first line has a mark too
        self._is_cut = False
        self._usage = b""  # and what follows it, of what is no longer kept

    @property
    def is_within_event(self) -> bool:
        return not self._end.endswith((b"\n\n", b"\r\n\r\n"))

    def take(self, piece: bytes) -> None:
        """Take the next piece of the answer; it may begin and end anywhere."""
        if not self._has_counts:
            return
        self._beginning += piece[: _BEGINNING_BYTES - len(self._beginning)]
        if mark := self._mark:
            begun = max(0, len(self._end) + 1 - len(mark))  # a mark may have begun there
            self.events += (self._end[begun:] + piece).count(mark)
        self._end += piece
        if len(self._end) > 2 * _END_BYTES:
            if (at := self._end.rfind(_USAGE, 0, len(_USAGE) - _END_BYTES)) >= 0:
                self._usage = bytes(self._end[at : at + _USAGE_BYTES])
            del self._end[:-_END_BYTES]
            self._is_cut = True

    def counts(self) -> tuple[int | None, int | None]:
        """Return how many tokens the prompt has, and how many were generated; None for a number
        that the answer does not have."""
        beginning = self._split(self._beginning)
        end = self._split(bytes(self._end), _LAST_EVENTS)
        if self._is_cut:
            end[0] = _rest(end[0])
        ended = _first_counts(reversed(end[-_LAST_EVENTS:])) or _counts_within(self._usage)
        counts = _first_counts(beginning) | ended
        prompts = (names for names in _PROMPT if names[0] in counts)
        prompt = (sum(counts.get(name, 0) for name in names) for names in prompts)
        generated = (counts[name] for name in _GENERATED if name in counts)
        return next(prompt, None), next(generated, None)

    def _split(self, text: bytes, most: int = -1) -> list[bytes]:
        """Return the last events of a stream; the first part has all those before."""
        if not self._separator:
            return [text]
        lines = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return lines.rsplit(self._separator, most)


def _rest(event: bytes) -> bytes:
    """Return an object of the last fields of an event whose beginning is missing, from `usage`
    on. It is only complete if that is a field of the event itself."""
    begins = event.rfind(b'"usage"')
    return b"{" + event[begins:] if begins >= 0 else b""


def _counts_within(usage: bytes) -> dict[str, int]:
    """Return the counts of a `usage` that other fields follow."""
    try:
        value, _ = json.JSONDecoder().raw_decode(
            usage.removeprefix(_USAGE).decode(errors="replace").lstrip()
        )
    except (ValueError, RecursionError):
        return {}
    return _numbers(value)


def _first_counts(events: Iterable[bytes]) -> dict[str, int]:
    """Return the counts in the first event that has any, by their names."""
    return next(filter(None, map(_counts, events)), {})


def _counts(event: bytes) -> dict[str, int]:
    data = [line[5:] for line in event.split(b"\n") if line.startswith(b"data:")]
    try:
        body = decode_json(b"\n".join(data) or event, object)
    except Malformed:
        return {}
    if isinstance(body, list):  # llama-server's, one answer for each prompt or choice
        body = body[-1] if body else None
    # `message` is in the first event of Anthropic's API, in which only the prompt is counted
    begun = _numbers(_field(_field(body, "message"), "usage"))
    counts = {name: number for name, number in begun.items() if name not in _GENERATED}
    ended = _field(_field(body, "response"), "usage")  # in the last event of a response
    for holder in (body, _field(body, "timings"), ended, _field(body, "usage")):
        counts |= _numbers(holder)
    return counts


def _field(holder: object, name: str) -> object:
    return holder.get(name) if isinstance(holder, dict) else None


def _numbers(holder: object) -> dict[str, int]:
    fields = {name: _field(holder, name) for name in _NAMES}
    return {n: v for n, v in fields.items() if type(v) is int and 0 <= v < _MOST_TOKENS}


class WithoutUsageEvent:
    """Leaves out of a stream the event of OpenAI's API that has `usage` and no choices, which
    the edge has asked for and the client has not."""

    def __init__(self) -> None:
        self.rest = b""
        """These bytes of an event that has begun were not returned yet."""

    def take(self, piece: bytes) -> bytes:
        """Return what the client gets after the next piece of the stream."""
        *events, self.rest = (self.rest + piece).split(b"\n\n")
        shown = b"".join(event + b"\n\n" for event in events if not _only_counts(event))
        if len(self.rest) > _BEGINNING_BYTES:  # it is no such event
            shown, self.rest = shown + self.rest[:-1], self.rest[-1:]
        return shown


def _only_counts(event: bytes) -> bool:
    if b'"usage"' not in event or not event.startswith(b"data:"):
        return False
    try:
        body = decode_json(event[5:], object)
    except Malformed:
        return False
    return _field(body, "choices") == [] and isinstance(_field(body, "usage"), dict)
