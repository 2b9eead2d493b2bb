"""The routes of llama-server and of Ollama, and those of OpenAI's that llama-server has without
/v1. Ollama's that manage models answer 501."""

from __future__ import annotations

from functools import partial
from typing import Final

from picospec.gateway.doors.chat import answer as chat
from picospec.gateway.doors.chat.request import ChatRequest
from picospec.gateway.doors.generation import generate
from picospec.gateway.doors.llama_server import answer as llama_server
from picospec.gateway.doors.llama_server.request import InfillRequest, NativeCompletionRequest
from picospec.gateway.doors.ollama import models
from picospec.gateway.doors.ollama.answer import ChatAnswer, TextAnswer, asked
from picospec.gateway.doors.ollama.request import OllamaChat, OllamaGenerate
from picospec.gateway.routes.documents import Handler, Route
from picospec.gateway.routes.status import health, list_models, props

_SAME: Final = "The same as with /v1"
_LINES: Final = "application/x-ndjson"
_OPENAI: Final[Handler] = partial(generate, ChatRequest, chat.asked)
_COMPLETION: Final[Handler] = partial(generate, NativeCompletionRequest, llama_server.asked)
_INFILL: Final[Handler] = partial(generate, InfillRequest, llama_server.asked)
_CHAT: Final[Handler] = partial(generate, OllamaChat, partial(asked, ChatAnswer))
_TEXT: Final[Handler] = partial(generate, OllamaGenerate, partial(asked, TextAnswer))

NATIVE_ROUTES: Final = (
    Route("POST", "/chat/completions", _SAME, _OPENAI, ChatRequest),
    Route("GET", "/models", _SAME, list_models),
    Route("GET", "/v1/health", "The same as without /v1", health),
    Route("GET", "/ping", "The same as /health", health),
    Route("GET", "/props", "The model, as llama-server tells it", props),
    Route("POST", "/completion", "Go on with a text", _COMPLETION, NativeCompletionRequest),
    Route("POST", "/completions", "Go on with a text", _COMPLETION, NativeCompletionRequest),
    Route("POST", "/infill", "Fill in between two texts", _INFILL, InfillRequest),
    Route("POST", "/api/chat", "Answer a chat", _CHAT, OllamaChat, _LINES),
    Route("POST", "/api/generate", "Answer a prompt", _TEXT, OllamaGenerate, _LINES),
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
