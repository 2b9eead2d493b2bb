"""Waits until services that were just started are healthy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

import httpx

from gateway.hosting.processes import NeverHealthy, Service

POLL_S: Final = 0.25


async def until_healthy(
    services: Iterable[Service],
    client: httpx.AsyncClient,
    within_s: float,
    on_wait: Callable[[Service], object] = lambda _: None,
) -> None:
    """Wait until each service's /health answers 200; raise NeverHealthy after `within_s`.

    on_wait: called with each service before it is waited for.
    """
    deadline = asyncio.get_running_loop().time() + within_s
    for service in services:
        on_wait(service)
        try:
            async with asyncio.timeout_at(deadline):
                await _until_healthy(service, client)
        except TimeoutError:
            raise NeverHealthy(service.name, within_s) from None


async def _until_healthy(service: Service, client: httpx.AsyncClient) -> None:
    while True:
        try:
            if (await client.get(f"{service.url}/health")).status_code == 200:
                return
        except httpx.TransportError:
            pass  # it does not listen yet
        await asyncio.sleep(POLL_S)
