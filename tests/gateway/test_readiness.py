"""Waiting for services to become ready."""

from __future__ import annotations

import socket

import httpx
import pytest

from picospec.gateway.hosting.processes import NeverReady, Service
from picospec.gateway.hosting.readiness import until_ready


async def test_a_service_that_never_listens_is_named_after_the_wait() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        silent = Service("edge", (), f"http://127.0.0.1:{probe.getsockname()[1]}")

    waited_for: list[Service] = []
    async with httpx.AsyncClient(trust_env=False) as client:
        with pytest.raises(NeverReady, match=r"edge was not ready within 0\.1 s"):
            await until_ready([silent], client, within_s=0.1, on_wait=waited_for.append)

    assert waited_for == [silent]
