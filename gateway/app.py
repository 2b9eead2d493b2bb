"""Builds the OpenAI API as an ASGI app: `create_app`."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Lifespan

from gateway.access import PAGE_PATHS, Access
from gateway.documents import Route, documents
from gateway.drain import Drain
from gateway.endpoints.services import About, Models, ProxyPort, Services
from gateway.errors import OPENAI, InvalidRequest, NotFound
from gateway.hosting.settings import GatewaySettings
from gateway.http import json_response
from gateway.metrics import Metrics
from gateway.middleware import RequestContexts, ShapeOf
from gateway.output.output_format import OutputFormats
from gateway.page_files import FILES, root
from gateway.ports import SEEDS
from gateway.request_context import context_of
from gateway.routes import ROUTES, shape_of
from gateway.tenant_limits import TenantMetrics
from gateway.tenants import Tenants


def create_app(
    models: Models,
    settings: GatewaySettings,
    access: Access | None = None,
    *,
    registry: CollectorRegistry | None = None,
    metrics: Metrics | None = None,
    lifespan: Lifespan[FastAPI] | None = None,
    drain: Drain | None = None,
    draw_seed: Callable[[], int] = lambda: secrets.randbelow(SEEDS),
    routes: Sequence[Route] = (),
    about: About | None = None,
    proxy: ProxyPort | None = None,
) -> FastAPI:
    """Return the OpenAI API of these models; of one engine, see `one_model`.

    The caller may add routes: `RequestContexts` applies to them too. /metrics shows `registry`,
    or a registry of the app's own if it is None; `metrics`, if given, must be registered there
    already. `draw_seed` returns the seed of a request that names none.

    drain: counts the answers, and rejects new ones once it has begun. routes: only this
    service has these routes. about: returns what only this service reports in /status.

    proxy: lets another service answer.

    Raises gateway.keys.InvalidKeys.
    """
    access, registry = access or Access(), registry or CollectorRegistry()
    metrics = metrics or Metrics(registry)
    tenants = Tenants(
        settings.key_digests, settings.keys_file, settings.key_limits, TenantMetrics(registry)
    )
    app = FastAPI(
        title="PicoSpec",
        lifespan=lifespan,
        openapi_url=None,  # FastAPI's pages load scripts from elsewhere
        middleware=with_request_contexts(settings, tenants, metrics, access, shape_of),
        exception_handlers=HANDLERS,
    )
    services = Services(
        models=models,
        drain=drain or Drain(),
        registry=registry,
        settings=settings,
        output_formats=OutputFormats(settings.tool_format),
        draw_seed=draw_seed,
        started=int(time.time()),
        proxy=proxy,
        about=about,
    )
    documented = (*ROUTES, *routes)
    for route in (*documented, *documents(documented), Route("GET", "/", "The page", root)):
        app.add_route(route.path, partial(route.handler, services), methods=[route.method])
    app.mount(PAGE_PATHS, FILES)
    return app


def with_request_contexts(
    settings: GatewaySettings,
    tenants: Tenants,
    metrics: Metrics,
    access: Access,
    shape_of: ShapeOf = lambda *_: OPENAI,
) -> list[Middleware]:
    """Return the middleware of every route; see `create_app`. An app with this middleware needs
    HANDLERS too."""
    request_contexts = Middleware(RequestContexts, settings, tenants, metrics, access, shape_of)
    return [*_cors(settings), request_contexts]


def _cors(settings: GatewaySettings) -> list[Middleware]:
    """Return the CORS middleware, which is outermost so that other origins can read errors."""
    if not settings.cors_origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=[
                "x-request-id",
                "x-picospec-ignored",
                "x-picospec-fallback",
                "x-picospec-relayed",
                "x-picospec-relayed-for",
                "retry-after",
            ],
        )
    ]


async def _http_exception(request: Request, error: HTTPException) -> Response:
    """Translate Starlette's own errors: an unknown path, or a method that a path lacks."""
    if error.status_code == NotFound.status:
        raise NotFound(f"there is no {request.url.path}")
    invalid = InvalidRequest(error.detail, code="invalid_request")
    context = context_of(request)
    shown = context.shape.body(context.failed(invalid))
    return json_response(shown, error.status_code, error.headers)


HANDLERS: Final[dict[Any, Any]] = {HTTPException: _http_exception}
"""These handlers replace the answers that Starlette itself would give."""
