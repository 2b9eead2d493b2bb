"""Joins a target, its sessions and the routes over them, for whichever server runs them."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Literal

from prometheus_client import CollectorRegistry

from picospec.gateway.drain import Drain
from picospec.gateway.hosting.stopping import end_within, stopped_by_signals
from picospec.gateway.tracing import Tracing, open_tracing
from picospec.verifier.metrics import VerifierMetrics
from picospec.verifier.routes import Routes
from picospec.verifier.sessions.registry import Sessions
from picospec.verifier.settings import PASS_TIMEOUT_S, VerifierSettings
from picospec.verifier.target import Target
from picospec.verifier.target_host import Host


class Verifier:
    """Runs the service. make: returns a target, not started. tracing: None: by the settings.
    device: the target's."""

    def __init__(
        self,
        settings: VerifierSettings,
        make: Callable[[VerifierMetrics], Target],
        drain: Drain,
        tracing: Tracing | None = None,
        *,
        device: Literal["cpu", "gpu"] = "cpu",
    ) -> None:
        self.settings = settings
        self.drain = drain
        self.registry = CollectorRegistry()
        counted = VerifierMetrics(self.registry)
        self.metrics = counted.gateway
        self.host = Host(
            make(counted),
            drain,
            settings.load_timeout_s,
            settings.pass_timeout_s or PASS_TIMEOUT_S[device],
        )
        self.sessions = Sessions(self.host, settings.sessions, counted)
        self.routes = Routes(self.host, self.sessions).all()
        self.tracing = tracing or open_tracing("picospec-verifier", wanted=settings.tracing)

    @asynccontextmanager
    async def running(
        self,
        end: Callable[[], None],
        *,
        at_once: signal.Signals,
        second_is_at_once: bool,
    ) -> AsyncGenerator[None]:
        """Serve sessions. After a signal drain, end the remaining sessions, stop the target,
        and call `end`, which ends the server."""
        settings = self.settings

        async def close() -> None:
            end_within(settings.stop_timeout_s)
            await self.sessions.end_all()
            await self.host.stop()
            end()

        stopping = stopped_by_signals(
            self.drain,
            settings.drain_timeout_s,
            close,
            at_once=at_once,
            second_is_at_once=second_is_at_once,
        )
        async with self.host.running():
            try:
                async with stopping:
                    yield
            finally:
                await self.sessions.end_all()
        await asyncio.to_thread(self.tracing.close)
