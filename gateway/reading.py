"""From the tokens of one choice to the text, log-probabilities and finish a client sees.

Pure: no clock, no I/O. The outcome depends on the tokens only, not on how Deltas group them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from gateway.errors import EngineFault
from gateway.ports import Delta, FinishReason, Statistics, TokenLogprob
from gateway.text import Decoder, StopStrings

Piece = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Entry:
    """The log-probabilities of one shown token."""

    piece: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...]
    """(piece, logprob), most likely first."""

    offset: int
    """Characters of the choice before this token."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a Delta adds for the client. Text may be empty: held back, or half a character."""

    text: str
    tokens: int
    """Tokens counted for usage: all that were generated, up to the end of a stop string."""

    entries: tuple[Entry, ...] = ()
    finish: FinishReason | None = None
    statistics: Statistics | None = None


class Reader:
    """Reads the Deltas of one choice."""

    def __init__(
        self, piece: Piece, *, stop_tokens: frozenset[int], stops: Sequence[str]
    ) -> None:
        self._piece = piece
        self._stop_tokens = stop_tokens
        self._decoder = Decoder()
        self._stops = StopStrings(stops)
        self._pending: deque[Entry] = deque()
        self._decoded = 0  # characters, shown or held
        self._shown = 0  # characters

    def read(self, delta: Delta) -> Said:
        """Raise EngineFault if the Delta has log-probabilities for some of its tokens only."""
        if delta.logprobs is not None and len(delta.logprobs) != len(delta.tokens):
            raise EngineFault("the engine gave log-probabilities for some tokens only")
        text, tokens = self._read_tokens(delta)
        if delta.finish is not None:
            text += self._finish()
        finish: FinishReason | None = "stop" if self._stops.hit else delta.finish
        self._shown += len(text)
        return Said(text, tokens, self._released(finish), finish, delta.statistics)

    def _read_tokens(self, delta: Delta) -> tuple[str, int]:
        text = ""
        for count, token in enumerate(delta.tokens, start=1):
            if token not in self._stop_tokens:
                if delta.logprobs is not None:
                    self._pending.append(self._entry(token, delta.logprobs[count - 1]))
                text += self._take(self._decoder.feed(self._piece(token)))
            if self._stops.hit:
                return text, count
        return text, len(delta.tokens)

    def _take(self, decoded: str) -> str:
        self._decoded += len(decoded)
        return self._stops.feed(decoded)

    def _finish(self) -> str:
        return self._take(self._decoder.finish()) + self._stops.finish()

    def _entry(self, token: int, found: TokenLogprob) -> Entry:
        top = tuple((self._piece(other), logprob) for other, logprob in found.top)
        return Entry(self._piece(token), found.logprob, top, self._decoded)

    def _released(self, finish: FinishReason | None) -> tuple[Entry, ...]:
        """Entries of tokens whose text is shown; those past a stop string never are."""
        everything = finish is not None and not self._stops.hit
        released = []
        while self._pending and (everything or self._pending[0].offset < self._shown):
            released.append(self._pending.popleft())
        return tuple(released)


async def speak(deltas: AsyncGenerator[Delta], reader: Reader) -> AsyncGenerator[Said]:
    """Read one choice to its end. The engine's generator is closed before the last Said.

    Raise what the engine raises; EngineFault if it ends without a finish.
    """
    async with aclosing(deltas):
        async for delta in deltas:
            said = reader.read(delta)
            if said.finish is not None:
                break
            yield said
        else:
            raise EngineFault("the engine ended a choice without saying why")
    yield said
