"""Makes streams steady: tokens that came in one burst reach the client one after another.

Separate tasks read the streams, because the next burst must be noticed while tokens of the
burst before it are held.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from picospec.gateway.output.choice_stream import Arrivals, ChoiceStream
from picospec.gateway.output.detokenise import TextDelta, single_tokens
from picospec.gateway.output.pacer import Pacer
from picospec.gateway.ports import Delta


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
