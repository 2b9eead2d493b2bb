"""Passes on what a choice shows at the pace that its Pacer says.

The stream is read by a task of its own, because it must be known when the next burst comes
while tokens of the one before are held. A client that does not read stops that task too: it is
at most QUEUED TextDeltas ahead.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from picospec.gateway.output.choice_stream import ChoiceStream, Put
from picospec.gateway.output.detokenise import TextDelta, single_tokens
from picospec.gateway.ports import Delta
from picospec.gateway.steady.pacer import Pacer

QUEUED: Final = 64
"""TextDeltas that may wait to be paced; a pass commits no more than 33 tokens by default."""


@dataclass(frozen=True, slots=True)
class _End:
    error: Exception | None = None


_Arrivals = asyncio.Queue[TextDelta | _End]


async def singly(deltas: AsyncGenerator[Delta]) -> AsyncGenerator[Delta]:
    """Yield a Delta for each token: what is shown one by one must be read one by one."""
    async with aclosing(deltas):
        async for delta in deltas:
            for one in single_tokens(delta):
                yield one


class Steady:
    """Paces the choices of one service: the first burst of each by the pace of the last one."""

    def __init__(self) -> None:
        self._interval_s = 0.0

    async def forward(self, stream: ChoiceStream, put: Put) -> None:
        """Pass on every TextDelta when a reader is to see it.

        The end comes as soon as the stream ends, and an error after all that came before it.
        The stream is closed when this returns, raises or is cancelled.
        """
        pacer = Pacer(_shows, self._interval_s)
        arrived: _Arrivals = asyncio.Queue(QUEUED)
        clock, end = asyncio.get_running_loop().time, None
        async with asyncio.TaskGroup() as group:
            group.create_task(_read(stream, arrived))
            while end is None:
                due_s = pacer.due_s
                wait_s = None if due_s is None else due_s - clock()
                burst, end = await _burst(arrived, wait_s)
                shown = pacer.add(burst, clock())
                for delta in shown if end is None else [*shown, *pacer.flush()]:
                    await put(delta)
        self._interval_s = pacer.interval_s
        if end.error is not None:
            raise end.error


async def _read(stream: ChoiceStream, arrived: _Arrivals) -> None:
    end = _End()
    try:
        async with aclosing(stream):
            async for delta in stream:
                await arrived.put(delta)
    except Exception as error:  # raised again when what came before has been passed on
        end = _End(error)
    await arrived.put(end)


async def _burst(
    arrived: _Arrivals, wait_s: float | None
) -> tuple[list[TextDelta], _End | None]:
    """Return all that has arrived, and the end if it has come; nothing if for `wait_s` seconds
    nothing arrives."""
    burst: list[TextDelta] = []
    try:
        async with asyncio.timeout(wait_s):
            item = await arrived.get()
    except TimeoutError:
        return burst, None
    while not isinstance(item, _End):
        burst.append(item)
        if arrived.empty():
            return burst, None
        item = arrived.get_nowait()
    return burst, item


def _shows(delta: TextDelta) -> bool:
    parsed = delta.parsed
    return bool(delta.text or (parsed is not None and (parsed.reasoning or parsed.calls)))
