"""Puts the edge together: draft model, link and engine behind the gateway's OpenAI API.

/ready answers 200 while a verifier is ready or the fallback would answer, else 503 with the
reason. The edge stays up meanwhile and serves again when a verifier does, so /health always
answers 200.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Final

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edge_agent.draft import loading
from edge_agent.draft.late import Drafts, LateDrafter
from edge_agent.draft.loading import FirstDraft
from edge_agent.link.connection import Connector
from edge_agent.link.names import Name
from edge_agent.link.verifier import Verifier
from edge_agent.link.verifiers import Verifiers
from edge_agent.metrics import EdgeMetrics
from edge_agent.proxy import open_proxy, open_server
from edge_agent.served import Maker, ServedModel, ServedModels
from edge_agent.settings import DNS, EdgeSettings
from gateway.access import HEALTH_PATHS, Access
from gateway.app import create_app
from gateway.background_work import kept_going, start
from gateway.drain import Drain
from gateway.endpoints.services import MODELS, Services
from gateway.errors import ApiError, Unavailable
from gateway.hosting.strangers import hosts_of
from gateway.request_context import context_of
from gateway.tracing import open_tracing
from local_models.store import Store
from speculation.model_facts import PROTOCOL_VERSION
from speculation.request_names import ANSWER_CACHE

NOT_READY: Final = "no verifier can be used; /status says why"
"""Clients get this message instead of errors that name a verifier's address."""


def build(
    settings: EdgeSettings, store: Store, drain: Drain, first: FirstDraft | None = None
) -> FastAPI:
    """Return the ASGI app with its first draft model loaded; its lifespan frees everything.

    drain: counts the answers, and rejects new ones once it has begun. first: None means the
    draft model that the settings name, if they do.

    Raises local_models.errors.ModelError, OSError.
    """
    tracing = open_tracing("picospec-edge", wanted=settings.tracing)
    registry = CollectorRegistry()
    metrics = EdgeMetrics(registry)
    first = loading.named_draft(settings) if first is None else first
    drafts = Drafts(settings, store)
    if first.name is not None:
        drafts.open(first.name)
    metrics.read_tokens.set_function(lambda: drafts.read_tokens)
    verifiers = open_verifiers(settings, metrics)
    server = open_server(settings)
    make = Maker(settings, store, drafts, metrics, first, server)
    models = ServedModels(verifiers, settings, make, first.target)
    proxy = open_proxy(settings, models.verifiers_of, server)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        models.start()
        drafts.start()
        tasks = [
            start(kept_going(work))
            for work in (partial(metrics.watch_lag, time.monotonic), verifiers.watch)
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await models.close()
            await verifiers.close()
            await drafts.close()
            await asyncio.to_thread(tracing.close)

    edge = _Edge(settings, models, drafts, drain)
    access = Access(
        hosts=hosts_of(settings), body_limit_bytes=proxy.body_limit_bytes, tracing=tracing
    )
    app = create_app(
        Services(models, settings, edge.about, proxy, drain, registry),
        access,
        lifespan=lifespan,
        routes=list(proxy.routes()),
    )
    for path in HEALTH_PATHS:
        app.router.routes.insert(0, Route(path, edge.health))
    app.router.routes.insert(0, Route("/ready", edge.ready))
    answer_cache = Route(ANSWER_CACHE, edge.forget, methods=["DELETE"])
    app.router.routes.insert(0, answer_cache)
    return app


def open_verifiers(settings: EdgeSettings, metrics: EdgeMetrics) -> Verifiers:
    """Return all verifiers. Their connections are made at first use. Raises OSError."""
    fixed, names = list[Verifier](), list[Name]()
    verifiers: Verifiers
    places = [(settings.verifiers, settings.shown_key, "")]
    for model in settings.models:
        file = model.verifier_key_file
        key = file.read_text("utf-8").strip() if file else settings.shown_key
        places.append((model.verifier_urls, key, model.name))
    for urls, key, of in places:
        connect = Connector(settings, key)
        make = _VerifierMaker(connect, metrics, lambda: verifiers.changed(), of)
        for url in (str(each).rstrip("/") for each in urls):
            if url.startswith(DNS):
                plain = url.removeprefix(DNS)
                names.append(Name(plain, partial(make, plain)))
            else:
                fixed.append(make(url))
    verifiers = Verifiers(fixed, metrics, settings.failover_deadline_s, names)
    return verifiers


@dataclass(frozen=True, slots=True)
class _VerifierMaker:
    """Makes the verifiers of one model, to which the edge shows one key."""

    connect: Connector
    metrics: EdgeMetrics
    learned: Callable[[], None]
    """Called when the facts of one are known anew."""

    model: str

    def __call__(self, url: str, name: Name | None = None, address: str = "") -> Verifier:
        proxy_connection = self.connect(url, address, prior_knowledge=False)
        lost = name.look if name else lambda: None
        own = self.connect(url, address)
        return Verifier(own, self.metrics, proxy_connection, lost, self.learned, self.model)


@dataclass(frozen=True, slots=True)
class _Edge:
    """The routes on which the edge reports its state."""

    settings: EdgeSettings
    models: ServedModels
    drafts: Drafts
    drain: Drain

    async def health(self, _: Request) -> JSONResponse:
        models = self.models
        ready = "ready" if any(m.verifiers.is_ready for m in models.all) else "unavailable"
        state = "draining" if self.drain.begun else ready
        drafts = {"draft_model": "stuck" if self.drafts.is_stuck else "ok"}
        return JSONResponse({"status": "ok", "state": state, **drafts, **models.report()})

    async def about(self) -> dict[str, object]:
        """Return the part of /status that describes the edge. `draft` is the first model's."""
        settings, first = self.settings, self.models.first
        vocabularies, slots = first.tokenizer.relation, settings.slots
        draft = first.drafter.model if isinstance(first.drafter, LateDrafter) else None
        known = {"model": draft, "vocabularies": vocabularies, "slots": slots}
        return {
            "service": "edge",
            "protocol": PROTOCOL_VERSION,
            "judge": settings.judge,
            "fill": settings.fill,
            "lookup": settings.lookup,
            "ngram_drafts": settings.ngram_drafts,
            "fallback": settings.fallback,
            "fallback_server": settings.fallback_server.model_dump(mode="json"),
            "draft": draft and known,
            **await self.models.about(),
        }

    async def forget(self, request: Request) -> Response:
        owner = context_of(request).tenant
        await asyncio.gather(*(model.engine.forget(owner) for model in self.models.all))
        return Response(status_code=204)

    async def ready(self, _: Request) -> JSONResponse:
        """Answer 200 if any model can be used, or if a fallback would answer for it."""
        self.drain.check()
        models = sorted(self.models.all, key=lambda model: not model.may_answer)
        answer = await self._ready(models[0])
        for model in models[1:]:
            if answer.status_code == HTTPStatus.OK:
                break
            answer = await self._ready(model)
        return answer

    async def _ready(self, model: ServedModel) -> JSONResponse:
        try:
            await model.verifiers.check()
            facts = await model.engine.facts()
            await model.tokenizer(facts.vocabulary)
        except ApiError as error:
            known = self.models.report()
            for each in model.fallbacks if isinstance(error, Unavailable) else ():
                if await each.can_answer(MODELS):
                    return JSONResponse({"status": "ok", "fallback": each.name, **known})
            shown = error.body()["error"] | {"message": NOT_READY}
            return JSONResponse({"status": "unavailable", **known, "error": shown}, 503)
        status = {"model": facts.model, "vocabularies": model.tokenizer.relation}
        return JSONResponse({"status": "ok", **self.models.report(), **status})
