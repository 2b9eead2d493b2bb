"""Builds the OpenAI API as an ASGI app: `create_app`."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Lifespan

from gateway.account import Clock
from gateway.errors import InvalidRequest, NotFound
from gateway.metrics import Metrics
from gateway.middleware import Accounts
from gateway.output.style import Styles
from gateway.ports import SEEDS, Engine, TokenizerSource
from gateway.responses import json_response
from gateway.routes.chat_answer import ChatAnswer
from gateway.routes.chat_completions import ChatRequest
from gateway.routes.completions import CompletionAnswer, CompletionRequest
from gateway.routes.generation import generate
from gateway.routes.services import Services
from gateway.routes.status import health, list_models, prometheus_metrics, retrieve_model
from gateway.settings import GatewaySettings

Handler = Callable[[Services, Request], Awaitable[Response]]

_ROUTES: Final[tuple[tuple[str, str, Handler], ...]] = (
    ("POST", "/v1/chat/completions", partial(generate, ChatRequest, ChatAnswer)),
    ("POST", "/v1/completions", partial(generate, CompletionRequest, CompletionAnswer)),
    ("GET", "/v1/models", list_models),
    ("GET", "/v1/models/{name:path}", retrieve_model),
    ("GET", "/health", health),
    ("GET", "/metrics", prometheus_metrics),
)


def create_app(
    engine: Engine,
    tokenizer: TokenizerSource,
    settings: GatewaySettings,
    *,
    registry: CollectorRegistry | None = None,
    metrics: Metrics | None = None,
    lifespan: Lifespan[FastAPI] | None = None,
    clock: Clock = time.monotonic,
    draw_seed: Callable[[], int] = lambda: secrets.randbelow(SEEDS),
) -> FastAPI:
    """Return the OpenAI API of `engine`.

    The caller may add routes: `middleware.Accounts` applies to them too. /metrics shows
    `registry`, or a registry of the app's own if it is None; `metrics`, if given, must be
    registered there already. `draw_seed` returns the seed of a request that names none.
    """
    registry = registry or CollectorRegistry()
    metrics = metrics or Metrics(registry)
    app = FastAPI(
        title="PicoSpec",
        lifespan=lifespan,
        openapi_url=None,
        middleware=[Middleware(Accounts, settings=settings, metrics=metrics, clock=clock)],
        exception_handlers={HTTPException: _http_exception},
    )
    services = Services(
        engine=engine,
        tokenizer=tokenizer,
        registry=registry,
        executor=ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenizer"),
        model_aliases=frozenset(settings.model_aliases),
        styles=Styles(settings.tool_format),
        max_choices=settings.max_choices,
        draw_seed=draw_seed,
        started=int(time.time()),
    )
    for method, path, handler in _ROUTES:
        app.add_route(path, partial(handler, services), methods=[method])
    return app


async def _http_exception(request: Request, error: HTTPException) -> Response:
    """Translate Starlette's own errors: an unknown path, or a method that a path lacks."""
    if error.status_code == NotFound.status:
        raise NotFound(f"there is no {request.url.path}")
    invalid = InvalidRequest(error.detail, code="invalid_request")
    request.state.account.failed(invalid)
    return json_response(invalid.body(), error.status_code, error.headers)
