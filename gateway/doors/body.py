"""Reads and checks the bodies of requests: large ones in a thread, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from picospec.gateway.accounts.account import Account
from picospec.gateway.doors.services import Services
from picospec.gateway.errors import ApiError
from picospec.gateway.http.request_body import read_body
from picospec.gateway.schemas.base import invalid
from picospec.gateway.schemas.json_bounds import SMALL_BYTES, check_structure

Body = TypeVar("Body", bound=BaseModel)
T = TypeVar("T")

MIN_LIMIT_BYTES: Final = 1 << 20
"""Bodies have this limit if the context is short, or its length is unknown."""

BYTES_PER_TOKEN: Final = 32
"""The limit of bodies is this for each token of the context. In JSON a token has about 5 bytes,
and as escapes of UTF-16 about 12; the rest is room for the structure around the texts."""


async def parse(schema: type[Body], services: Services, request: Request) -> Body:
    """Return the JSON body of a request. Raises InvalidRequest, or what `read_body` and
    `checked` raise."""
    body = await read(services, request)
    return await checked(services, request, partial(_validated, schema, body))


async def read(services: Services, request: Request, least_bytes: int = 0) -> bytes:
    """Return the body of a request, of at most as many bytes as the context holds, or
    `least_bytes` if that is more. Raises what `read_body` raises."""
    return await read_body(request, max(least_bytes, await _limit_bytes(services, request)))


async def checked(services: Services, request: Request, check: Callable[[], T]) -> T:
    """Return what `check` returns for a request whose body has been read. The check runs at
    once if the body and its tenant's kept responses, which the body may refer to, are small;
    otherwise in the one thread where large bodies take turns. Raises Overloaded, or what
    `check` raises."""
    account: Account = request.state.account
    if len(await request.body()) + account.kept_bytes <= SMALL_BYTES:
        return check()
    return await services.checks.run(account.tenant, check)


def _validated(schema: type[Body], body: bytes) -> Body:
    check_structure(body)
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error) from None


async def _limit_bytes(services: Services, request: Request) -> int:
    """Return the limit of a body's bytes, which grows with the context if the engine knows its
    length. The engine is not asked about a body that is short enough for any context."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) <= MIN_LIMIT_BYTES:
        return MIN_LIMIT_BYTES
    try:
        facts = await services.engine.facts()
    except ApiError:  # the fallback may answer; otherwise the request fails after the checks
        return MIN_LIMIT_BYTES
    return max(MIN_LIMIT_BYTES, facts.context_tokens * BYTES_PER_TOKEN)
