"""Puts the edge together: draft model, link and engine, under the gateway's OpenAI API.

/ready answers 200 while a verifier is ready, or while the fallback would answer, and else 503
with the reason. The edge stays up, and serves again when a verifier does; therefore /health
answers 200 all the while.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from picospec.edge_agent.draft_model import loading
from picospec.edge_agent.draft_model.drafter import Drafter
from picospec.edge_agent.draft_model.foreign.translation import Translation
from picospec.edge_agent.draft_model.loading import MakeDrafter
from picospec.edge_agent.draft_model.target_tokenizer import TargetTokenizer
from picospec.edge_agent.engine import EdgeEngine
from picospec.edge_agent.fallback import DraftFallback, open_engine
from picospec.edge_agent.link.connection import connections
from picospec.edge_agent.link.uplink import Uplink
from picospec.edge_agent.link.verifiers import Verifiers
from picospec.edge_agent.metrics import EdgeMetrics
from picospec.edge_agent.relay.relay import open_relay
from picospec.edge_agent.settings import EdgeSettings
from picospec.gateway.accounts.access import HEALTH_PATHS, Access
from picospec.gateway.app import create_app
from picospec.gateway.drain import Drain
from picospec.gateway.errors import ApiError, Unavailable
from picospec.gateway.hosting.listening import hosts_of
from picospec.gateway.tracing import open_tracing
from picospec.models.store import Store
from picospec.models.tokenizing.tokenizer_cache import TokenizerCache
from picospec.speculation.drafting.policy import DraftPolicy
from picospec.speculation.protocol.messages import PROTOCOL_VERSION

NOT_READY: Final = "no verifier can be used; /status says why"
"""Clients get this in place of errors that name a verifier's address."""


def build(
    settings: EdgeSettings,
    store: Store,
    drain: Drain,
    policy: DraftPolicy | None = None,
    make_drafter: MakeDrafter = loading.make_drafter,
) -> FastAPI:
    """Return the ASGI app with its draft model loaded; its lifespan frees everything.

    drain: counts the answers, and rejects new ones once it has begun.

    Raises models.errors.ModelError, OSError.
    """
    tracing = open_tracing("picospec-edge", wanted=settings.tracing)
    registry = CollectorRegistry()
    metrics = EdgeMetrics(registry)
    model = loading.open_model(settings, store)
    if model is not None:  # once: memory is scarcer after the first time
        slot_tokens = loading.length_of(model, settings).tokens
        settings = settings.model_copy(update={"context_tokens": slot_tokens})
    drafter = make_drafter(model, settings)
    metrics.read_tokens.set_function(lambda: drafter.read_tokens)
    verifiers = open_verifiers(settings, metrics)
    relay = open_relay(settings, verifiers)
    vocabulary = None if model is None else model.vocabulary
    translate = None if model is None else partial(Translation, draft=model)
    cache = TokenizerCache(store.root / "tokenizers")
    tokenizer = TargetTokenizer(verifiers, cache, vocabulary, translate)
    draft = None if model is None else store.find(settings.draft_model, "draft")
    engine = EdgeEngine(verifiers, drafter, settings, metrics, tokenizer, vocabulary, policy)
    fallback = None
    if settings.fallback == "draft" and settings.context_tokens and draft is not None:
        alone = open_engine(draft, drafter, settings.context_tokens)
        fallback = DraftFallback(alone, verifiers, tokenizer, metrics)

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
            if fallback is not None:
                await fallback.engine.close()
            await verifiers.close()
            if await asyncio.to_thread(drafter.close) and model is not None:
                model.close()
            await asyncio.to_thread(tracing.close)

    app = create_app(
        engine,
        tokenizer,
        settings,
        Access(
            hosts=hosts_of(settings), body_limit_bytes=relay.body_limit_bytes, tracing=tracing
        ),
        registry=registry,
        lifespan=lifespan,
        drain=drain,
        fallback=fallback,
        relay=relay,
        routes=list(relay.routes()),
        about=partial(
            _about, settings, verifiers, tokenizer, draft.name if draft else None, registry
        ),
    )
    health = partial(_health, verifiers, drafter, drain)
    ready = partial(_ready, engine, verifiers, tokenizer, fallback, drain)
    answers = {**dict.fromkeys(HEALTH_PATHS, health), "/ready": ready}
    for path, answer in answers.items():
        app.router.routes.insert(0, Route(path, answer))
    pool = Route("/v1/picospec/pool", partial(_forget, engine), methods=["DELETE"])
    app.router.routes.insert(0, pool)
    app.router.routes.extend(relay.no_routes())
    return app


def open_verifiers(settings: EdgeSettings, metrics: EdgeMetrics) -> Verifiers:
    """Return the verifiers, with connections made at their first use. Raises OSError."""
    made = connections(settings)
    uplinks = [Uplink(each, metrics, number) for number, each in enumerate(made)]
    return Verifiers(uplinks, metrics, settings.failover_deadline_s)


async def _health(
    verifiers: Verifiers, drafter: Drafter, drain: Drain, _: Request
) -> JSONResponse:
    state = "draining" if drain.begun else "ready" if verifiers.ready else "unavailable"
    drafts = {"draft_model": "stuck" if drafter.stuck else "ok"}
    return JSONResponse({"status": "ok", "state": state, **drafts, **verifiers.report()})


async def _about(
    settings: EdgeSettings,
    verifiers: Verifiers,
    tokenizer: TargetTokenizer,
    draft: str | None,
    registry: CollectorRegistry,
) -> dict[str, object]:
    """Return what /status says of the edge alone. draft: the draft model's name, if any."""

    def sessions(number: int) -> int:
        name, labels = "picospec:edge_verifier_sessions", {"verifier": str(number)}
        return int(registry.get_sample_value(name, labels) or 0)

    found = await verifiers.statuses()
    known = {"model": draft, "vocabularies": tokenizer.relation, "slots": settings.slots}
    return {
        "service": "edge",
        "protocol": PROTOCOL_VERSION,
        "judge": settings.judge,
        "fill": settings.fill,
        "lookup": settings.lookup,
        "verifier_drafts": settings.verifier_drafts,
        "fallback": settings.fallback,
        "draft": draft and known,
        "verifiers": [{**each, "sessions": sessions(i)} for i, each in enumerate(found)],
    }


async def _forget(engine: EdgeEngine, request: Request) -> Response:
    engine.forget(request.state.account.tenant)
    return Response(status_code=204)


async def _ready(
    engine: EdgeEngine,
    verifiers: Verifiers,
    tokenizer: TargetTokenizer,
    fallback: DraftFallback | None,
    drain: Drain,
    _: Request,
) -> JSONResponse:
    drain.check()
    try:
        await verifiers.check()
        facts = await engine.facts()
        await tokenizer(facts.vocabulary)
    except ApiError as error:
        if fallback is not None and isinstance(error, Unavailable):
            body = {"status": "ok", "fallback": fallback.name, **verifiers.report()}
            return JSONResponse(body)
        shown = error.body()["error"] | {"message": NOT_READY}
        body = {"status": "unavailable", **verifiers.report(), "error": shown}
        return JSONResponse(body, 503)
    ok = {"status": "ok", **verifiers.report(), "model": facts.model}
    return JSONResponse({**ok, "vocabularies": tokenizer.relation})
