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

from picospec.gateway.accounts.access import Access
from picospec.gateway.accounts.account import Account
from picospec.gateway.accounts.middleware import Accounts, ShapeOf, openai_shape
from picospec.gateway.doors.chat import answer as chat
from picospec.gateway.doors.chat.request import ChatRequest
from picospec.gateway.doors.completions import answer as completions
from picospec.gateway.doors.completions.request import CompletionRequest
from picospec.gateway.doors.counting import count_prompt
from picospec.gateway.doors.generation import generate
from picospec.gateway.doors.messages import answer as messages
from picospec.gateway.doors.messages.request import MessagesRequest
from picospec.gateway.doors.responses import create as responses
from picospec.gateway.doors.responses import kept
from picospec.gateway.doors.responses.request import ResponsesRequest
from picospec.gateway.doors.responses.store import Shelves
from picospec.gateway.doors.services import About, Relay, Services, nothing_more
from picospec.gateway.doors.shapes import shape_of
from picospec.gateway.drain import Drain
from picospec.gateway.errors import InvalidRequest, NotFound
from picospec.gateway.hosting.settings import GatewaySettings
from picospec.gateway.http.responses import json_response
from picospec.gateway.metrics import Metrics
from picospec.gateway.output.style import Styles
from picospec.gateway.ports import SEEDS, Engine, Fallback
from picospec.gateway.routes.documents import Route, answer_version, documents
from picospec.gateway.routes.native import NATIVE_ROUTES
from picospec.gateway.routes.page import page
from picospec.gateway.routes.status import (
    health,
    list_models,
    prometheus_metrics,
    ready,
    retrieve_model,
    status,
)
from picospec.gateway.routes.tokens import (
    DetokenizeRequest,
    TokenizeRequest,
    detokenize,
    tokenize,
)
from picospec.gateway.tenants.reading import PromptReader
from picospec.gateway.tenants.tenant import TenantMetrics
from picospec.gateway.tenants.tenants import Tenants
from picospec.gateway.tokenizer import TokenizerSource

ROUTES: Final = (
    Route(
        "POST",
        "/v1/chat/completions",
        "Answer a chat",
        partial(generate, ChatRequest, chat.asked),
        ChatRequest,
    ),
    Route(
        "POST",
        "/v1/completions",
        "Go on with a text",
        partial(generate, CompletionRequest, completions.asked),
        CompletionRequest,
    ),
    Route(
        "POST",
        "/v1/messages",
        "Answer messages, as Anthropic does",
        partial(generate, MessagesRequest, messages.asked),
        MessagesRequest,
    ),
    Route(
        "POST",
        "/v1/messages/count_tokens",
        "How many tokens messages have",
        partial(count_prompt, MessagesRequest, messages.asked),
        MessagesRequest,
    ),
    Route(
        "POST",
        "/v1/responses",
        "Answer as the Responses API does",
        responses.create,
        ResponsesRequest,
    ),
    Route(
        "POST",
        "/v1/responses/input_tokens",
        "How many tokens the prompt of a response has",
        responses.count,
        ResponsesRequest,
    ),
    Route("POST", "/v1/responses/compact", "Not served: a 404", kept.compact),
    Route("GET", "/v1/responses/{name}", "A response that is kept", kept.retrieve),
    Route("DELETE", "/v1/responses/{name}", "Forget a response", kept.delete),
    Route(
        "POST",
        "/v1/responses/{name}/cancel",
        "End a response: what runs ends with its connection",
        kept.cancel,
    ),
    Route("GET", "/v1/responses/{name}/input_items", "What came before it", kept.input_items),
    Route("POST", "/tokenize", "The tokens of a text or chat", tokenize, TokenizeRequest),
    Route("POST", "/detokenize", "The text of tokens", detokenize, DetokenizeRequest),
    Route("GET", "/v1/models", "The model, by each of its names", list_models),
    Route("GET", "/v1/models/{name:path}", "The model of that name", retrieve_model),
    Route("GET", "/health", "Whether this process is alive and not broken", health),
    Route("GET", "/ready", "Whether work is taken now", ready),
    Route("GET", "/status", "What this service is, and how it is", status),
    Route("GET", "/metrics", "Metrics", prometheus_metrics, answer_type="text/plain"),
    Route("GET", "/version", "The version of this service", answer_version),
    *NATIVE_ROUTES,
)

ANY: Final = Access()


def create_app(
    engine: Engine,
    tokenizer: TokenizerSource,
    settings: GatewaySettings,
    access: Access = ANY,
    *,
    registry: CollectorRegistry | None = None,
    metrics: Metrics | None = None,
    lifespan: Lifespan[FastAPI] | None = None,
    drain: Drain | None = None,
    draw_seed: Callable[[], int] = lambda: secrets.randbelow(SEEDS),
    routes: Sequence[Route] = (),
    about: About = nothing_more,
    fallback: Fallback | None = None,
    relay: Relay | None = None,
) -> FastAPI:
    """Return the OpenAI API of `engine`.

    The caller may add routes: `Accounts` applies to them too. /metrics shows `registry`, or a
    registry of the app's own if it is None; `metrics`, if given, must be registered there
    already. `draw_seed` returns the seed of a request that names none.

    drain: counts the answers, and rejects new ones once it has begun. routes: those of
    this service alone. about: what /status says of it alone.

    fallback: answers while `engine` cannot. relay: has another service answer.

    Raises gateway.tenants.keys.InvalidKeys.
    """
    registry = registry or CollectorRegistry()
    metrics = metrics or Metrics(registry)
    tenants = Tenants(
        settings.key_digests, settings.keys_file, settings.key_limits, TenantMetrics(registry)
    )
    app = FastAPI(
        title="PicoSpec",
        lifespan=lifespan,
        openapi_url=None,  # FastAPI's pages load scripts from elsewhere
        middleware=accounted(settings, tenants, metrics, access, shape_of),
        exception_handlers=HANDLERS,
    )
    services = Services(
        engine=engine,
        tokenizer=tokenizer,
        drain=drain or Drain(),
        registry=registry,
        reader=PromptReader(),
        model_aliases=frozenset(settings.model_aliases),
        accept_any_model=settings.accept_any_model,
        styles=Styles(settings.tool_format),
        max_choices=settings.max_choices,
        keep_alive_s=settings.keep_alive_s,
        draw_seed=draw_seed,
        started=int(time.time()),
        shelves=Shelves(access.clock),
        fallback=fallback,
        relay=relay,
        about=about,
    )
    documented = (*ROUTES, *routes)
    for route in (*documented, *documents(documented), *page()):
        app.add_route(route.path, partial(route.handler, services), methods=[route.method])
    return app


def accounted(
    settings: GatewaySettings,
    tenants: Tenants,
    metrics: Metrics,
    access: Access,
    shape_of: ShapeOf = openai_shape,
) -> list[Middleware]:
    """Return what stands before every route; see `create_app`. An app that has it has HANDLERS,
    too."""
    accounts = Middleware(
        Accounts,
        settings=settings,
        tenants=tenants,
        metrics=metrics,
        access=access,
        shape_of=shape_of,
    )
    return [*_cors(settings), accounts]


def _cors(settings: GatewaySettings) -> list[Middleware]:
    """Let pages of other origins call. It is outermost, so that they can read errors, too."""
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
                "retry-after",
            ],
        )
    ]


async def _http_exception(request: Request, error: HTTPException) -> Response:
    """Translate Starlette's own errors: an unknown path, or a method that a path lacks."""
    if error.status_code == NotFound.status:
        raise NotFound(f"there is no {request.url.path}")
    invalid = InvalidRequest(error.detail, code="invalid_request")
    account: Account = request.state.account
    shown = account.shape.body(account.failed(invalid))
    return json_response(shown, error.status_code, error.headers)


HANDLERS: Final[dict[Any, Any]] = {HTTPException: _http_exception}
"""These handlers replace the answers that Starlette itself would give."""
