"""Answers GET /health, /ready, /status, /props, /metrics, /v1/models and /v1/models/{name}.

A service that knows more of its state answers /health and /ready itself.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import Response

from picospec.gateway.doors.messages import answer as anthropic
from picospec.gateway.doors.services import Services
from picospec.gateway.errors import ApiError
from picospec.gateway.http.responses import json_response
from picospec.gateway.ports import Facts
from picospec.gateway.routes.documents import VERSION

_LINKS: Final = {"docs": "/docs", "metrics": "/metrics", "openapi": "/openapi.json"}


async def health(_: Services, __: Request) -> Response:
    """Answer 200, which means that this process is alive."""
    return json_response({"status": "ok"})


async def ready(services: Services, _: Request) -> Response:
    """Answer 200 while the engine can serve. Raises the 503 that says why it cannot."""
    services.drain.check()
    facts = await services.engine.facts()
    return json_response({"status": "ok", "model": facts.model})


async def status(services: Services, _: Request) -> Response:
    """Answer with the service's state, even while it cannot serve."""
    facts = error = None
    about = await services.about() if services.about else {}
    try:
        facts = await services.engine.facts()
    except ApiError as failed:
        error = failed.message
    state = "draining" if services.drain.begun else "unavailable" if facts is None else "ok"
    running = services.registry.get_sample_value("picospec:num_requests_running") or 0
    body = {
        "status": state,
        "error": error,
        "model": facts and {"name": facts.model, "context_tokens": facts.context_tokens},
        "version": VERSION,
        "uptime_s": int(time.time()) - services.started,
        "requests": int(running) - 1,  # without the request for /status itself
        "links": _LINKS,
    }
    return json_response({**body, **about})


async def prometheus_metrics(services: Services, _: Request) -> Response:
    """Answer with the app's registry in Prometheus' text format."""
    return Response(generate_latest(services.registry), media_type=CONTENT_TYPE_LATEST)


async def list_models(services: Services, request: Request) -> Response:
    """Answer with the engine's model, under each of its names, and its adapters."""
    services = await services.for_request(request.state.account)
    facts = await services.engine.facts()
    models = [(name, facts.named(name)) for name in services.names_of(facts)]
    if "anthropic-version" in request.headers:
        found = [*models, *((name, None) for name in services.models_elsewhere)]
        listed = [anthropic.model_of(name, services.started, each) for name, each in found]
        return json_response(anthropic.page_of(listed))
    can = await _capabilities(services, facts, request)
    listed = [_model(services, facts, name) | can for name, facts in models]
    others = [_entry(services, name) for name in services.models_elsewhere]
    return json_response({"object": "list", "data": listed + others})


async def retrieve_model(services: Services, request: Request) -> Response:
    """Answer with the model of the given name."""
    services = await services.for_request(request.state.account)
    name: str = request.path_params["name"]
    is_elsewhere = name in services.models_elsewhere
    facts = None if is_elsewhere else await services.facts_of(name)
    if "anthropic-version" in request.headers:
        return json_response(anthropic.model_of(name, services.started, facts))
    if facts is None:
        return json_response(_entry(services, name))
    can = await _capabilities(services, facts, request)
    return json_response(_model(services, facts, name) | can)


async def _capabilities(
    services: Services, facts: Facts, request: Request
) -> dict[str, Sequence[str]]:
    """Return the model's capabilities; nothing while its tokenizer is not available."""
    try:
        tokenizer = await services.tokenizer(facts.vocabulary)
        style = await services.style_of(tokenizer, request.state.account)
    except ApiError:
        return {}
    return {"capabilities": style.capabilities}


async def props(services: Services, request: Request) -> Response:
    """Answer with the properties of the model that llama-server's clients read."""
    services = await services.for_request(request.state.account)
    facts = await services.engine.facts()
    tokenizer = await services.tokenizer(facts.vocabulary)
    body = {
        "default_generation_settings": {"n_ctx": facts.context_tokens},
        "model_alias": facts.model,
        "model_path": facts.model,
        "chat_template": tokenizer.template,
        "modalities": {"vision": False, "audio": False},
        "build_info": f"picospec-{VERSION}",
    }
    return json_response(body)


def _entry(services: Services, name: str, owner: str = "relayed") -> dict[str, object]:
    """Return OpenAI's model object, with the fields that are known for any model."""
    return {"id": name, "object": "model", "created": services.started, "owned_by": owner}


def _model(services: Services, facts: Facts, name: str) -> dict[str, object]:
    """Return OpenAI's model object. Clients find the context's length under the name of vLLM,
    of LM Studio and OpenRouter, or of llama-server."""
    length = facts.context_tokens
    return {
        **_entry(services, name, "picospec"),
        "root": facts.model,
        "max_model_len": length,
        "context_length": length,
        "meta": {"n_ctx": length, "n_vocab": facts.vocabulary_size},
    }
