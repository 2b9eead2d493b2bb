"""Waits until services that were just started are ready."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress

import httpx

from gateway.hosting.processes import NeverReady, Service


async def until_ready(
    services: Iterable[Service],
    client: httpx.AsyncClient,
    within_s: float,
    on_wait: Callable[[Service], object] = lambda _: None,
) -> None:
    """Wait until each service's `ready_path` answers 200. Raises NeverReady after `within_s`.

    on_wait: called with each service before waiting for it.
    """
    deadline = asyncio.get_running_loop().time() + within_s
    for service in services:
        on_wait(service)
        try:
            async with asyncio.timeout_at(deadline):
                await _until_ready(service, client)
        except TimeoutError:
            raise NeverReady(service.name, within_s) from None


async def _until_ready(service: Service, client: httpx.AsyncClient) -> None:
    while True:
        with suppress(httpx.TransportError):  # the service does not listen yet
            if (await client.get(f"{service.url}{service.ready_path}")).status_code == 200:
                return
        await asyncio.sleep(0.25)
