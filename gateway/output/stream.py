"""Streams the choices of one request: one iterator, from the engine to the client.

Leaving a stream closes the engine's generators, which cancels their work on the edge and on the
verifier.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Final, Generic, TypeVar

from picospec.gateway.drain import beside
from picospec.gateway.errors import EngineFault
from picospec.gateway.output.detokenise import Detokeniser, TextDelta, single_tokens
from picospec.gateway.output.style import OutputParser
from picospec.gateway.ports import Delta

QUEUED: Final = 64
"""At most this many items of parallel streams wait for the client; a pass commits no more than
33 tokens by default."""

ChoiceStream = AsyncGenerator[tuple[int, TextDelta]]
"""Yields the TextDeltas of choices, each with the choice's index."""

Reader = Detokeniser | OutputParser

Arrivals = asyncio.Queue[tuple[int, TextDelta] | Exception]
Order = Callable[[Arrivals, int], ChoiceStream]
"""Yields what arrives of the given number of choices, until the last of them has ended."""


async def stream_choice(
    index: int, deltas: AsyncGenerator[Delta], reader: Reader
) -> ChoiceStream:
    """Yield the text of one choice. The engine's generator is closed before the last TextDelta.

    Raises what the engine raises, and EngineFault if it ends without a finish.
    """
    async with aclosing(deltas):
        async for delta in deltas:
            text_delta = reader.read(delta)
            if text_delta.finish is not None:
                break
            yield index, text_delta
        else:
            raise EngineFault("the engine ended a choice without saying why")
    yield index, text_delta


@asynccontextmanager
async def together(
    streams: Sequence[ChoiceStream], order: Order | None = None
) -> AsyncGenerator[ChoiceStream]:
    """Yield all streams as one, and close them at the end. order: None means as they come.

    While the client does not read, the streams pause. An error of one stream ends all of them,
    once the client has got the items before the error.
    """
    if len(streams) == 1 and order is None:
        async with aclosing(streams[0]) as only:
            yield only
        return
    arrived: Arrivals = asyncio.Queue(QUEUED)
    ordered = (order or as_they_come)(arrived, len(streams))
    async with beside(*(_read(stream, arrived) for stream in streams)), aclosing(ordered):
        yield ordered


async def as_they_come(arrived: Arrivals, choices: int) -> ChoiceStream:
    """Yield each item as soon as it arrives."""
    while choices:
        item = await arrived.get()
        if isinstance(item, Exception):
            raise item
        choices -= item[1].finish is not None
        yield item


async def _read(stream: ChoiceStream, arrived: Arrivals) -> None:
    try:
        async with aclosing(stream):
            async for item in stream:
                await arrived.put(item)
    except Exception as error:  # raised again once the items before it have been read
        await arrived.put(error)


# Decides when each token of a burst is shown, so that the text runs at the rate of generation.
#
# A pass of the target commits several tokens at once. The first is shown when it arrives, and
# the others follow in equal steps until the next burst is expected, after the running mean of
# the earlier intervals. Tokens that are still held when that burst comes are shown at once. So
# no token is later than the next burst, and none is held for longer than MAX_DELAY_S.

WEIGHT: Final = 0.25
"""The latest interval has this weight in the running mean."""

MAX_DELAY_S: Final = 1.0
"""A longer interval counts as this many seconds: the burst after an outage is not held long."""

T = TypeVar("T")


class Pacer(Generic[T]):
    """Paces the items of one choice; it has no clock.

    shows: returns True if a reader sees an item. interval_s: estimate of the intervals, such as
    that of another choice; 0 means unknown, and then the first burst is shown at once.

    An item that shows nothing takes no step: it goes with the one before it. Items come out in
    the order in which they came in.
    """

    def __init__(self, shows: Callable[[T], bool], interval_s: float = 0.0) -> None:
        self.interval_s = interval_s
        """This is the running mean of the intervals between bursts."""

        self._shows = shows
        self._held: deque[T] = deque()
        self._arrived_s: float | None = None
        self._step_s = 0.0
        self._next_s = 0.0

    @property
    def due_s(self) -> float | None:
        """Return the time at which the next item is due; None while nothing is held."""
        return self._next_s if self._held else None

    def add(self, items: Sequence[T], now: float) -> list[T]:
        """Add items that arrived together, and return those that are due. If none of the items
        shows anything, they are no burst: they wait for those before them."""
        steps = sum(map(self._shows, items))
        before = self.flush() if steps else []
        self._held.extend(items)
        if steps:
            self._learn(now)
            self._step_s, self._next_s = self.interval_s / steps, now
        return before + self.due(now)

    def due(self, now: float) -> list[T]:
        """Return the items that are due by now."""
        shown: list[T] = []
        while self._held:
            step_s = self._step_s if self._shows(self._held[0]) else 0.0
            if step_s and self._next_s > now:
                break
            shown.append(self._held.popleft())
            self._next_s += step_s
        return shown

    def flush(self) -> list[T]:
        """Return all held items."""
        held = list(self._held)
        self._held.clear()
        return held

    def _learn(self, now: float) -> None:
        """Update the mean with the interval that this burst ends, unless it is the first."""
        if self._arrived_s is not None:
            interval_s = min(now - self._arrived_s, MAX_DELAY_S)
            mean_s = self.interval_s or interval_s
            self.interval_s = mean_s + WEIGHT * (interval_s - mean_s)
        self._arrived_s = now


# Makes streams steady: tokens that came in one burst reach the client one after another.
#
# Separate tasks read the streams, because the next burst must be noticed while tokens of the
# burst before it are held.


async def singly(deltas: AsyncGenerator[Delta]) -> AsyncGenerator[Delta]:
    """Yield a Delta for each token: tokens that are shown singly must be read singly."""
    async with aclosing(deltas):
        async for delta in deltas:
            for one in single_tokens(delta):
                yield one


class Steady:
    """Paces the choices of all requests to one service. The first burst of a choice has the
    pace of the choice that ended last, of any client."""

    def __init__(self) -> None:
        self._interval_s = 0.0

    async def paced(self, arrived: Arrivals, choices: int) -> ChoiceStream:
        """Yield each TextDelta when it is due: the end of a choice as soon as it comes. Raises
        an error after yielding all that came before it."""
        pacers = [Pacer(_shows, self._interval_s) for _ in range(choices)]
        clock = asyncio.get_running_loop().time
        while choices:
            due_s = min((p.due_s for p in pacers if p.due_s is not None), default=None)
            burst, error = await _burst(arrived, None if due_s is None else due_s - clock())
            now = clock()
            for index, pacer in enumerate(pacers):
                came = [delta for at, delta in burst if at == index]
                shown = pacer.add(came, now)
                if came and came[-1].finish is not None:
                    choices -= 1
                    self._interval_s = pacer.interval_s
                    shown += pacer.flush()
                for delta in shown if error is None else [*shown, *pacer.flush()]:
                    yield index, delta
            if error is not None:
                raise error


async def _burst(
    arrived: Arrivals, wait_s: float | None
) -> tuple[list[tuple[int, TextDelta]], Exception | None]:
    """Return all that has arrived, up to an error; nothing if nothing arrives within `wait_s`
    seconds."""
    burst: list[tuple[int, TextDelta]] = []
    try:
        async with asyncio.timeout(wait_s):
            item = await arrived.get()
    except TimeoutError:
        return burst, None
    while not isinstance(item, Exception):
        burst.append(item)
        if arrived.empty():
            return burst, None
        item = arrived.get_nowait()
    return burst, item


def _shows(delta: TextDelta) -> bool:
    parsed = delta.parsed
    return bool(delta.text or (parsed is not None and (parsed.reasoning or parsed.calls)))
