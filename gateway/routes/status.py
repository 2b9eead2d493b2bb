"""GET /health, /metrics, /v1/models and /v1/models/{name}."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import Response

from gateway.ports import Facts
from gateway.responses import json_response
from gateway.routes.services import Services


async def health(services: Services, _: Request) -> Response:
    """Answer 200 while the engine can serve; it raises the 503 that says why it cannot."""
    facts = await services.engine.facts()
    return json_response({"status": "ok", "model": facts.model})


async def prometheus_metrics(services: Services, _: Request) -> Response:
    """Answer the app's registry in Prometheus' text format."""
    return Response(generate_latest(services.registry), media_type=CONTENT_TYPE_LATEST)


async def list_models(services: Services, _: Request) -> Response:
    """Answer the list of the models: the engine's only one."""
    model = _model(services, await services.engine.facts())
    return json_response({"object": "list", "data": [model]})


async def retrieve_model(services: Services, request: Request) -> Response:
    """Answer the model of that name."""
    facts = await services.facts_of(request.path_params["name"])
    return json_response(_model(services, facts))


def _model(services: Services, facts: Facts) -> dict[str, object]:
    return {
        "id": facts.model,
        "object": "model",
        "created": services.started,
        "owned_by": "picospec",
        "max_model_len": facts.context_tokens,
    }
