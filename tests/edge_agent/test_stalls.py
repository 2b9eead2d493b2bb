"""An event loop that stands still for longer than a stream may be silent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from picospec.edge_agent.link.session import SILENCE_S, Link
from picospec.edge_agent.metrics import EdgeMetrics
from picospec.speculation import wire
from picospec.speculation.messages import Finish, Limits, Opened
from tests.edge_agent.processes import Process
from tests.edge_agent.test_uplink import everything, request, uplink_to

STALL_S = SILENCE_S + 0.4


async def test_what_came_meanwhile_is_read(verifier: Process, metrics: EdgeMetrics) -> None:
    uplink = uplink_to(verifier.url, metrics)
    asyncio.get_running_loop().call_later(0.3, time.sleep, STALL_S)

    messages = await everything(uplink, request(max_tokens=100))

    assert isinstance(messages[-1], Finish)
    assert uplink.endpoint.is_ready


async def read(metrics: EdgeMetrics, silent_s: float) -> Finish | None:
    """Read a stream that stops for a while at its beginning, where the loop stands still."""

    async def pieces() -> AsyncIterator[bytes]:
        yield wire.encode(Opened("a" * 12, Limits()))
        await asyncio.sleep(silent_s)
        yield wire.encode(Finish("length"))

    link = Link(uplink_to("http://127.0.0.1:9", metrics), request())
    asyncio.get_running_loop().call_later(0.1, time.sleep, STALL_S)
    async for message in link._messages(pieces()):
        if isinstance(message, Finish):
            return message
        link._note(message)
    return None


async def test_what_comes_right_after_it_is_read(metrics: EdgeMetrics) -> None:
    assert await read(metrics, SILENCE_S + 0.1)


async def test_a_stream_that_stays_silent_is_lost(metrics: EdgeMetrics) -> None:
    begun = time.monotonic()

    with pytest.raises(TimeoutError):
        await read(metrics, 10.0)

    assert time.monotonic() - begun < 0.1 + STALL_S + 2 * SILENCE_S
