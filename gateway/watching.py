"""What speculation does for one choice, as it is told to a client that asked for it.

The engine says whose the tokens are, and what happens besides. `Origins` knows for each
character of the text which token it is from, also where the text is shown late or in parts.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Final, Literal

import msgspec

Origin = str
"""Names who had a token first, see docs/api.md."""

TARGET: Final = "target"
PROMPT: Final = "prompt"
Spans = Sequence[tuple[int, Origin]]
"""Runs of characters, each as its length and its origin."""

Positions = Sequence[int]
"""For each character of a text that is shown, its place in the text that the model wrote."""


class Chain(msgspec.Struct, frozen=True):
    """The chain has changed."""

    name: ClassVar[str] = "chain"
    epoch: int
    position: int
    tokens: int
    """How many tokens the chain has."""

    broken: bool
    """Whether the chain was wrong; `position` is then that of its first wrong token."""

    ids: tuple[int, ...] = ()
    """The chain's first tokens, of which the gateway makes `text`."""

    text: str = ""
    drafted: int = 0
    """The draft model had so many of its tokens, or agreed with them."""


class Pass(msgspec.Struct, frozen=True):
    """A pass has committed tokens. Times are in milliseconds; None is not known."""

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
    """What the link has carried of the answer."""

    name: ClassVar[str] = "link"
    rtt_ms: float
    bytes_up: int
    bytes_down: int
    verifier: int
    """The verifier's place in the edge's list, from 0."""

    reopened: int


Event = Chain | Pass | LinkUse


def event_json(event: Event, index: int) -> dict[str, object]:
    """Return an event of choice `index` as a chunk has it."""
    fields = msgspec.structs.asdict(event)
    fields.pop("ids", None)
    return {"event": event.name, "index": index, **fields}


class Told(msgspec.Struct, frozen=True):
    """What a TextDelta tells of speculation."""

    tokens: Mapping[Origin, int]
    """The tokens that were read, also those that show no text yet."""

    text: Spans = ()
    reasoning: Spans = ()
    calls: Sequence[Spans] = ()
    """The origins of each piece of a call."""

    events: Sequence[Event] = ()

    def after_prompt(self, characters: int) -> Told:
        """Return it for a text that has so many characters of the prompt before it."""
        prompt = [(characters, PROMPT)] if characters else []
        return msgspec.structs.replace(self, text=[*prompt, *self.text])


class Origins:
    """The origin of each character of a choice's text, as runs of characters of one token."""

    def __init__(self) -> None:
        self._ends: list[int] = []
        self._origins: list[Origin] = []
        self._cut: Origin | None = None  # of the token that has begun an unfinished character
        self._tokens: Counter[Origin] = Counter()

    def add(self, origin: Origin, end: int, *, cut: bool) -> None:
        """Add a token. end: characters of the text up to and with this token's. cut: it ends
        within a character, which then is its own."""
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
        """Return the number of tokens added since the last time."""
        taken, self._tokens = self._tokens, Counter()
        return taken

    def spans(self, pieces: Iterable[Positions]) -> Spans:
        """Return the origins of a text that is made of these pieces."""
        spans: list[tuple[int, Origin]] = []
        for piece in pieces:
            at = 0
            while at < len(piece):
                origin, end = self._at(piece[at])
                count = bisect_right(piece, end - 1, at) - at
                at += count
                if spans and spans[-1][1] == origin:
                    count += spans.pop()[0]
                spans.append((count, origin))
        return spans

    def _at(self, position: int) -> tuple[Origin, float]:
        """Return a character's origin, and up to where the next ones have it too. What no token
        has completed, such as U+FFFD at the end, is from the one that began it."""
        run = bisect_right(self._ends, position)
        if run < len(self._ends):
            return self._origins[run], self._ends[run]
        last = self._origins[-1] if self._origins else TARGET
        return self._cut or last, float("inf")


class Watch:
    """What the chunks of one request have told, for their counts and for the totals."""

    def __init__(self) -> None:
        self._tokens: Counter[Origin] = Counter()
        self._untold: dict[int, Counter[Origin]] = {}  # tokens that no chunk has counted yet
        self._links: dict[int, LinkUse] = {}
        self._row_ms: dict[int, float] = {}

    def take(self, index: int, told: Told) -> list[dict[str, object]]:
        """Take in what is told of choice `index`, and return its events."""
        self._tokens.update(told.tokens)
        self._untold.setdefault(index, Counter()).update(told.tokens)
        for event in told.events:
            if isinstance(event, LinkUse):
                self._links[index] = event
            elif isinstance(event, Pass) and event.cloud_row_ms is not None:
                self._row_ms[index] = event.cloud_row_ms
        return [event_json(event, index) for event in told.events]

    def count(self, index: int) -> Mapping[Origin, int]:
        """Return the tokens of a choice that no chunk has counted yet."""
        return self._untold.pop(index, Counter())

    def totals(self) -> dict[str, object]:
        """Return what is known of all choices together."""
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
