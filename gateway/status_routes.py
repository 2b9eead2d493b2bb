"""These handlers tell clients of a service's health, state and metrics, and of its models with
their properties and tokenizers.

A service that knows more of its state answers /health and /ready itself.
"""

from __future__ import annotations

import time
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from gateway.documents import VERSION
from gateway.endpoints import messages_answer
from gateway.endpoints.services import MODELS, Listed, Services
from gateway.errors import ApiError
from gateway.http import json_response
from gateway.request_context import context_of

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
