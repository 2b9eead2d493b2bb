"""Lists the routes of every service, and the shape of errors on each.

An endpoint's route has its path, its schema and the reader of its requests. Besides OpenAI's
and Anthropic's routes there are those of llama-server and of Ollama, and OpenAI's that
llama-server has without /v1. Ollama's routes that manage models answer 501."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Final

from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import Field, ValidationInfo, field_validator
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response

from gateway.documents import VERSION, Route, answer_version
from gateway.endpoints import (
    chat,
    completions,
    llama_server,
    messages_answer,
    ollama,
    responses_handlers,
)
from gateway.endpoints.bodies import checked, parse
from gateway.endpoints.chat import ChatRequest
from gateway.endpoints.completions import CompletionRequest, text_of
from gateway.endpoints.endpoint import Body, Convert
from gateway.endpoints.generation import count_prompt, generate
from gateway.endpoints.llama_server import InfillRequest, NativeCompletionRequest
from gateway.endpoints.messages import MessagesRequest
from gateway.endpoints.messages_schema import ChatMessage
from gateway.endpoints.ollama import OllamaChat, OllamaGenerate
from gateway.endpoints.request import parameters_of
from gateway.endpoints.responses import ResponsesRequest
from gateway.endpoints.services import MODELS, Listed, Services
from gateway.errors import OPENAI, ApiError, InvalidRequest, PromptTooLong, Shape
from gateway.http import json_response
from gateway.ports import Facts, GatewayTokenizer
from gateway.request_context import context_of
from gateway.schema import FIRST_ERROR, Flag, Integer, RequestModel, missing
from gateway.turns import BoundedTokenizer

# Answers GET /health, /ready, /status, /props, /metrics, /v1/models and /v1/models/{name}.
#
# A service that knows more of its state answers /health and /ready itself.

_LINKS: Final = {"docs": "/docs", "metrics": "/metrics", "openapi": "/openapi.json"}


async def health(_: Services, __: Request) -> Response:
    """Answer 200, which means that this process is alive."""
    return json_response({"status": "ok"})


async def ready(services: Services, _: Request) -> Response:
    """Answer 200 while the engine can serve. Raises the 503 that says why it cannot."""
    services.drain.check()
    facts = await (await services.models.find(None)).engine.facts()
    return json_response({"status": "ok", "model": facts.model})


async def status(services: Services, request: Request) -> Response:
    """Answer with the service's state, even while it cannot serve. A key that opens single
    models sees no other."""
    facts = error = None
    about = await services.about() if services.about else {}
    for listed, name in (("models", "name"), ("verifiers", "model"), ("placed", "model")):
        if isinstance(value := about.get(listed), list):
            opens = context_of(request).tenant.opens
            about[listed] = [each for each in value if opens(each.get(name, ""))]
    try:
        _, facts = await services.own(context_of(request), None)
    except ApiError as failed:
        error = failed.message
    state = "draining" if services.drain.begun else "unavailable" if facts is None else "ok"
    gauge = services.registry.restricted_registry(["picospec:num_requests_running"])
    running = sum(sample.value for metric in gauge.collect() for sample in metric.samples)
    body = {
        "status": state,
        "error": error,
        "model": facts and {"name": facts.model, "context_tokens": facts.context_tokens},
        "version": VERSION,
        "uptime_s": int(time.time()) - services.started,
        "requests": int(running),
        "links": _LINKS,
    }
    return json_response({**body, **about})


async def prometheus_metrics(services: Services, _: Request) -> Response:
    """Answer with the app's registry in Prometheus' text format."""
    page = services.metrics_page.of(services.registry)
    return Response(page, media_type=CONTENT_TYPE_LATEST)


async def list_models(services: Services, request: Request) -> Response:
    """Answer with the models that can be reached, under each of their names, and their
    adapters; then with those for which another service is asked, and those that are away."""
    context = context_of(request)
    away, proxied = services.away(context), services.proxied_models(context)
    models = await services.all(context)
    if "anthropic-version" in request.headers:
        named = [(each.name, each.facts) for each in models]
        others = [(name, None) for name in (*proxied, *away)]
        listed = [
            messages_answer.model_of(name, services.started, each)
            for name, each in (*named, *others)
        ]
        return json_response(messages_answer.page_of(listed))
    listed = [await _model(services, each, request) for each in models]
    listed += [_entry(services, name) for name in proxied]
    listed += [_entry(services, name, "picospec") | AWAY for name in away]
    return json_response({"object": "list", "data": listed})


async def retrieve_model(services: Services, request: Request) -> Response:
    """Answer with the model of the given name."""
    context, name = context_of(request), request.path_params["name"]
    away = AWAY if name in services.away(context) else {}
    if away or name in services.proxied_models(context):
        if "anthropic-version" in request.headers:
            return json_response(messages_answer.model_of(name, services.started))
        return json_response(_entry(services, name, "picospec" if away else "relayed") | away)
    model = Listed(name, *await services.find(context, name, MODELS))
    if "anthropic-version" in request.headers:
        shown = messages_answer.model_of(name, services.started, model.facts)
        return json_response(shown)
    return json_response(await _model(services, model, request))


AWAY: Final = {"state": "away"}
"""A listed model that cannot be reached now has this field."""


async def _capabilities(
    services: Services, listed: Listed, request: Request
) -> dict[str, object]:
    """Return the model's capabilities; nothing while its tokenizer is not available. A page
    asks for those of all models every few seconds, whose tokenizers memory may not hold."""
    digest, output_formats = listed.facts.vocabulary, services.output_formats
    if (capabilities := output_formats.capabilities.get(digest)) is None:
        try:
            tokenizer = await listed.backend.tokenizer(digest)
            output_format = await services.output_format_of(tokenizer, context_of(request))
        except ApiError:
            return {}
        capabilities = output_formats.remember(digest, output_format)
    return {"capabilities": capabilities}


async def props(services: Services, request: Request) -> Response:
    """Answer with the properties of the model that llama-server's clients read."""
    backend, facts = await services.find(context_of(request), None)
    tokenizer = await backend.tokenizer(facts.vocabulary)
    body = {
        "default_generation_settings": {"n_ctx": facts.context_tokens},
        "model_alias": facts.model,
        "model_path": facts.model,
        "chat_template": tokenizer.template,
        "modalities": {"vision": False, "audio": False},
        "build_info": f"picospec-{VERSION}",
    }
    return json_response(body)


async def tokenizer_info(services: Services, request: Request) -> Response:
    """Answer with what vLLM's clients ask about the tokenizer."""
    backend, facts = await services.find(context_of(request), None)
    tokenizer = await backend.tokenizer(facts.vocabulary)
    return json_response({**tokenizer.named_tokens, "chat_template": tokenizer.template})


def _entry(services: Services, name: str, owner: str = "relayed") -> dict[str, object]:
    """Return OpenAI's model object, with the fields that are known for any model."""
    return {"id": name, "object": "model", "created": services.started, "owned_by": owner}


async def _model(services: Services, listed: Listed, request: Request) -> dict[str, object]:
    """Return OpenAI's model object. Clients find the context's length under the name of vLLM,
    of LM Studio and OpenRouter, or of llama-server."""
    facts = listed.facts
    if (fallback := listed.backend.fallback) is not None and fallback.is_elsewhere:
        return _entry(services, listed.name, fallback.name)  # which is all that is known
    length = facts.context_tokens
    return {
        **_entry(services, listed.name, "picospec"),
        "root": facts.model,
        "max_model_len": length,
        "context_length": length,
        "meta": {"n_ctx": length, "n_vocab": facts.vocabulary_size},
        **await _capabilities(services, listed, request),
    }


# Answers POST /tokenize and /detokenize, with the fields of llama-server and of vLLM.
#
# If the two servers differ, the field with the text decides: `content` is llama-server's, and
# `prompt` and `messages` are vLLM's.


class TokenizeRequest(RequestModel):
    model: str | None = None
    content: str | None = None
    messages: Annotated[tuple[ChatMessage, ...], FIRST_ERROR] = ()
    prompt: Annotated[str | None, Field(validate_default=True)] = None
    add_special: Flag = False
    add_special_tokens: Flag = True
    parse_special: Flag = True
    with_pieces: Flag = False
    return_token_strs: Flag = False

    @field_validator("prompt")
    @classmethod
    def _is_the_only_text(cls, value: str | None, info: ValidationInfo) -> str | None:
        others = [info.data.get("content") is not None, bool(info.data.get("messages"))]
        if value is None and not any(others):
            missing()
        if others.count(True) + (value is not None) > 1:
            raise ValueError("give one of prompt, messages and content")
        return value

    @property
    def field(self) -> str:
        """Return the field that errors about the text refer to."""
        return "messages" if self.messages else "prompt" if self.content is None else "content"

    def tokenise(self, tokenizer: GatewayTokenizer) -> Sequence[int]:
        if self.content is not None:
            special, begin = self.parse_special, self.add_special
            return tokenizer.encode(self.content, special=special, begin=begin)
        return tokenizer.encode(self.prompt or "", begin=self.add_special_tokens)


class DetokenizeRequest(RequestModel):
    model: str | None = None
    tokens: Annotated[tuple[Integer, ...], FIRST_ERROR]


async def tokenize(services: Services, request: Request) -> Response:
    """Answer with the tokens of a text or of a chat."""
    context = context_of(request)
    context.begin_answers(1)  # it takes what an answer's prompt does
    body = await parse(TokenizeRequest, services, request)
    backend, facts = await services.find(context, body.model)
    source = await backend.tokenizer(facts.vocabulary)
    tokenizer = BoundedTokenizer(source, facts, body.field)
    chat = await parse(ChatRequest, services, request) if body.messages else None
    if chat is not None:
        await checked(services, request, partial(parameters_of, chat, facts))
    answer = partial(_tokens_answer, body, chat, facts, tokenizer)
    return await services.reader.read(context.tenant, answer)


async def detokenize(services: Services, request: Request) -> Response:
    """Answer with the text of tokens; special tokens are spelt out."""
    context = context_of(request)
    context.begin_answers(1)
    body = await parse(DetokenizeRequest, services, request)
    backend, facts = await services.find(context, body.model)
    tokenizer = await backend.tokenizer(facts.vocabulary)
    answer = partial(_text_answer, body.tokens, facts, tokenizer)
    return await services.reader.read(context.tenant, answer)


def _tokens_answer(
    body: TokenizeRequest, chat: ChatRequest | None, facts: Facts, tokenizer: GatewayTokenizer
) -> Response:
    tokens = chat.tokenise(tokenizer)[0] if chat is not None else body.tokenise(tokenizer)
    pieces: list[str] = []
    if body.with_pieces or body.return_token_strs:
        _check_count(len(tokens), facts, body.field)
        pieces = [text_of([token], tokenizer) for token in tokens]
    named = [{"id": id, "piece": piece} for id, piece in zip(tokens, pieces, strict=False)]
    answer = {
        "tokens": named if body.with_pieces else tokens,
        "count": len(tokens),
        "max_model_len": facts.context_tokens,
        "token_strs": pieces if body.return_token_strs else None,
    }
    return json_response(answer)


def _text_answer(tokens: Sequence[int], facts: Facts, tokenizer: GatewayTokenizer) -> Response:
    _check_count(len(tokens), facts, "tokens")
    for index, token in enumerate(tokens):
        if not 0 <= token < facts.vocabulary_size:
            raise InvalidRequest(f"no such token: {token}", param=f"tokens.{index}")
    text = text_of(tokens, tokenizer)
    return json_response({"content": text, "prompt": text})


def _check_count(tokens: int, facts: Facts, field: str) -> None:
    """Raise InvalidRequest if the texts of more tokens are requested than the context has: such
    an answer may have a hundred times the bytes of its request."""
    if tokens > facts.context_tokens:
        reason = f"the context has {facts.context_tokens} tokens; these are {tokens}"
        raise InvalidRequest.of(field, reason, PromptTooLong.code)


def shape_of(path: str, headers: Headers) -> Shape:
    """Return the shape of errors for a request for `path`."""
    listed = path.startswith("/v1/models") and "anthropic-version" in headers
    if listed or path.startswith("/v1/messages"):
        return messages_answer.SHAPE
    return ollama.SHAPE if path.startswith("/api/") else OPENAI


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
_CHAT: Final = partial(ollama.convert, ollama.OllamaChatAnswer)
_TEXT: Final = partial(ollama.convert, ollama.TextAnswer)
_COMPLETION: Final = ("Go on with a text", NativeCompletionRequest, llama_server.convert)

ROUTES: Final = (
    Route("POST", "/v1/chat/completions", "Answer a chat", chat.create, ChatRequest),
    Route("GET", _CHATS, "A chat of the page, joined again", responses_handlers.retrieve),
    Route("POST", f"{_CHATS}/cancel", "End a chat of the page", responses_handlers.cancel),
    _endpoint("/v1/completions", "Go on with a text", CompletionRequest, completions.convert),
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
    _endpoint("/chat/completions", _SAME, ChatRequest, chat.convert),
    Route("GET", "/models", _SAME, list_models),
    Route("GET", "/v1/health", "The same as without /v1", health),
    Route("GET", "/ping", "The same as /health", health),
    Route("GET", "/props", "The model, as llama-server tells it", props),
    _endpoint("/completion", *_COMPLETION),
    _endpoint("/completions", *_COMPLETION),
    _endpoint("/infill", "Fill in between two texts", InfillRequest, llama_server.convert),
    _endpoint("/api/chat", "Answer a chat", OllamaChat, _CHAT, _LINES),
    _endpoint("/api/generate", "Answer a prompt", OllamaGenerate, _TEXT, _LINES),
    Route("POST", "/api/show", "What a model can do", ollama.show, ollama.ShowRequest),
    Route("GET", "/api/tags", "The model, by each of its names", ollama.tags),
    Route("GET", "/api/ps", "The same, as what is loaded", ollama.running),
    Route("GET", "/api/version", "The version of Ollama whose API this is", ollama.version),
    Route("POST", "/api/embed", "Not served", ollama.no_embeddings),
    Route("POST", "/api/embeddings", "Not served", ollama.no_embeddings),
    Route("DELETE", "/api/delete", "Not served", ollama.not_served),
    *(
        Route("POST", f"/api/{name}", "Not served", ollama.not_served)
        for name in ("pull", "push", "create", "copy")
    ),
)
