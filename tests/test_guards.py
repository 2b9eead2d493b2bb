"""A core test runs on a virtual clock, which waits for threads, and fails at what is real."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from tests.guards import guarded
from tests.virtual_time import Gate


@pytest.mark.parametrize(
    "deed",
    [
        lambda _: time.sleep(0.001),
        lambda _: subprocess.run([sys.executable, "-c", ""], check=False),
        lambda each: each.connect(("127.0.0.1", 9)),
        lambda each: each.bind(("127.0.0.1", 0)),
    ],
)
def test_what_is_real_fails_a_core_test(deed: Callable[[socket.socket], object]) -> None:
    with socket.socket() as each, guarded() as deeds, pytest.raises(pytest.fail.Exception):
        deed(each)

    assert len(deeds) == 1


async def test_an_hour_passes_at_once_by_every_monotonic_clock() -> None:
    begun, real = time.monotonic(), time.time()

    await asyncio.sleep(3600)

    assert time.monotonic() - begun == pytest.approx(3600)
    assert asyncio.get_running_loop().time() == time.monotonic()
    assert time.time() - real < 3600


async def test_no_time_passes_while_a_thread_works() -> None:
    goes_on = threading.Event()
    asyncio.get_running_loop().call_soon(goes_on.set)

    async with asyncio.timeout(1e-6):
        await asyncio.to_thread(lambda: goes_on.wait() and sum(range(10**6)))


async def test_time_passes_while_a_thread_is_stuck() -> None:
    gate = Gate()
    gate.clear()
    asyncio.get_running_loop().call_later(60, gate.set)

    await asyncio.to_thread(gate.wait)

    assert time.monotonic() == pytest.approx(60)


async def test_a_wait_that_nothing_ends_fails_at_once() -> None:
    selector = asyncio.get_running_loop().selector  # type: ignore[attr-defined]

    with pytest.raises(RuntimeError, match="waits for ever"):
        selector.select(None)
