"""Lists the routes of every service, and the shape of errors on each.

An endpoint's route has its path, its schema and the reader of its requests. Besides OpenAI's
and Anthropic's routes there are those of llama-server and of Ollama, and OpenAI's that
llama-server has without /v1. Ollama's routes that manage models answer 501."""

from __future__ import annotations

from functools import partial
from typing import Final

from starlette.datastructures import Headers

from gateway.documents import Route, answer_version
from gateway.endpoints import (
    chat_answer,
    completions_answer,
    llama_server_answer,
    messages_answer,
    ollama_answer,
    ollama_models,
    responses_handlers,
)
from gateway.endpoints.chat import ChatRequest
from gateway.endpoints.completions import CompletionRequest
from gateway.endpoints.endpoint import Body, Convert
from gateway.endpoints.generation import count_prompt, generate
from gateway.endpoints.llama_server import InfillRequest, NativeCompletionRequest
from gateway.endpoints.messages import MessagesRequest
from gateway.endpoints.ollama import OllamaChat, OllamaGenerate
from gateway.endpoints.responses import ResponsesRequest
from gateway.errors import OPENAI, Shape
from gateway.status_routes import (
    health,
    list_models,
    prometheus_metrics,
    props,
    ready,
    retrieve_model,
    status,
    tokenizer_info,
)
from gateway.tokenize_routes import DetokenizeRequest, TokenizeRequest, detokenize, tokenize


def shape_of(path: str, headers: Headers) -> Shape:
    """Return the shape of errors for a request for `path`."""
    listed = path.startswith("/v1/models") and "anthropic-version" in headers
    if listed or path.startswith("/v1/messages"):
        return messages_answer.SHAPE
    return ollama_answer.SHAPE if path.startswith("/api/") else OPENAI


def _endpoint(
    path: str, summary: str, schema: type[Body], convert: Convert[Body], *kind: str
) -> Route:
    """Return the route of an endpoint. kind: media type of its streams, unless they are
    events."""
    return Route("POST", path, summary, partial(generate, schema, convert), schema, *kind)


_KEPT: Final = "/v1/responses/{name}"
_CHATS: Final = "/v1/chat/completions/{name}"
_SAME: Final = "The same as with /v1"
_LINES: Final = "application/x-ndjson"
_COUNT: Final = partial(count_prompt, MessagesRequest, messages_answer.convert)
_CHAT: Final = partial(ollama_answer.convert, ollama_answer.OllamaChatAnswer)
_TEXT: Final = partial(ollama_answer.convert, ollama_answer.TextAnswer)
_COMPLETION: Final = ("Go on with a text", NativeCompletionRequest, llama_server_answer.convert)

ROUTES: Final = (
    Route("POST", "/v1/chat/completions", "Answer a chat", chat_answer.create, ChatRequest),
    Route("GET", _CHATS, "A chat of the page, joined again", responses_handlers.retrieve),
    Route("POST", f"{_CHATS}/cancel", "End a chat of the page", responses_handlers.cancel),
    _endpoint(
        "/v1/completions", "Go on with a text", CompletionRequest, completions_answer.convert
    ),
    _endpoint(
        "/v1/messages",
        "Answer messages, as Anthropic does",
        MessagesRequest,
        messages_answer.convert,
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
        responses_handlers.create,
        ResponsesRequest,
    ),
    Route(
        "POST",
        "/v1/responses/input_tokens",
        "How many tokens the prompt of a response has",
        responses_handlers.count,
        ResponsesRequest,
    ),
    Route("POST", "/v1/responses/compact", "Not served: a 404", responses_handlers.compact),
    Route(
        "GET",
        _KEPT,
        "A response that is kept or runs, or its events",
        responses_handlers.retrieve,
    ),
    Route("DELETE", _KEPT, "Forget a response", responses_handlers.delete),
    Route(
        "POST",
        f"{_KEPT}/cancel",
        "End a response that runs in the background",
        responses_handlers.cancel,
    ),
    Route(
        "GET",
        "/v1/responses/{name}/input_items",
        "What came before it",
        responses_handlers.input_items,
    ),
    Route("POST", "/tokenize", "The tokens of a text or chat", tokenize, TokenizeRequest),
    Route("POST", "/detokenize", "The text of tokens", detokenize, DetokenizeRequest),
    Route("GET", "/tokenizer_info", "Its named tokens and chat template", tokenizer_info),
    Route("GET", "/v1/models", "The model, by each of its names", list_models),
    Route("GET", "/v1/models/{name:path}", "The model of that name", retrieve_model),
    Route("GET", "/health", "Whether this process is alive and not broken", health),
    Route("GET", "/ready", "Whether work is taken now", ready),
    Route("GET", "/status", "What this service is, and how it is", status),
    Route("GET", "/metrics", "Metrics", prometheus_metrics, answer_type="text/plain"),
    Route("GET", "/version", "The version of this service", answer_version),
    _endpoint("/chat/completions", _SAME, ChatRequest, chat_answer.convert),
    Route("GET", "/models", _SAME, list_models),
    Route("GET", "/v1/health", "The same as without /v1", health),
    Route("GET", "/ping", "The same as /health", health),
    Route("GET", "/props", "The model, as llama-server tells it", props),
    _endpoint("/completion", *_COMPLETION),
    _endpoint("/completions", *_COMPLETION),
    _endpoint(
        "/infill", "Fill in between two texts", InfillRequest, llama_server_answer.convert
    ),
    _endpoint("/api/chat", "Answer a chat", OllamaChat, _CHAT, _LINES),
    _endpoint("/api/generate", "Answer a prompt", OllamaGenerate, _TEXT, _LINES),
    Route(
        "POST",
        "/api/show",
        "What a model can do",
        ollama_models.show,
        ollama_models.ShowRequest,
    ),
    Route("GET", "/api/tags", "The model, by each of its names", ollama_models.tags),
    Route("GET", "/api/ps", "The same, as what is loaded", ollama_models.running),
    Route(
        "GET", "/api/version", "The version of Ollama whose API this is", ollama_models.version
    ),
    Route("POST", "/api/embed", "Not served", ollama_models.no_embeddings),
    Route("POST", "/api/embeddings", "Not served", ollama_models.no_embeddings),
    Route("DELETE", "/api/delete", "Not served", ollama_models.not_served),
    *(
        Route("POST", f"/api/{name}", "Not served", ollama_models.not_served)
        for name in ("pull", "push", "create", "copy")
    ),
)
