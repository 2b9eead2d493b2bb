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


async def test_no_time_passes_while_a_thread_works() -> None:
    goes_on = threading.Event()
    asyncio.get_running_loop().call_soon(goes_on.set)

    async with asyncio.timeout(1e-6):
        await asyncio.to_thread(lambda: goes_on.wait() and sum(range(10**6)))


async def test_a_wait_that_nothing_ends_fails_at_once() -> None:
    selector = asyncio.get_running_loop().selector  # type: ignore[attr-defined]

    with pytest.raises(RuntimeError, match="waits for ever"):
        selector.select(None)
