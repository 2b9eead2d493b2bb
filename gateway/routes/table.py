"""Lists the routes of every service, and the shape of errors on each.

A door's route has its path, its schema and the reader of its requests. Besides OpenAI's and
Anthropic's routes there are those of llama-server and of Ollama, and OpenAI's that llama-server
has without /v1. Ollama's routes that manage models answer 501.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from starlette.datastructures import Headers

from picospec.gateway.doors.chat import answer as chat
from picospec.gateway.doors.chat.request import ChatRequest
from picospec.gateway.doors.completions import answer as completions
from picospec.gateway.doors.completions.request import CompletionRequest
from picospec.gateway.doors.door import Body, Convert
from picospec.gateway.doors.generation import count_prompt, generate
from picospec.gateway.doors.llama_server import answer as llama_server
from picospec.gateway.doors.llama_server.request import InfillRequest, NativeCompletionRequest
from picospec.gateway.doors.messages import answer as messages
from picospec.gateway.doors.messages.request import MessagesRequest
from picospec.gateway.doors.ollama import answer as ollama
from picospec.gateway.doors.ollama import models
from picospec.gateway.doors.ollama.request import OllamaChat, OllamaGenerate
from picospec.gateway.doors.responses import handlers as responses
from picospec.gateway.doors.responses.request import ResponsesRequest
from picospec.gateway.errors import OPENAI, Shape
from picospec.gateway.routes import status
from picospec.gateway.routes.documents import Route, answer_version
from picospec.gateway.routes.tokens import (
    DetokenizeRequest,
    TokenizeRequest,
    detokenize,
    tokenize,
)


def shape_of(path: str, headers: Headers) -> Shape:
    """Return the shape of errors for a request for `path`."""
    listed = path.startswith("/v1/models") and "anthropic-version" in headers
    if listed or path.startswith("/v1/messages"):
        return messages.SHAPE
    return ollama.SHAPE if path.startswith("/api/") else OPENAI


def _door(
    path: str, summary: str, schema: type[Body], convert: Convert[Body], *kind: str
) -> Route:
    """Return the route of a door. kind: media type of its streams, unless they are events."""
    return Route("POST", path, summary, partial(generate, schema, convert), schema, *kind)


_KEPT: Final = "/v1/responses/{name}"
_SAME: Final = "The same as with /v1"
_LINES: Final = "application/x-ndjson"
_COUNT: Final = partial(count_prompt, MessagesRequest, messages.convert)
_CHAT: Final = partial(ollama.convert, ollama.ChatAnswer)
_TEXT: Final = partial(ollama.convert, ollama.TextAnswer)
_COMPLETION: Final = ("Go on with a text", NativeCompletionRequest, llama_server.convert)

ROUTES: Final = (
    _door("/v1/chat/completions", "Answer a chat", ChatRequest, chat.convert),
    _door("/v1/completions", "Go on with a text", CompletionRequest, completions.convert),
    _door(
        "/v1/messages", "Answer messages, as Anthropic does", MessagesRequest, messages.convert
    ),
    Route(
        "POST",
        "/v1/messages/count_tokens",
        "How many tokens messages have",
        _COUNT,
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
    Route("POST", "/v1/responses/compact", "Not served: a 404", responses.compact),
    Route("GET", _KEPT, "A response that is kept", responses.retrieve),
    Route("DELETE", _KEPT, "Forget a response", responses.delete),
    Route(
        "POST",
        f"{_KEPT}/cancel",
        "End a response: what runs ends with its connection",
        responses.cancel,
    ),
    Route(
        "GET", "/v1/responses/{name}/input_items", "What came before it", responses.input_items
    ),
    Route("POST", "/tokenize", "The tokens of a text or chat", tokenize, TokenizeRequest),
    Route("POST", "/detokenize", "The text of tokens", detokenize, DetokenizeRequest),
    Route("GET", "/v1/models", "The model, by each of its names", status.list_models),
    Route("GET", "/v1/models/{name:path}", "The model of that name", status.retrieve_model),
    Route("GET", "/health", "Whether this process is alive and not broken", status.health),
    Route("GET", "/ready", "Whether work is taken now", status.ready),
    Route("GET", "/status", "What this service is, and how it is", status.status),
    Route("GET", "/metrics", "Metrics", status.prometheus_metrics, answer_type="text/plain"),
    Route("GET", "/version", "The version of this service", answer_version),
    _door("/chat/completions", _SAME, ChatRequest, chat.convert),
    Route("GET", "/models", _SAME, status.list_models),
    Route("GET", "/v1/health", "The same as without /v1", status.health),
    Route("GET", "/ping", "The same as /health", status.health),
    Route("GET", "/props", "The model, as llama-server tells it", status.props),
    _door("/completion", *_COMPLETION),
    _door("/completions", *_COMPLETION),
    _door("/infill", "Fill in between two texts", InfillRequest, llama_server.convert),
    _door("/api/chat", "Answer a chat", OllamaChat, _CHAT, _LINES),
    _door("/api/generate", "Answer a prompt", OllamaGenerate, _TEXT, _LINES),
    Route("POST", "/api/show", "What a model can do", models.show, models.ShowRequest),
    Route("GET", "/api/tags", "The model, by each of its names", models.tags),
    Route("GET", "/api/ps", "The same, as what is loaded", models.running),
    Route("GET", "/api/version", "The version of Ollama whose API this is", models.version),
    Route("POST", "/api/embed", "Not served", models.no_embeddings),
    Route("POST", "/api/embeddings", "Not served", models.no_embeddings),
    Route("DELETE", "/api/delete", "Not served", models.not_served),
    *(
        Route("POST", f"/api/{name}", "Not served", models.not_served)
        for name in ("pull", "push", "create", "copy")
    ),
)
