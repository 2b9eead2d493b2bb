"""Puts the face together: `create_app`."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Lifespan

from gateway.account import Clock
from gateway.errors import ApiError, InvalidRequest, NotFound
from gateway.face import Face
from gateway.metrics import Metrics
from gateway.middleware import Accounts, BodyLimit, Keys
from gateway.planning import SEEDS
from gateway.ports import Engine, TokenizerSource
from gateway.replies import error_response, json_response
from gateway.settings import GatewaySettings


def draw_seed() -> int:
    """Return a seed for a request that names none."""
    return secrets.randbelow(SEEDS)


def create_app(
    engine: Engine,
    tokenizer: TokenizerSource,
    settings: GatewaySettings,
    *,
    registry: CollectorRegistry | None = None,
    metrics: Metrics | None = None,
    lifespan: Lifespan[FastAPI] | None = None,
    clock: Clock = time.monotonic,
    draw_seed: Callable[[], int] = draw_seed,
) -> FastAPI:
    """Return the OpenAI face of `engine`.

    The caller may add routes: keys, body limit, request ids, log line and the translation of
    gateway.errors cover them too. `registry` is what /metrics shows (one of its own if None);
    `metrics`, if given, are already in it.
    """
    registry = registry or CollectorRegistry()
    app = FastAPI(
        title="PicoSpec",
        lifespan=lifespan,
        openapi_url=None,
        middleware=[
            Middleware(Accounts, metrics=metrics or Metrics(registry), clock=clock),
            Middleware(Keys, keys=settings.api_keys),
            Middleware(BodyLimit, limit_bytes=settings.body_limit_bytes),
        ],
        exception_handlers={ApiError: _api_error, HTTPException: _http_exception},
    )
    face = Face(
        engine=engine,
        tokenizer=tokenizer,
        registry=registry,
        thread=ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenizer"),
        max_choices=settings.max_choices,
        draw_seed=draw_seed,
        started=int(time.time()),
    )
    _add_routes(app, face)
    return app


def _add_routes(app: FastAPI, face: Face) -> None:
    app.add_route("/v1/chat/completions", face.chat_completions, methods=["POST"])
    app.add_route("/v1/completions", face.completions, methods=["POST"])
    app.add_route("/v1/models", face.models, methods=["GET"])
    app.add_route("/v1/models/{name:path}", face.model, methods=["GET"])
    app.add_route("/health", face.health, methods=["GET"])
    app.add_route("/metrics", face.metrics, methods=["GET"])


async def _api_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, ApiError):
        raise error
    request.state.account.error = error.error_code
    return error_response(error)


async def _http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own errors: no such path, no such method."""
    if not isinstance(error, HTTPException):
        raise error
    if error.status_code == NotFound.status:
        return await _api_error(request, NotFound(f"there is no {request.url.path}"))
    refusal = InvalidRequest(error.detail, code="invalid_request")
    request.state.account.error = refusal.error_code
    return json_response(refusal.body(), error.status_code, error.headers)
