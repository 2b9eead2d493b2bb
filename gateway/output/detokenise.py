"""Turns the tokens of one choice into the text, log-probabilities and finish a client sees.

* The outcome depends on the tokens only, not on how Deltas group them.
* A part of a UTF-8 character is never shown. Bytes that cannot become a character give U+FFFD.
* The text ends at the stop string that is complete first (the longest, if two are complete at
  the same character). Text that may begin a stop string is withheld until that is known. A stop
  string that is complete within the first `min_tokens` tokens ends nothing.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import msgspec

from gateway.errors import EngineFault
from gateway.output.message import Parsed
from gateway.ports import Delta, Statistics
from gateway.watching import TARGET, ChainEvent, Event, Origins, Report
from speculation.messages import FinishReason, TokenLogprob

Piece = Callable[[int], bytes]
Finish = FinishReason | Literal["tool_calls"]


@dataclass(frozen=True, slots=True)
class LogprobEntry:
    """Holds the log-probabilities of one shown token."""

    piece: bytes
    logprob: float | None
    """None: the token begins the prompt, so that nothing predicts it."""

    top: tuple[tuple[bytes, float], ...]
    """These are the most likely tokens as (piece, logprob), in descending order."""

    offset: int
    """This many characters of the choice come before the token."""

    def after(self, chars: int) -> LogprobEntry:
        """Return the entry as it is behind so many characters more."""
        return replace(self, offset=self.offset + chars)


class TextDelta(msgspec.Struct, frozen=True):
    """Holds what a Delta adds for the client. Every Delta makes one, so it must be cheap."""

    text: str
    """The text is empty while it is withheld or ends within a character."""

    tokens: int
    """Usage counts this many tokens: all generated ones, up to the end of a stop string."""

    entries: tuple[LogprobEntry, ...] = ()
    finish: Finish | None = None
    statistics: Statistics | None = None
    parsed: Parsed | None = None
    """If a parser reads the choice, this is the rest of the message, and `text` its content."""

    report: Report | None = None
    """The delta reports this of speculation, if the choice is watched."""

    stop: str | None = None
    """This stop string ends the text; None: none does."""

    prompt_logprobs: Sequence[TokenLogprob] = ()
    """See Delta.prompt_logprobs."""

    scores: Sequence[object] | None = None
    """An endpoint has written them so, if its choices have them in a field of their own."""

    written: Sequence[object] = ()
    """An endpoint has written the entries so, for an answer that is not streamed."""


@dataclass(frozen=True, slots=True)
class StopConditions:
    """Define what ends the text of one choice, beside its length."""

    tokens: frozenset[int] = frozenset()
    strings: Sequence[str] = ()
    min_tokens: int = 0
    """A stop string that is complete within as many tokens ends nothing."""

    is_shown: bool = False
    """True if the stop string or stop token that ends the text is part of the text."""


class Detokeniser:
    """Converts the Deltas of one choice, in order.

    watched: True if deltas report speculation. lists_all: True if a stop token that is not part
    of the text has an entry too.
    """

    def __init__(
        self,
        piece: Piece,
        stop: StopConditions,
        *,
        watched: bool = False,
        lists_all: bool = False,
    ) -> None:
        self.origins = Origins() if watched else None
        """Holds the origins of shown and withheld text; None if the choice is not watched."""

        self._piece = piece
        self._lists_all = lists_all
        self._hidden = frozenset[int]() if stop.is_shown else stop.tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = StopStrings(stop.strings, include_stop=stop.is_shown)
        self._pending: deque[LogprobEntry] = deque()
        self._min_tokens_left = stop.min_tokens
        self._decoded_chars = 0
        self._shown_chars = 0

    def read(self, delta: Delta) -> TextDelta:
        """Return what the Delta adds. Raises EngineFault if only some tokens have logprobs."""
        if delta.logprobs is not None and len(delta.logprobs) != len(delta.tokens):
            raise EngineFault("the engine gave log-probabilities for some tokens only")
        text, tokens = self._read_tokens(delta)
        if delta.finish is not None and not self._stops.hit:
            text += self._show(self._utf8.decode(b"", final=True)) + self._stops.finish()
        finish: Finish | None = "stop" if self._stops.hit else delta.finish
        shown = range(self._shown_chars, self._shown_chars + len(text))
        self._shown_chars += len(text)
        entries = self._shown_entries(finish) if self._pending else ()
        report = self._report(shown, delta.events)
        return TextDelta(
            text,
            tokens,
            entries,
            finish,
            delta.statistics,
            report=report,
            stop=self._stops.hit,
            prompt_logprobs=delta.prompt_logprobs,
        )

    def _read_tokens(self, delta: Delta) -> tuple[str, int]:
        """Return the text to show and the number of tokens that were read."""
        text = ""
        for count, token in enumerate(delta.tokens, start=1):
            self._min_tokens_left -= 1
            is_shown = token not in self._hidden
            if delta.logprobs is not None and (is_shown or self._lists_all):
                self._pending.append(self._entry(token, delta.logprobs[count - 1]))
            if is_shown:
                text += self._show(self._utf8.decode(self._piece(token)))
            if self.origins is not None:
                origin = delta.origins[count - 1] if delta.origins else TARGET
                self.origins.add(origin, self._decoded_chars, cut=bool(self._cut_bytes))
            if self._stops.hit:
                return text, count
        return text, len(delta.tokens)

    def _report(self, shown: range, events: Sequence[Event]) -> Report | None:
        if (origins := self.origins) is None:
            return None
        texts = tuple(self._with_text(e) if isinstance(e, ChainEvent) else e for e in events)
        return Report(origins.take_tokens(), origins.spans([shown]), events=texts)

    def _with_text(self, chain: ChainEvent) -> ChainEvent:
        """Return the chain with its text, without an incomplete character."""
        cut = b"" if chain.broken else self._cut_bytes
        text = (cut + b"".join(map(self._piece, chain.ids))).decode("utf-8", "ignore")
        return msgspec.structs.replace(chain, text=text)

    @property
    def _cut_bytes(self) -> bytes:
        """Return the bytes of an incomplete character."""
        return self._utf8.getstate()[0]

    def _show(self, decoded: str) -> str:
        self._decoded_chars += len(decoded)
        return self._stops.feed(decoded, ends=self._min_tokens_left < 0)

    def _entry(self, token: int, token_logprob: TokenLogprob) -> LogprobEntry:
        top = tuple((self._piece(other), logprob) for other, logprob in token_logprob.top)
        return LogprobEntry(self._piece(token), token_logprob.logprob, top, self._decoded_chars)

    def _shown_entries(self, finish: Finish | None) -> tuple[LogprobEntry, ...]:
        """Return the pending entries whose text is shown, and none from a stop string on."""
        everything = finish is not None and not self._stops.hit
        shown = []
        while self._pending and (everything or self._pending[0].offset < self._shown_chars):
            shown.append(self._pending.popleft())
        return tuple(shown)


def single_tokens(delta: Delta) -> Iterator[Delta]:
    """Yield a Delta for each token; the last one has the finish."""
    last = len(delta.tokens) - 1
    if last < 1:
        yield delta
        return
    for at, token in enumerate(delta.tokens):
        logprobs = delta.logprobs[at : at + 1] if delta.logprobs is not None else None
        yield replace(
            delta,
            tokens=(token,),
            logprobs=logprobs,
            finish=delta.finish if at == last else None,
            origins=delta.origins and delta.origins[at : at + 1],
            events=() if at else delta.events,
        )


class StopStrings:
    """Finds the first stop string in text that is fed piece by piece. The text ends before the
    stop string, or after it if `include_stop`."""

    def __init__(self, stops: Sequence[str], *, include_stop: bool) -> None:
        if not all(stops):
            raise ValueError("a stop string must not be empty")
        self._stops = tuple(stops)
        self._include_stop = include_stop
        self._withheld = ""
        self.hit: str | None = None
        """This stop string was found and has ended the text."""

    def feed(self, text: str, *, ends: bool = True) -> str:
        """Take more text, unless a stop string was hit, and return the text to show now.

        ends: True if a stop string that this text completes ends the text.
        """
        text = self._withheld + text
        if ends and (match := self._find(text)):
            end, start, self.hit = min(match)
            self._withheld = ""
            return text[: end if self._include_stop else start]
        keep = max((overlap(text, stop) for stop in self._stops), default=0)
        self._withheld = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """Return the withheld text, which begins no stop string now that the text has ended."""
        withheld, self._withheld = self._withheld, ""
        return withheld

    def _find(self, text: str) -> list[tuple[int, int, str]]:
        """Return (end, start, stop) of the first occurrence of each stop string in `text`."""
        starts = [(stop, text.find(stop)) for stop in self._stops]
        return [(start + len(stop), start, stop) for stop, start in starts if start >= 0]


def overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that is a proper beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
