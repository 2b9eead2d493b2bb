"""Puts the verifier together: one target, its sessions, and the two faces over them."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from gateway.app import create_app
from gateway.metrics import Metrics
from verifier.config import VerifierSettings
from verifier.host import Host
from verifier.metrics import PassMetrics, SessionMetrics
from verifier.plain import PlainEngine
from verifier.routes import Routes
from verifier.sessions import Sessions
from verifier.target import Target


def build(
    settings: VerifierSettings, make: Callable[[VerifierSettings, PassMetrics], Target]
) -> FastAPI:
    """Return the ASGI app; its lifespan starts and stops the target that `make` returns."""
    registry = CollectorRegistry()
    gateway = Metrics(registry)
    host = Host(make(settings, PassMetrics(registry, gateway)), give_up=_give_up)
    sessions = Sessions(host, settings.sessions, SessionMetrics(registry))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        async with host.running(), sessions.running():
            yield

    app = create_app(
        PlainEngine(host),
        host.tokenizer,
        settings.gateway,
        registry=registry,
        metrics=gateway,
        lifespan=lifespan,
    )
    Routes(host, sessions).add_to(app)
    return app


def _give_up() -> None:
    """There is nothing to serve: end this process; the one that started it reports it."""
    os.kill(os.getpid(), signal.SIGTERM)
