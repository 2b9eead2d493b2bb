"""GET /v1/models and GET /v1/models/{name}."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from gateway.ports import Facts
from gateway.responses import json_response
from gateway.routes.services import Services


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
