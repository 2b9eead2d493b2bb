"""Waiting for services to become healthy."""

from __future__ import annotations

import socket

import httpx
import pytest

from gateway.hosting.health import until_healthy
from gateway.hosting.processes import NeverHealthy, Service


async def test_a_service_that_never_listens_is_named_after_the_wait() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        silent = Service("edge", (), f"http://127.0.0.1:{probe.getsockname()[1]}")

    waited_for: list[Service] = []
    async with httpx.AsyncClient(trust_env=False) as client:
        with pytest.raises(NeverHealthy, match=r"edge was not healthy within 0\.1 s"):
            await until_healthy([silent], client, within_s=0.1, on_wait=waited_for.append)

    assert waited_for == [silent]
