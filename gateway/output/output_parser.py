"""Reads the Deltas of a choice whose text is more than content.

The tokens are read one by one, so that a client's result cannot depend on how Deltas group
them.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from gateway.output.detokenise import (
    Detokeniser,
    Finish,
    LogprobEntry,
    TextDelta,
    single_tokens,
)
from gateway.output.message import ParsedMessage
from gateway.output.reading import Incoming, Steps
from gateway.ports import Delta
from gateway.watching import Report

Parse = Callable[[Incoming, ParsedMessage], Steps[None]]


class OutputParser:
    """Splits the text of a choice from `detokeniser` into reasoning, content and calls."""

    def __init__(self, detokeniser: Detokeniser, message: ParsedMessage, parse: Parse) -> None:
        self._detokeniser = detokeniser
        self._message = message
        self._text = Incoming()
        self._steps = parse(self._text, message)
        self._entries = ContentEntries()
        self._complete = False
        """True if the only call that the client wants was closed, and not cut by the end of the
        text."""

        next(self._steps, None)

    def read(self, delta: Delta) -> TextDelta:
        """Return what the tokens of a delta show of the choice. Raises EngineFault, as the
        Detokeniser does."""
        tokens = thoughts = 0
        finish: Finish | None = None
        stop: str | None = None
        reports: list[Report] = []
        for one in single_tokens(delta):
            shown = self._detokeniser.read(one)
            thoughts += shown.tokens * self._advance(shown)
            tokens += shown.tokens
            if shown.report is not None:
                reports.append(shown.report)
            finish, stop = self._finish(shown), shown.stop
            if finish is not None:
                break
        content, spans = self._message.take_content()
        parsed = self._message.take_parsed(thoughts)
        return TextDelta(
            content,
            tokens,
            tuple(self._entries.take(spans)),
            finish,
            delta.statistics,
            parsed,
            self._merged(reports, spans, parsed.sources),
            stop,
        )

    def _merged(
        self, reports: Sequence[Report], content: Iterable[range], thoughts: Iterable[range]
    ) -> Report | None:
        """Return the reports of several tokens as one, with the origins of the shown text."""
        if (origins := self._detokeniser.origins) is None:
            return None
        return Report(
            sum((Counter(each.tokens) for each in reports), Counter()),
            origins.spans(content),
            origins.spans(thoughts),
            [event for each in reports for event in each.events],
        )

    def _advance(self, shown: TextDelta) -> bool:
        """Parse what a token shows, and return True if the token is part of the reasoning."""
        before = self._message.thinking
        self._entries.add(shown.entries)
        self._text.feed(shown.text)
        next(self._steps, None)
        self._complete = self._message.complete
        if shown.finish is not None:
            self._text.ended = True
            next(self._steps, None)
        return before or self._message.thinking

    def _finish(self, shown: TextDelta) -> Finish | None:
        called = self._message.calls and shown.finish == "stop"
        return "tool_calls" if called or self._complete else shown.finish


class ContentEntries:
    """Selects the log-probabilities of the tokens of content, which OpenAI's API reports."""

    def __init__(self) -> None:
        self._pending: deque[LogprobEntry] = deque()

    def add(self, entries: Iterable[LogprobEntry]) -> None:
        self._pending.extend(entries)

    def take(self, spans: Iterable[range]) -> Iterator[LogprobEntry]:
        """Yield the entries whose text overlaps with `spans`, and drop those before."""
        for span in spans:
            while self._pending and self._pending[0].offset < span.stop:
                entry = self._pending.popleft()
                if entry.offset + max(1, len(entry.piece.decode(errors="ignore"))) > span.start:
                    yield entry
