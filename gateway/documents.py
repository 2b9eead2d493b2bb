"""Answers GET /openapi.json, /docs and /version. The page loads nothing from other hosts."""

from __future__ import annotations

import html
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from typing import Any, Final

from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from gateway.endpoints.services import Services
from gateway.http import json_response
from gateway.schema import RequestModel

Json = dict[str, Any]
Handler = Callable[[Services, Request], Awaitable[Response]]

VERSION: Final = version("picospec")
_SECURITY: Final = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}
_STYLE: Final = "body{font:1rem system-ui;max-width:60rem;margin:2rem auto}pre{overflow:auto}"
_ERROR: Final[Json] = {
    "type": "object",
    "description": "`param` names the field that the error is about.",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}


@dataclass(frozen=True, slots=True)
class Route:
    method: str
    path: str
    summary: str
    handler: Handler
    body: type[RequestModel] | None = None
    answer_type: str = "application/json"


async def answer_version(_: Services, __: Request) -> Response:
    """Answer with the version, as vLLM does."""
    return json_response({"version": VERSION})


def documents(routes: Sequence[Route]) -> tuple[Route, Route]:
    """Return the routes of both documents, which describe `routes`. They are made at their
    first request, because the schemas take a tenth of a second."""
    document = cache(partial(openapi, routes))
    page = cache(lambda: _page(document()))

    async def answer_openapi(_: Services, __: Request) -> Response:
        return json_response(document())

    async def answer_page(_: Services, __: Request) -> Response:
        return HTMLResponse(page(), headers=_SECURITY)

    return (
        Route("GET", "/openapi.json", "This API, as OpenAPI", answer_openapi),
        Route("GET", "/docs", "This API, as a page", answer_page, answer_type="text/html"),
    )


def openapi(routes: Sequence[Route]) -> Json:
    """Return the OpenAPI document of `routes`, with the schemas that check request bodies."""
    paths: Json = {}
    for route in routes:
        path = route.path.replace(":path}", "}")
        paths.setdefault(path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "PicoSpec", "version": VERSION},
        "paths": paths,
        "components": {
            "schemas": {**_schemas(routes), "Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}],
    }


def _operation(route: Route) -> Json:
    answers: Json = {route.answer_type: {}}
    operation: Json = {"summary": route.summary}
    if "{name" in route.path:
        name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
        operation["parameters"] = [name]
    if route.body is not None:
        content = {"application/json": {"schema": _reference(route.body.__name__)}}
        operation["requestBody"] = {"required": True, "content": content}
        if "stream" in route.body.model_fields:
            answers["text/event-stream"] = {}
    failure = {"application/json": {"schema": _reference("Error")}}
    operation["responses"] = {
        "200": {"description": "The answer.", "content": answers},
        "default": {"description": "An error.", "content": failure},
    }
    return operation


def _schemas(routes: Sequence[Route]) -> Json:
    """Return the schemas of the routes' request bodies."""
    _, shared = models_json_schema(
        [(route.body, "validation") for route in routes if route.body is not None],
        ref_template="#/components/schemas/{model}",
    )
    schemas: Json = shared["$defs"]
    return schemas


def _reference(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _page(document: Json) -> str:
    """Return HTML: the paths, each with what OpenAPI says about it, and the schemas."""
    parts = [f"<h1>PicoSpec {VERSION}</h1><p><a href=openapi.json>openapi.json</a></p>"]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts.append(_section(f"{method.upper()} {path}", operation["summary"], operation))
    for name, schema in document["components"]["schemas"].items():
        parts.append(_section(name, schema.get("description", ""), schema))
    title = "<!doctype html><html lang=en><meta charset=utf-8><title>PicoSpec</title>"
    return f"{title}<style>{_STYLE}</style>{''.join(parts)}</html>"


def _section(title: str, text: str, content: Json) -> str:
    shown = html.escape(json.dumps(content, indent=2, ensure_ascii=False))
    heading = f"<b>{html.escape(title)}</b> {html.escape(text)}"
    return f"<details><summary>{heading}</summary><pre>{shown}</pre></details>"
