"""Answers GET /api/tags, /api/ps and /api/version, POST /api/show, and unserved paths."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Annotated, Final

from pydantic import AliasChoices, Field
from starlette.requests import Request
from starlette.responses import Response

from gateway.endpoints.answer import Json
from gateway.endpoints.bodies import parse
from gateway.endpoints.ollama import LATEST
from gateway.endpoints.services import Services
from gateway.errors import NotServed
from gateway.http import json_response
from gateway.ports import Facts
from gateway.request_context import context_of
from gateway.schema import RequestModel

API_VERSION: Final = "0.13.0"
"""This is the API of this version of Ollama; some clients refuse older versions."""

FAMILY: Final = "picospec"
"""This name replaces the architecture, which no client needs: clients look for the length of
the context that `model_info` has under the name."""

_DETAILS: Final[Json] = {
    "parent_model": "",
    "format": "gguf",
    "family": FAMILY,
    "families": [FAMILY],
    "parameter_size": "",
    "quantization_level": "",
}
_FOREVER: Final = datetime(9999, 12, 31, tzinfo=UTC).isoformat()


class ShowRequest(RequestModel):
    model: Annotated[str, Field(min_length=1, validation_alias=AliasChoices("model", "name"))]


async def version(_: Services, __: Request) -> Response:
    """Answer with the version of Ollama whose API this is."""
    return json_response({"version": API_VERSION})


async def tags(services: Services, request: Request) -> Response:
    """Answer with the models that can be reached, under each of their names, and their
    adapters."""
    return json_response({"models": await _models(services, request)})


async def running(services: Services, request: Request) -> Response:
    """Answer with the same models as `tags`, which stay loaded."""
    models = [
        {**model, "expires_at": _FOREVER, "size_vram": 0}
        for model in await _models(services, request)
    ]
    return json_response({"models": models})


async def show(services: Services, request: Request) -> Response:
    """Answer with a model's capabilities and the length of its context."""
    body = await parse(ShowRequest, services, request)
    context = context_of(request)
    backend, facts = await services.find(context, body.model.removesuffix(LATEST))
    output_format = await services.output_format_of(
        await backend.tokenizer(facts.vocabulary), context
    )
    shown: Json = {
        "modelfile": "",
        "parameters": "",
        "template": output_format.tokenizer.template,
        "details": _DETAILS,
        "model_info": {
            "general.architecture": FAMILY,
            f"{FAMILY}.context_length": facts.context_tokens,
        },
        "capabilities": output_format.capabilities,
        "modified_at": _time(services.started),
    }
    return json_response(shown)


async def not_served(_: Services, request: Request) -> Response:
    """Raise NotServed, because models are managed elsewhere."""
    raise NotServed(f"{request.url.path} is not served: `picospec models` manages models")


async def no_embeddings(_: Services, request: Request) -> Response:
    """Raise NotServed, because another service makes embeddings."""
    path = request.url.path
    raise NotServed(f"{path} is not served: an edge proxies embeddings at /v1/embeddings")


async def _models(services: Services, request: Request) -> list[Json]:
    models = await services.all(context_of(request))
    return [_model(services, each.facts, each.name) for each in models]


def _model(services: Services, facts: Facts, name: str) -> Json:
    return {
        "name": name,
        "model": name,
        "modified_at": _time(services.started),
        "size": 0,
        "digest": hashlib.sha256(f"{facts.model} {facts.identity}".encode()).hexdigest(),
        "details": _DETAILS,
        "context_length": facts.context_tokens,
    }


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
