"""Puts the verifier together: one target, its sessions, and the routes over them."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from gateway.app import create_app
from gateway.metrics import Metrics
from verifier.metrics import PassMetrics, SessionMetrics
from verifier.plain_engine import PlainEngine
from verifier.routes import Routes
from verifier.sessions.registry import Sessions
from verifier.settings import VerifierSettings
from verifier.stopping import ended_by_sigterm
from verifier.target import Target
from verifier.target_host import Host


def build(settings: VerifierSettings, make: Callable[[PassMetrics], Target]) -> FastAPI:
    """Return the ASGI app; its lifespan starts and stops the target that `make` returns."""
    registry = CollectorRegistry()
    gateway = Metrics(registry)
    host = Host(make(PassMetrics(registry, gateway)), give_up=_give_up)
    sessions = Sessions(host, settings.sessions, SessionMetrics(registry))

    async def end() -> None:
        await sessions.end_all()
        await host.stop()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        async with host.running(), sessions.running(), ended_by_sigterm(end):
            yield

    app = create_app(
        PlainEngine(host),
        host.tokenizer,
        settings,
        registry=registry,
        metrics=gateway,
        lifespan=lifespan,
    )
    Routes(host, sessions).add_to(app)
    return app


def _give_up() -> None:
    """End this process, which has nothing to serve; the one that started it reports it."""
    os.kill(os.getpid(), signal.SIGTERM)
