"""This module reports what speculation does for a request to a client that asked: tokens'
origins, events and totals.

The engine gives the origin of each token, and events. `Origins` knows which token each
character of the text is from, even if the text is shown late or in parts.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Final, Literal

import msgspec

Origin = str
"""An origin names the source that proposed a token first, see docs/api.md."""

TARGET: Final = "target"
PROMPT: Final = "prompt"
Spans = Sequence[tuple[int, Origin]]
"""Each run of characters is given by its length and its origin."""


class ChainEvent(msgspec.Struct, frozen=True):
    """Reports that the chain has changed."""

    name: ClassVar[str] = "chain"
    epoch: int
    position: int
    tokens: int
    broken: bool
    """True if the chain was wrong; `position` is then that of its first wrong token."""

    ids: tuple[int, ...] = ()
    """The gateway makes `text` of these first tokens of the chain."""

    text: str = ""
    drafted: int = 0
    """The draft model proposed this many of the chain's tokens, or agreed with them."""


class PassEvent(msgspec.Struct, frozen=True):
    """Reports that a pass has committed tokens. Times are in milliseconds; None is unknown."""

    name: ClassVar[str] = "pass"
    position: int
    rows: int
    accepted: int
    committed: int
    beyond: Literal["recovered", "bonus", "fill"] | None
    pass_ms: float
    waited_ms: float
    gap_ms: float | None
    cloud_row_ms: float | None


class LinkUse(msgspec.Struct, frozen=True):
    """Reports what the link has carried for the answer."""

    name: ClassVar[str] = "link"
    rtt_ms: float
    bytes_up: int
    bytes_down: int
    verifier: str
    """The verifier's label, as in the edge's /health."""

    reopened: int


Event = ChainEvent | PassEvent | LinkUse


def event_json(event: Event, index: int) -> dict[str, object]:
    """Return an event of choice `index` in its form for a chunk."""
    fields = msgspec.structs.asdict(event)
    fields.pop("ids", None)
    return {"event": event.name, "index": index, **fields}


class Report(msgspec.Struct, frozen=True):
    """Holds what a TextDelta reports of speculation."""

    tokens: Mapping[Origin, int]
    """Counts the tokens that were read, including those that show no text yet."""

    text: Spans = ()
    reasoning: Spans = ()
    events: Sequence[Event] = ()

    def after_prompt(self, characters: int) -> Report:
        """Return the report for a text that follows this many characters of the prompt."""
        prompt = [(characters, PROMPT)] if characters else []
        return msgspec.structs.replace(self, text=[*prompt, *self.text])


class Origins:
    """Holds the origin of each character of a choice's text, in runs of one token each."""

    def __init__(self) -> None:
        self._ends: list[int] = []
        self._origins: list[Origin] = []
        self._cut: Origin | None = None  # origin of the token with an unfinished character
        self._tokens: Counter[Origin] = Counter()

    def add(self, origin: Origin, end: int, *, cut: bool) -> None:
        """Add a token. end: length of the text with this token's characters. cut: the token
        ends within a character, which then counts as the token's own."""
        self._tokens[origin] += 1
        begun = self._ends[-1] if self._ends else 0
        if self._cut is not None and end > begun:
            self._append(self._cut, begun + 1)
            self._cut = None
        self._append(origin, end)
        if cut and self._cut is None:
            self._cut = origin

    def _append(self, origin: Origin, end: int) -> None:
        if end > (self._ends[-1] if self._ends else 0):
            self._ends.append(end)
            self._origins.append(origin)

    def take_tokens(self) -> Mapping[Origin, int]:
        """Return the number of tokens of each origin that were added since the last call."""
        taken, self._tokens = self._tokens, Counter()
        return taken

    def spans(self, pieces: Iterable[range]) -> Spans:
        """Return the origins of a text that consists of these ranges of the model's text. A
        character that no token has completed, such as U+FFFD at the end, is from the token that
        began it."""
        spans: list[tuple[int, Origin]] = []
        last = self._cut or (self._origins[-1] if self._origins else TARGET)
        for piece in pieces:
            at, run = piece.start, bisect_right(self._ends, piece.start)
            while at < piece.stop:
                known = run < len(self._ends)
                origin = self._origins[run] if known else last
                end = min(self._ends[run], piece.stop) if known else piece.stop
                before = spans.pop()[0] if spans and spans[-1][1] == origin else 0
                spans.append((before + end - at, origin))
                at, run = end, run + 1
        return spans


class Watch:
    """Tracks what the chunks of one request have reported, for their counts and the totals."""

    def __init__(self) -> None:
        self._tokens: Counter[Origin] = Counter()
        self._uncounted: dict[int, Counter[Origin]] = {}  # tokens that no chunk has counted yet
        self._links: dict[int, LinkUse] = {}
        self._row_ms: dict[int, float] = {}

    def take(self, index: int, report: Report) -> list[dict[str, object]]:
        """Record a report on choice `index`, and return its events."""
        self._tokens.update(report.tokens)
        self._uncounted.setdefault(index, Counter()).update(report.tokens)
        for event in report.events:
            if isinstance(event, LinkUse):
                self._links[index] = event
            elif isinstance(event, PassEvent) and event.cloud_row_ms is not None:
                self._row_ms[index] = event.cloud_row_ms
        return [event_json(event, index) for event in report.events]

    def count(self, index: int) -> Mapping[Origin, int]:
        """Return the tokens of a choice that no chunk has counted yet."""
        return self._uncounted.pop(index, Counter())

    def totals(self) -> dict[str, object]:
        """Return the totals of all choices together."""
        links, rows = self._links.values(), self._row_ms.values()
        known = bool(links)
        tokens = self._tokens.total()
        up, down = sum(each.bytes_up for each in links), sum(each.bytes_down for each in links)
        return {
            "event": "totals",
            "tokens": self._tokens,
            "bytes_up": up if known else None,
            "bytes_down": down if known else None,
            "bytes_per_token": (up + down) / tokens if known and tokens else None,
            "rtt_ms": max((each.rtt_ms for each in links), default=None),
            "cloud_row_ms": sum(rows) / len(rows) if rows else None,
            "reopened": sum(each.reopened for each in links) if known else None,
        }
