"""Puts the edge together: draft model, link and engine, under the gateway's OpenAI API.

/health answers 200 while the verifier can be reached and else 503 with the reason, because the
edge cannot generate without it. The edge stays up, and serves again when the verifier does.
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
from edge_agent.draft_model.foreign.translation import Translation
from edge_agent.draft_model.loading import MakeDrafter
from edge_agent.engine import EdgeEngine, Speculation
from edge_agent.link.uplink import Uplink, connect
from edge_agent.metrics import EdgeMetrics
from edge_agent.settings import EdgeSettings
from edge_agent.target_tokenizer import TargetTokenizer
from gateway.app import create_app
from gateway.errors import ApiError
from models.store import Store
from models.tokenizer_cache import TokenizerCache
from speculation.drafting.policy import DraftPolicy


def build(
    settings: EdgeSettings,
    store: Store,
    policy: DraftPolicy | None = None,
    make_drafter: MakeDrafter = loading.make_drafter,
) -> FastAPI:
    """Return the ASGI app with its draft model loaded; its lifespan frees everything.

    Raises models.errors.ModelError, OSError.
    """
    registry = CollectorRegistry()
    metrics = EdgeMetrics(registry)
    model = loading.open_model(settings, store)
    drafter = make_drafter(model, settings)
    uplink = open_uplink(settings, metrics)
    speculation = Speculation(
        settings.judge, settings.fill, settings.draft_settings, settings.lookup, policy
    )
    vocabulary = None if model is None else model.vocabulary
    translate = None if model is None else partial(Translation, draft=model)
    cache = TokenizerCache(store.root / "tokenizers")
    tokenizer = TargetTokenizer(uplink, cache, vocabulary, translate)
    engine = EdgeEngine(uplink, drafter, speculation, metrics, tokenizer, vocabulary)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        tasks = [
            asyncio.create_task(metrics.watch_lag(time.monotonic)),
            asyncio.create_task(tokenizer.introduce()),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await uplink.close()
            await asyncio.to_thread(drafter.close)
            if model is not None:
                model.close()

    app = create_app(engine, tokenizer, settings, registry=registry, lifespan=lifespan)
    app.router.routes.insert(0, Route("/health", partial(_health, engine, uplink, tokenizer)))
    return app


def open_uplink(settings: EdgeSettings, metrics: EdgeMetrics) -> Uplink:
    """Return the connection to the verifier, made at its first use. Raises OSError."""
    ca_certificate = settings.verifier_ca.read_bytes() if settings.verifier_ca else None
    url = str(settings.verifier_url).rstrip("/")
    connection = connect(url, key=settings.shown_key, ca_certificate=ca_certificate)
    return Uplink(connection, metrics)


async def _health(
    engine: EdgeEngine, uplink: Uplink, tokenizer: TargetTokenizer, _: Request
) -> JSONResponse:
    try:
        facts = await engine.facts()
        await uplink.check()
        await tokenizer()
    except ApiError as error:
        body = {"status": "unavailable", "verifier": uplink.url, **error.body()}
        return JSONResponse(body, 503)
    ok = {"status": "ok", "verifier": uplink.url, "rtt_ms": round(uplink.rtt_s * 1000, 2)}
    return JSONResponse({**ok, "model": facts.model, "vocabularies": tokenizer.relation})
