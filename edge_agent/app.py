"""Puts the edge together: draft model, link and engine, under the gateway's OpenAI API.

/ready answers 200 while a verifier is ready and else 503 with the reason, because the edge
cannot generate without one. The edge stays up, and serves again when a verifier does;
therefore /health answers 200 all the while.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from edge_agent.draft_model import loading
from edge_agent.draft_model.drafter import Drafter
from edge_agent.draft_model.foreign.translation import Translation
from edge_agent.draft_model.loading import MakeDrafter
from edge_agent.engine import EdgeEngine, Speculation
from edge_agent.link.connection import Connection
from edge_agent.link.uplink import Uplink
from edge_agent.link.verifiers import Verifiers
from edge_agent.metrics import EdgeMetrics
from edge_agent.settings import EdgeSettings
from edge_agent.target_tokenizer import TargetTokenizer
from gateway.app import create_app
from gateway.drain import Drain
from gateway.errors import ApiError
from gateway.hosting.listening import hosts_of
from gateway.hosting.tracing import open_tracing
from models.store import Store
from models.tokenizing.tokenizer_cache import TokenizerCache
from speculation.drafting.policy import DraftPolicy


def build(
    settings: EdgeSettings,
    store: Store,
    drain: Drain,
    policy: DraftPolicy | None = None,
    make_drafter: MakeDrafter = loading.make_drafter,
) -> FastAPI:
    """Return the ASGI app with its draft model loaded; its lifespan frees everything.

    drain: counts the answers, and refuses new ones once it has begun.

    Raises models.errors.ModelError, OSError.
    """
    tracing = open_tracing("picospec-edge", settings)
    registry = CollectorRegistry()
    metrics = EdgeMetrics(registry)
    model = loading.open_model(settings, store)
    drafter = make_drafter(model, settings)
    verifiers = open_verifiers(settings, metrics)
    speculation = Speculation(
        settings.judge,
        settings.fill,
        settings.draft_settings,
        settings.lookup,
        settings.grammars,
        policy,
    )
    vocabulary = None if model is None else model.vocabulary
    translate = None if model is None else partial(Translation, draft=model)
    cache = TokenizerCache(store.root / "tokenizers")
    tokenizer = TargetTokenizer(verifiers, cache, vocabulary, translate)
    engine = EdgeEngine(verifiers, drafter, speculation, metrics, tokenizer, vocabulary)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        tasks = [
            asyncio.create_task(metrics.watch_lag(time.monotonic)),
            asyncio.create_task(tokenizer.introduce()),
            asyncio.create_task(verifiers.watch()),
            asyncio.create_task(drafter.watch()),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await engine.close()
            await verifiers.close()
            if await asyncio.to_thread(drafter.close) and model is not None:
                model.close()
            await asyncio.to_thread(tracing.close)

    app = create_app(
        engine,
        tokenizer,
        settings,
        registry=registry,
        lifespan=lifespan,
        drain=drain,
        hosts=hosts_of(settings),
        tracing=tracing,
    )
    health = partial(_health, verifiers, drafter, drain)
    ready = partial(_ready, engine, verifiers, tokenizer, drain)
    for path, answer in (("/health", health), ("/ready", ready)):
        app.router.routes.insert(0, Route(path, answer))
    return app


def open_verifiers(settings: EdgeSettings, metrics: EdgeMetrics) -> Verifiers:
    """Return the verifiers, with connections made at their first use. Raises OSError."""
    authority = settings.verifier_ca.read_bytes() if settings.verifier_ca else None
    certificate = None
    if settings.client_certificate and settings.client_key:
        certificate = settings.client_certificate.read_bytes(), settings.client_key.read_bytes()
    connections = [
        Connection(
            str(url).rstrip("/"),
            key=settings.key_for(url),
            ca_certificate=authority,
            certificate=certificate,
        )
        for url in settings.verifiers
    ]
    uplinks = [Uplink(connection, metrics) for connection in connections]
    return Verifiers(uplinks, metrics, settings.failover_deadline_s)


async def _health(
    verifiers: Verifiers, drafter: Drafter, drain: Drain, _: Request
) -> JSONResponse:
    state = "draining" if drain.begun else "ready" if verifiers.ready else "unavailable"
    drafts = {"draft_model": "stuck" if drafter.stuck else "ok"}
    return JSONResponse({"status": "ok", "state": state, **drafts, **verifiers.report()})


async def _ready(
    engine: EdgeEngine,
    verifiers: Verifiers,
    tokenizer: TargetTokenizer,
    drain: Drain,
    _: Request,
) -> JSONResponse:
    drain.check()
    try:
        await verifiers.check()
        facts = await engine.facts()
        await tokenizer()
    except ApiError as error:
        body = {"status": "unavailable", **verifiers.report(), **error.body()}
        return JSONResponse(body, 503)
    ok = {"status": "ok", **verifiers.report(), "model": facts.model}
    return JSONResponse({**ok, "vocabularies": tokenizer.relation})
