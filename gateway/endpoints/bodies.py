"""Reads and checks the bodies of requests: large ones in a thread, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from gateway.endpoints.services import Services
from gateway.errors import ApiError
from gateway.json_bounds import SMALL_BYTES, Values
from gateway.request_body import read_body
from gateway.request_context import context_of
from gateway.schema import invalid

Parsed = TypeVar("Parsed", bound=BaseModel)
T = TypeVar("T")

MIN_LIMIT_BYTES: Final = 1 << 20
"""Bodies have this limit if the context is short, or its length is unknown."""

BYTES_PER_TOKEN: Final = 32
"""The limit of bodies is this for each token of the context. In JSON a token has about 5 bytes,
and as escapes of UTF-16 about 12; the rest is room for the structure around the texts."""


def body_limit_bytes(context_tokens: int) -> int:
    """Return the limit of a body's bytes for a context of this length."""
    return max(MIN_LIMIT_BYTES, context_tokens * BYTES_PER_TOKEN)


async def parse(
    schema: type[Parsed], services: Services, request: Request, least_bytes: int = 0
) -> Parsed:
    """Return the JSON body of a request. Raises InvalidRequest, or what `read_body` and
    `checked` raise. least_bytes: so large a body may be refused for what it says, as images
    are; one that the schema takes is a text, and may be as large as the context holds."""
    body = await read(services, request, least_bytes)
    parsed = await checked(services, request, partial(_validated, schema, body))
    if least_bytes:
        await read(services, request)
    return parsed


async def read(services: Services, request: Request, least_bytes: int = 0) -> bytes:
    """Return the body of a request, of at most as many bytes as the context holds, or
    `least_bytes` if that is more. Raises what `read_body` raises."""
    return await read_body(request, max(least_bytes, await _limit_bytes(services, request)))


async def checked(services: Services, request: Request, check: Callable[[], T]) -> T:
    """Return what `check` returns for a request whose body has been read. The check runs at
    once if the body and its tenant's kept responses, which the body may refer to, are small;
    otherwise in the one thread where large bodies take turns. Raises Overloaded, or what
    `check` raises."""
    context = context_of(request)
    if len(await request.body()) + context.claim.kept_bytes <= SMALL_BYTES:
        return check()
    return await services.checks.run(context.tenant, check)


def _validated(schema: type[Parsed], body: bytes) -> Parsed:
    values = Values()
    values.add(body)
    try:
        return schema.model_validate_json(body, context=values)
    except ValidationError as error:
        raise invalid(error) from None


async def _limit_bytes(services: Services, request: Request) -> int:
    """Return the limit of a body's bytes, which grows with the longest context that is
    known: a body's model is known once it has been read. No engine is asked about a body that
    is short enough for any context."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) <= MIN_LIMIT_BYTES:
        return MIN_LIMIT_BYTES
    lengths = [0]
    for backend in await services.models.reachable():
        with suppress(ApiError):  # a fallback may answer; else the request fails later
            lengths.append((await backend.engine.facts()).context_tokens)
    return body_limit_bytes(max(lengths))
