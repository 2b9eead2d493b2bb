"""Handles the paths of responses: creates a response, also one that continues a kept one.

A kept response can be read or deleted, and the items before it listed. One that runs in the
background can also be streamed again, and cancelled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal, cast

import msgspec
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from gateway.endpoints.background import RunningAnswer
from gateway.endpoints.bodies import checked
from gateway.endpoints.endpoint import EndpointRequest
from gateway.endpoints.generation import count_prompt, generate
from gateway.endpoints.recording import Dropped, Recording, Replay
from gateway.endpoints.response_store import ResponseStore, StoredResponse
from gateway.endpoints.responses import ResponsesRequest, names_of
from gateway.endpoints.responses_answer import ResponseAnswer, repeated_of
from gateway.endpoints.responses_items import ITEMS, Item
from gateway.endpoints.responses_output import PREFIX, REPEATS, place_of
from gateway.endpoints.responses_tools import offered
from gateway.endpoints.sending import EventStream
from gateway.endpoints.services import Services
from gateway.errors import InvalidRequest, NotFound
from gateway.http import json_response
from gateway.json_bounds import Values
from gateway.request_context import context_of
from gateway.schema import validated

Json = dict[str, Any]


async def create(services: Services, request: Request) -> Response:
    """Answer with a response, or stream it."""
    read = partial(convert, store := _store_of(services, request))
    history = partial(_with_history, store)
    return await generate(ResponsesRequest, read, services, request, history)


async def count(services: Services, request: Request) -> Response:
    """Answer with the number of tokens in the prompt of a response."""
    read = partial(convert, _store_of(services, request))
    name = "response.input_tokens"
    return await count_prompt(ResponsesRequest, read, services, request, object=name)


def _store_of(services: Services, request: Request) -> ResponseStore:
    """Return the tenant's store, and record its size, because it takes time to read."""
    context = context_of(request)
    store = services.stores.of(context)
    context.claim.kept_bytes = store.size_bytes
    return store


def convert(store: ResponseStore, body: ResponsesRequest) -> EndpointRequest:
    """Return what a request asks for, with the history that it continues. Raises
    InvalidRequest."""
    if body.background and not body.store:
        reason = "a response that is not stored cannot run in the background"
        raise InvalidRequest.of("background", reason)
    before = _history(store, body.previous_response_id, body.values)
    items = (*before, *_resolved(store, body.input))
    tools = tuple(offered(body.tools))
    chat = body.chat(items, tools)
    dumped = _dumped(items) if body.store else b""
    keep = partial(_keep, store, dumped) if body.store and not body.background else None
    in_background = partial(_run, store, dumped, body.stream) if body.background else None
    called = {tool.name: tool.called for tool in tools}
    answer = partial(ResponseAnswer, body, repeated_of(body, chat), called, keep)
    ignored = tuple(body.ignored())
    converted = EndpointRequest(
        chat, PREFIX, answer, ignored, names_of(tools), in_background=in_background
    )
    return replace(converted, only_apart=body.background, repeats=REPEATS)


def _history(store: ResponseStore, id: str | None, values: Values) -> Sequence[Item]:
    """Return the conversation of a response, including its output. values: those of the request
    that goes on with it, with which its own are counted. Raises InvalidRequest."""
    if id is None:
        return ()
    kept = store.find(id) if id.startswith(PREFIX) else None
    if kept is None:
        code = "previous_response_not_found"
        raise InvalidRequest.of("previous_response_id", "no such response is kept", code)
    try:
        values.add(kept.items + kept.response)
    except InvalidRequest as error:
        reason = f"this conversation has grown too long: {error.message}"
        raise InvalidRequest.of("previous_response_id", reason) from None
    return (*ITEMS.validate_json(kept.items), *_output(kept))


def _with_history(store: ResponseStore, fields: Json) -> Json:
    """Return the fields of a request for another service, which keeps no response: the input
    has the conversation that it continues, and the items that it names. Raises
    InvalidRequest."""
    items, values = fields.get("input"), Values()
    values.add(msgspec.json.encode(fields))
    others = {name: value for name, value in fields.items() if name != "previous_response_id"}
    if not isinstance(items, list):
        items = [{"type": "message", "role": "user", "content": items}]
    named = [validated(Item, item) for item in items if _is_reference(item)]
    resolved_items = iter(_shown_items(_resolved(store, named)))
    before = _shown_items(_history(store, fields.get("previous_response_id"), values))
    whole_input = [next(resolved_items) if _is_reference(item) else item for item in items]
    return {**others, "input": [*before, *whole_input]}


def _is_reference(item: object) -> bool:
    return isinstance(item, dict) and item.get("type") == "item_reference"


def _shown_items(items: Iterable[Item]) -> list[Json]:
    shown: list[Json] = ITEMS.dump_python(tuple(items), mode="json", exclude_unset=True)
    return shown


def _output(kept: StoredResponse) -> Sequence[Item]:
    return ITEMS.validate_python(msgspec.json.decode(kept.response)["output"])


def _resolved(store: ResponseStore, items: Sequence[Item]) -> Iterator[Item]:
    """Yield the items, with each reference replaced by the kept item that it names. No item may
    be named twice: otherwise a short body could stand for an endless text."""
    known: dict[str, list[Item | None]] = {}
    for index, item in enumerate(items):
        if item.type != "item_reference":
            yield item
            continue
        id, place = place_of(item.id or "")
        if id not in known:
            kept = store.find(id)
            known[id] = list(_output(kept)) if kept is not None else []
        output = known[id]
        output_item = output[place] if place < len(output) else None
        if output_item is None:
            raise InvalidRequest.of(f"input.{index}.id", "no such item is kept, or twice")
        output[place] = None
        yield output_item


def _dumped(items: Sequence[Item]) -> bytes:
    return ITEMS.dump_json(tuple(items), exclude_unset=True)


def _keep(store: ResponseStore, before: bytes, response: Json) -> None:
    store.keep(str(response["id"]), StoredResponse(msgspec.json.encode(response), before))


def _run(
    store: ResponseStore, items: bytes, is_streamed: bool, stream: EventStream
) -> Response:
    """Run a response in the background; return its state, or stream it. Its conversation counts
    as its request's body while it runs. Raises Overloaded."""
    context, answer = stream.context, cast(ResponseAnswer, stream.answer)  # as `convert` has it
    context.hold(context.claim.held_bytes + len(items))
    events = Recording(repeated=answer.repeated) if is_streamed else None
    store.begin(running := RunningAnswer(answer, stream, items, events))
    if events is None:
        return json_response(msgspec.Raw(running.response))
    return Replay(events, 0, stream.keep_alive_s, context)


class Page(BaseModel):
    """Parses OpenAI's query that selects the items to list."""

    order: Literal["asc", "desc"] = "desc"
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    after: str | None = None
    """Only the items after the one with this id are listed."""


class Resumption(BaseModel):
    """Parses OpenAI's query that reads a response, or streams it again."""

    stream: bool = False
    starting_after: Annotated[int, Field(ge=0)] = -1
    """Only the events after the one with this number are streamed."""


async def retrieve(services: Services, request: Request) -> Response:
    """Answer with a response that is kept or runs; or stream it again."""
    response, resumption = (
        _found(services, request),
        validated(Resumption, dict(request.query_params)),
    )
    if not resumption.stream:
        return json_response(msgspec.Raw(response.response))
    if response.events is None:
        reason = "only a response made with `background` and `stream` is streamed again"
        raise InvalidRequest.of("stream", reason)
    number = resumption.starting_after + 1
    try:
        response.events.check(number)
    except Dropped as dropped:
        raise InvalidRequest.of("starting_after", dropped) from None
    every_s = services.settings.keep_alive_s
    return Replay(response.events, number, every_s, context_of(request))


async def delete(services: Services, request: Request) -> Response:
    """Delete a response, after cancelling it if it runs."""
    if isinstance(response := _found(services, request), RunningAnswer):
        await response.cancel()
    _store_of(services, request).remove(id := request.path_params["name"])
    return json_response({"id": id, "object": "response", "deleted": True})


async def cancel(services: Services, request: Request) -> Response:
    """End a response that runs in the background, and answer with it; one that has ended
    remains as it is. Raises InvalidRequest for any other: it ends with its connection."""
    if isinstance(response := _found(services, request), RunningAnswer):
        await response.cancel()
    elif not msgspec.json.decode(response.response)["background"]:
        raise InvalidRequest("only a response that runs in the background can be cancelled")
    return json_response(msgspec.Raw(response.response))


async def compact(_: Services, __: Request) -> Response:
    """Raise NotFound: conversations are not compacted here; clients do that themselves."""
    raise NotFound("responses are not compacted here")


async def input_items(services: Services, request: Request) -> Response:
    """Answer with the items before a response."""
    kept = _found(services, request)
    page = validated(Page, dict(request.query_params))
    key = request.path_params["name"].removeprefix(PREFIX)
    listed = await checked(services, request, partial(_listed, kept, page, key))
    return json_response(listed)


def _listed(kept: StoredResponse | RunningAnswer, page: Page, key: str) -> Json:
    """Return a page of the items before a response. Raises InvalidRequest."""
    named = enumerate(msgspec.json.decode(kept.items))
    items = [_shown(item, f"item_{key}_{index}") for index, item in named]
    if page.order == "desc":
        items.reverse()
    if page.after is not None:
        ids = [item["id"] for item in items]
        if page.after not in ids:
            raise InvalidRequest.of("after", "there is no such item")
        items = items[ids.index(page.after) + 1 :]
    listed = items[: page.limit]
    ends = {"first_id": listed[0]["id"], "last_id": listed[-1]["id"]} if listed else {}
    more = {"has_more": len(listed) < len(items), "object": "list"}
    return {"data": listed, "first_id": None, "last_id": None, **ends, **more}


def _shown(item: Json, id: str) -> Json:
    """Return an item in the form in which OpenAI's API lists it: with a type and an id."""
    return {"type": "message", "id": id, "status": "completed", **item}


def _found(services: Services, request: Request) -> StoredResponse | RunningAnswer:
    store, id = _store_of(services, request), request.path_params["name"]
    if (kept := store.running(id) or store.find(id)) is None:
        raise NotFound("no such response is kept", code="response_not_found")
    return kept
