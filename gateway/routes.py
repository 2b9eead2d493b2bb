"""Lists the routes of every service, and the shape of errors on each.

An endpoint's route has its path, its schema and the reader of its requests. Besides OpenAI's
and Anthropic's routes there are those of llama-server and of Ollama, and OpenAI's that
llama-server has without /v1. Ollama's routes that manage models answer 501."""

from __future__ import annotations

from functools import partial
from typing import Final

from starlette.datastructures import Headers

from gateway.documents import Route, answer_version
from gateway.endpoints import chat_answer, completions_answer, messages_answer, ollama_answer
from gateway.endpoints import llama_server_answer as llama_server
from gateway.endpoints import ollama_models as ollama
from gateway.endpoints import responses_handlers as responses
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
    return _post(path, summary, partial(generate, schema, convert), schema, *kind)


_get, _post, _delete = (partial(Route, method) for method in ("GET", "POST", "DELETE"))
_KEPT: Final = "/v1/responses/{name}"
_CHATS: Final = "/v1/chat/completions/{name}"
_SAME: Final = "The same as with /v1"
_LINES: Final = "application/x-ndjson"
_COUNT: Final = partial(count_prompt, MessagesRequest, messages_answer.convert)
_CHAT: Final = partial(ollama_answer.convert, ollama_answer.OllamaChatAnswer)
_TEXT: Final = partial(ollama_answer.convert, ollama_answer.TextAnswer)
_TEXTS: Final = ("Go on with a text", CompletionRequest, completions_answer.convert)
_NATIVE: Final = ("Go on with a text", NativeCompletionRequest, llama_server.convert)
_MESSAGES: Final = ("Answer as Anthropic does", MessagesRequest, messages_answer.convert)

ROUTES: Final = (
    _post("/v1/chat/completions", "Answer a chat", chat_answer.create, ChatRequest),
    _get(_CHATS, "A chat of the page, joined again", responses.retrieve),
    _post(f"{_CHATS}/cancel", "End a chat of the page", responses.cancel),
    _endpoint("/v1/completions", *_TEXTS),
    _endpoint("/v1/messages", *_MESSAGES),
    _post("/v1/messages/count_tokens", "Count a prompt's tokens", _COUNT, MessagesRequest),
    _post("/v1/responses", "Answer with a response", responses.create, ResponsesRequest),
    _post("/v1/responses/input_tokens", "Count its tokens", responses.count, ResponsesRequest),
    _post("/v1/responses/compact", "Not served: a 404", responses.compact),
    _get(_KEPT, "A response that is kept or runs, or its events", responses.retrieve),
    _delete(_KEPT, "Forget a response", responses.delete),
    _post(f"{_KEPT}/cancel", "End a response that runs in the background", responses.cancel),
    _get(f"{_KEPT}/input_items", "What came before it", responses.input_items),
    _post("/tokenize", "The tokens of a text or chat", tokenize, TokenizeRequest),
    _post("/detokenize", "The text of tokens", detokenize, DetokenizeRequest),
    _get("/tokenizer_info", "Its named tokens and chat template", tokenizer_info),
    _get("/v1/models", "The model, by each of its names", list_models),
    _get("/v1/models/{name:path}", "The model of that name", retrieve_model),
    _get("/health", "Whether this process is alive and not broken", health),
    _get("/ready", "Whether work is taken now", ready),
    _get("/status", "What this service is, and how it is", status),
    _get("/metrics", "Metrics", prometheus_metrics, answer_type="text/plain"),
    _get("/version", "The version of this service", answer_version),
    _endpoint("/chat/completions", _SAME, ChatRequest, chat_answer.convert),
    _get("/models", _SAME, list_models),
    _get("/v1/health", "The same as without /v1", health),
    _get("/ping", "The same as /health", health),
    _get("/props", "The model, as llama-server tells it", props),
    _endpoint("/completion", *_NATIVE),
    _endpoint("/completions", *_NATIVE),
    _endpoint("/infill", "Fill in between texts", InfillRequest, llama_server.convert),
    _endpoint("/api/chat", "Answer a chat", OllamaChat, _CHAT, _LINES),
    _endpoint("/api/generate", "Answer a prompt", OllamaGenerate, _TEXT, _LINES),
    _post("/api/show", "What a model can do", ollama.show, ollama.ShowRequest),
    _get("/api/tags", "The model, by each of its names", ollama.tags),
    _get("/api/ps", "The same, as what is loaded", ollama.running),
    _get("/api/version", "The version of Ollama whose API this is", ollama.version),
    *(_post(f"/api/{n}", "Not served", ollama.no_embeddings) for n in ("embed", "embeddings")),
    _delete("/api/delete", "Not served", ollama.not_served),
    *(
        _post(f"/api/{name}", "Not served", ollama.not_served)
        for name in ("pull", "push", "create", "copy")
    ),
)
