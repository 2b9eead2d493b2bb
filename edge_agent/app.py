"""Puts the edge together: draft model, link and engine behind the gateway's OpenAI API.

/ready answers 200 while a verifier is ready or the fallback would answer, else 503 with the
reason. The edge stays up meanwhile and serves again when a verifier does, so /health always
answers 200.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from picospec.edge_agent.draft import loading
from picospec.edge_agent.draft.drafter import Drafter
from picospec.edge_agent.draft.loading import MakeDrafter, TargetTokenizer
from picospec.edge_agent.engine import EdgeEngine
from picospec.edge_agent.fallback import DraftFallback, open_engine
from picospec.edge_agent.link.connection import Connector
from picospec.edge_agent.link.names import Name
from picospec.edge_agent.link.verifier import Verifier
from picospec.edge_agent.link.verifiers import Verifiers
from picospec.edge_agent.metrics import EdgeMetrics
from picospec.edge_agent.relay import open_relay
from picospec.edge_agent.settings import DNS, EdgeSettings
from picospec.gateway.accounts import account_of
from picospec.gateway.app import create_app
from picospec.gateway.drain import Drain, kept_going
from picospec.gateway.errors import ApiError, Unavailable
from picospec.gateway.hosting.settings import hosts_of
from picospec.gateway.middleware import HEALTH_PATHS, Access
from picospec.gateway.tracing import open_tracing
from picospec.models.store import Store
from picospec.models.tokenizer_file import TokenizerCache
from picospec.speculation.drafting import DraftPolicy
from picospec.speculation.messages import POOL, PROTOCOL_VERSION

NOT_READY: Final = "no verifier can be used; /status says why"
"""Clients get this message instead of errors that name a verifier's address."""


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
    if model is not None:  # only once: afterwards less memory is free
        slot_tokens = loading.length_of(model, settings).tokens
        settings = settings.model_copy(update={"context_tokens": slot_tokens})
    drafter = make_drafter(model, settings)
    metrics.read_tokens.set_function(lambda: drafter.read_tokens)
    verifiers = open_verifiers(settings, metrics)
    relay = open_relay(settings, verifiers)
    vocabulary = None if model is None else model.vocabulary
    tokenizer = TargetTokenizer(verifiers, TokenizerCache(store.root / "tokenizers"), model)
    draft = None if model is None else store.find(settings.draft_model, "draft")
    engine = EdgeEngine(verifiers, drafter, settings, metrics, tokenizer, vocabulary, policy)
    fallback = None
    if settings.fallback == "draft" and settings.context_tokens and draft is not None:
        alone = open_engine(draft, drafter, settings.context_tokens)
        fallback = DraftFallback(alone, verifiers, tokenizer, metrics)

    async def introduce() -> None:
        await tokenizer.introduce()
        with suppress(ApiError):  # another verifier is in use by now
            await engine.prepare()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        tasks = [
            asyncio.create_task(kept_going(work))
            for work in (
                partial(metrics.watch_lag, time.monotonic),
                introduce,
                verifiers.watch,
                drafter.watch,
            )
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

    name = draft.name if draft else None
    edge = _Edge(settings, verifiers, drafter, tokenizer, engine, fallback, drain, name)
    access = Access(
        hosts=hosts_of(settings), body_limit_bytes=relay.body_limit_bytes, tracing=tracing
    )
    app = create_app(
        engine,
        tokenizer,
        settings,
        access,
        registry=registry,
        lifespan=lifespan,
        drain=drain,
        fallback=fallback,
        relay=relay,
        routes=list(relay.routes()),
        about=edge.about,
    )
    for path in HEALTH_PATHS:
        app.router.routes.insert(0, Route(path, edge.health))
    app.router.routes.insert(0, Route("/ready", edge.ready))
    pool = Route(POOL, edge.forget, methods=["DELETE"])
    app.router.routes.insert(0, pool)
    app.router.routes.extend(relay.no_routes())
    return app


def open_verifiers(settings: EdgeSettings, metrics: EdgeMetrics) -> Verifiers:
    """Return the verifiers. Their connections are made at first use. Raises OSError."""
    connect = Connector(settings)

    def make(url: str, name: Name | None = None, address: str = "") -> Verifier:
        apart = connect(url, address, prior_knowledge=False)
        lost = name.look if name else lambda: None
        return Verifier(connect(url, address), metrics, apart, lost)

    urls = [str(url).rstrip("/") for url in settings.verifiers]
    fixed = [make(url) for url in urls if not url.startswith(DNS)]
    behind = [url.removeprefix(DNS) for url in urls if url.startswith(DNS)]
    names = [Name(url, partial(make, url)) for url in behind]
    return Verifiers(fixed, metrics, settings.failover_deadline_s, names)


@dataclass(frozen=True, slots=True)
class _Edge:
    """The routes on which the edge reports its state. draft: the draft model's name, if any."""

    settings: EdgeSettings
    verifiers: Verifiers
    drafter: Drafter
    tokenizer: TargetTokenizer
    engine: EdgeEngine
    fallback: DraftFallback | None
    drain: Drain
    draft: str | None

    async def health(self, _: Request) -> JSONResponse:
        ready = "ready" if self.verifiers.is_ready else "unavailable"
        state = "draining" if self.drain.begun else ready
        drafts = {"draft_model": "stuck" if self.drafter.is_stuck else "ok"}
        body = {"status": "ok", "state": state, **drafts, **self.verifiers.report()}
        return JSONResponse(body)

    async def about(self) -> dict[str, object]:
        """Return the part of /status that describes the edge."""

        settings = self.settings
        vocabularies, slots = self.tokenizer.relation, settings.slots
        known = {"model": self.draft, "vocabularies": vocabularies, "slots": slots}
        return {
            "service": "edge",
            "protocol": PROTOCOL_VERSION,
            "judge": settings.judge,
            "fill": settings.fill,
            "lookup": settings.lookup,
            "verifier_drafts": settings.verifier_drafts,
            "fallback": settings.fallback,
            "draft": self.draft and known,
            "verifiers": await self.verifiers.statuses(),
        }

    async def forget(self, request: Request) -> Response:
        await self.engine.forget(account_of(request).tenant)
        return Response(status_code=204)

    async def ready(self, _: Request) -> JSONResponse:
        self.drain.check()
        try:
            await self.verifiers.check()
            facts = await self.engine.facts()
            await self.tokenizer(facts.vocabulary)
        except ApiError as error:
            known = self.verifiers.report()
            if self.fallback is not None and isinstance(error, Unavailable):
                return JSONResponse({"status": "ok", "fallback": self.fallback.name, **known})
            shown = error.body()["error"] | {"message": NOT_READY}
            return JSONResponse({"status": "unavailable", **known, "error": shown}, 503)
        found = {"model": facts.model, "vocabularies": self.tokenizer.relation}
        return JSONResponse({"status": "ok", **self.verifiers.report(), **found})
