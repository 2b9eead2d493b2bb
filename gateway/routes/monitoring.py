"""GET /health and GET /metrics."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import Response

from gateway.responses import json_response
from gateway.routes.services import Services


async def health(services: Services, _: Request) -> Response:
    """Answer 200 while the engine can serve; it raises the 503 that says why it cannot."""
    facts = await services.engine.facts()
    return json_response({"status": "ok", "model": facts.model})


async def prometheus_metrics(services: Services, _: Request) -> Response:
    """Answer the app's registry in Prometheus' text format."""
    return Response(generate_latest(services.registry), media_type=CONTENT_TYPE_LATEST)
