"""GET /health, /ready, /metrics, /v1/models and /v1/models/{name}.

A service that knows more of its state answers /health and /ready itself.
"""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import Response

from gateway.ports import Facts
from gateway.responses import json_response
from gateway.routes.services import Services


async def health(_: Services, __: Request) -> Response:
    """Answer 200, which says that this process is alive."""
    return json_response({"status": "ok"})


async def ready(services: Services, _: Request) -> Response:
    """Answer 200 while the engine can serve; it raises the 503 that says why it cannot."""
    services.drain.check()
    facts = await services.engine.facts()
    return json_response({"status": "ok", "model": facts.model})


async def prometheus_metrics(services: Services, _: Request) -> Response:
    """Answer the app's registry in Prometheus' text format."""
    return Response(generate_latest(services.registry), media_type=CONTENT_TYPE_LATEST)


async def list_models(services: Services, _: Request) -> Response:
    """Answer the engine's only model, under each of its names."""
    facts = await services.engine.facts()
    names = [facts.model, *sorted(services.model_aliases - {facts.model})]
    models = [_model(services, facts, name) for name in names]
    return json_response({"object": "list", "data": models})


async def retrieve_model(services: Services, request: Request) -> Response:
    """Answer the model of that name."""
    name: str = request.path_params["name"]
    return json_response(_model(services, await services.facts_of(name), name))


def _model(services: Services, facts: Facts, name: str) -> dict[str, object]:
    """Return OpenAI's object; `root` and `max_model_len` are vLLM's."""
    return {
        "id": name,
        "object": "model",
        "created": services.started,
        "owned_by": "picospec",
        "root": facts.model,
        "max_model_len": facts.context_tokens,
    }
