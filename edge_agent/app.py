"""Puts the edge together: draft model, link, engine, and the OpenAI face over them.

/health answers 200 while the verifier can be reached, else 503 with the reason: without it the
edge cannot say anything. The edge itself stays up, and serves again when the verifier does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from edge_agent.draft_model.loading import TargetTokenizer, make_drafter, open_model
from edge_agent.engine import EdgeEngine, Speculation
from edge_agent.link.uplink import Uplink, connect
from edge_agent.metrics import EdgeMetrics
from edge_agent.settings import EdgeSettings
from gateway.app import create_app
from gateway.errors import ApiError
from models.store import Store
from speculation.drafting.policy import DraftPolicy


@dataclass(frozen=True, slots=True)
class Health:
    engine: EdgeEngine
    uplink: Uplink

    async def __call__(self, _: Request) -> JSONResponse:
        try:
            facts = await self.engine.facts()
            await self.uplink.check()
        except ApiError as error:
            told = {"status": "unavailable", "verifier": self.uplink.url, **error.body()}
            return JSONResponse(told, 503)
        return JSONResponse(
            {
                "status": "ok",
                "verifier": self.uplink.url,
                "rtt_ms": round(self.uplink.rtt_s * 1000, 2),
                "model": facts.model,
            }
        )


def build(settings: EdgeSettings, store: Store, policy: DraftPolicy | None = None) -> FastAPI:
    """Return the ASGI app, its draft model loaded. Raises models.errors.ModelError, OSError.

    Its lifespan frees everything.
    """
    registry = CollectorRegistry()
    metrics = EdgeMetrics(registry)
    model = open_model(settings, store)
    drafter = make_drafter(model, settings)
    ca_certificate = settings.verifier_ca.read_bytes() if settings.verifier_ca else None
    url = str(settings.verifier_url).rstrip("/")
    connection = connect(url, key=settings.shown_key, ca_certificate=ca_certificate)
    uplink = Uplink(connection, metrics)
    lookup = settings.lookup and settings.drafter != "noise"
    engine = EdgeEngine(
        uplink,
        drafter,
        Speculation(settings.judge, settings.fill, settings.draft_pacing, lookup, policy),
        metrics,
        vocabulary=model.vocabulary.fingerprint,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        watch = asyncio.create_task(metrics.watch_lag(time.monotonic))
        try:
            yield
        finally:
            watch.cancel()
            await asyncio.wait([watch])
            await uplink.close()
            await asyncio.to_thread(drafter.close)
            model.close()

    app = create_app(
        engine,
        TargetTokenizer(model, uplink.facts),
        settings.gateway,
        registry=registry,
        lifespan=lifespan,
    )
    app.router.routes.insert(0, Route("/health", Health(engine, uplink).__call__))
    return app
