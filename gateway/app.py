"""Builds the OpenAI API as an ASGI app: `create_app`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Lifespan

from gateway.access import PAGE_PATHS, Access
from gateway.documents import Route, documents
from gateway.endpoints.services import Services
from gateway.errors import OPENAI, InvalidRequest, NotFound
from gateway.hosting.settings import GatewaySettings
from gateway.http import json_response
from gateway.metrics import Metrics
from gateway.middleware import RequestContexts, ShapeOf
from gateway.page_files import FILES, root
from gateway.request_context import context_of
from gateway.routes import ROUTES, shape_of
from gateway.tenant_limits import TenantMetrics
from gateway.tenants import Tenants


def create_app(
    services: Services,
    access: Access | None = None,
    *,
    metrics: Metrics | None = None,
    lifespan: Lifespan[FastAPI] | None = None,
    routes: Sequence[Route] = (),
) -> FastAPI:
    """Return the OpenAI API of the services' models; of one engine, see `one_model`.

    The caller may add routes: `RequestContexts` applies to them too. metrics: those of the
    requests; they must be registered in the services' registry already. routes: only this
    service has these routes.

    Raises gateway.keys.InvalidKeys.
    """
    settings, registry = services.settings, services.registry
    access, metrics = access or Access(), metrics or Metrics(registry)
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
