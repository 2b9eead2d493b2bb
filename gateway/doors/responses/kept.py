"""What one may do with a response that is kept: read it, list what came before, delete it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from picospec.gateway.doors.responses.output import PREFIX
from picospec.gateway.doors.responses.store import Kept
from picospec.gateway.doors.services import Services
from picospec.gateway.errors import InvalidRequest, NotFound
from picospec.gateway.http.responses import json_response
from picospec.gateway.schemas.base import validated

Json = dict[str, Any]


class Page(BaseModel):
    """Which items are listed; OpenAI's query."""

    order: Literal["asc", "desc"] = "desc"
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    after: str | None = None
    """The id of an item; those after it are listed."""


async def retrieve(services: Services, request: Request) -> Response:
    """Answer a response that is kept."""
    if request.query_params.get("stream") == "true":
        raise InvalidRequest("stream: a response is streamed once", param="stream")
    return json_response(msgspec.Raw(_found(services, request).response))


async def delete(services: Services, request: Request) -> Response:
    """Forget a response."""
    _found(services, request)
    services.shelves.of(request.state.account.tenant).remove(id := request.path_params["name"])
    return json_response({"id": id, "object": "response", "deleted": True})


async def cancel(services: Services, request: Request) -> Response:
    """Say that what is kept has ended; what runs ends when its client closes the connection."""
    _found(services, request)
    raise InvalidRequest("only a response that runs in the background can be cancelled")


async def compact(_: Services, __: Request) -> Response:
    """Say that conversations are not compacted here; clients do that themselves."""
    raise NotFound("responses are not compacted here")


async def input_items(services: Services, request: Request) -> Response:
    """Answer the items that came before a response."""
    kept = _found(services, request)
    page = validated(Page, dict(request.query_params))
    key = request.path_params["name"].removeprefix(PREFIX)
    named = enumerate(msgspec.json.decode(kept.items))
    items = [_shown(item, f"item_{key}_{index}") for index, item in named]
    if page.order == "desc":
        items.reverse()
    if page.after is not None:
        ids = [item["id"] for item in items]
        if page.after not in ids:
            raise InvalidRequest("after: there is no such item", param="after")
        items = items[ids.index(page.after) + 1 :]
    listed = items[: page.limit]
    ends = {"first_id": listed[0]["id"], "last_id": listed[-1]["id"]} if listed else {}
    more = {"has_more": len(listed) < len(items), "object": "list"}
    return json_response({"data": listed, "first_id": None, "last_id": None, **ends, **more})


def _shown(item: Json, id: str) -> Json:
    """Return an item as OpenAI's API lists it: with a type and an id."""
    return {"type": "message", "id": id, "status": "completed", **item}


def _found(services: Services, request: Request) -> Kept:
    kept = services.shelves.of(request.state.account.tenant).find(request.path_params["name"])
    if kept is None:
        raise NotFound("no such response is kept", code="response_not_found")
    return kept
