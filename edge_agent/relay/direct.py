"""Answers of the verifier's own API, which are passed on as they come, without drafts.

POST /v1/picospec/direct/chat/completions is the same chat, answered by the verifier alone. So a
page that talks to the edge only can show that both answers are the same. The request needs a
seed: without one, they would not be.

Where the verifier speaks another version of the protocol, as while one end is upgraded before
the other, all chats and completions are answered in this way.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from picospec.edge_agent.link.uplink import Uplink
from picospec.edge_agent.link.verifiers import Verifiers
from picospec.edge_agent.relay.answer import Relayed
from picospec.gateway.accounts.account import Account
from picospec.gateway.doors.body import checked, parse
from picospec.gateway.doors.chat.request import ChatRequest
from picospec.gateway.doors.services import Services
from picospec.gateway.errors import InvalidRequest

PATH: Final = "/v1/picospec/direct/chat/completions"

UNDRAFTED: Final = "undrafted"
"""What `x-picospec-fallback` and the log say of an answer that has no drafts because the ends
speak different versions of the protocol."""


async def direct(verifiers: Verifiers, services: Services, request: Request) -> Response:
    """Have the verifier that is in use answer a chat with a seed. Raises ApiError."""
    services.drain.check()
    account: Account = request.state.account
    account.tenant.check_room(account.clock())
    body = await parse(ChatRequest, services, request)
    if body.seed is None:
        raise InvalidRequest("seed: set one, or the two answers will differ", param="seed")
    facts = await services.facts_of(body.model)
    account.begin_answers(body.n)
    path = "/v1/chat/completions"
    return await _relayed(verifiers.current, path, facts.model, services, request)


async def undrafted(
    verifiers: Verifiers, services: Services, request: Request, model: str
) -> Response | None:
    """Have the verifier in use answer, if it opens no sessions for this edge; None if it does.
    Raises ApiError."""
    if verifiers.speaks:
        return None
    request.state.account.fallback = UNDRAFTED
    path = request.scope["path"]
    return await _relayed(verifiers.current, path, model, services, request)


async def _relayed(
    uplink: Uplink, path: str, model: str, services: Services, request: Request
) -> Response:
    """Return the verifier's answer to a request that has been read and begun."""
    body = await checked(services, request, partial(renamed, await request.body(), model))
    account: Account = request.state.account
    account.relayed = "verifier"
    ask = partial(uplink.ask, path, body)
    return Relayed(ask, account, services.drain, asked_bytes=len(body))


def renamed(body: bytes, model: str | None) -> bytes:
    """Return a request as another service is asked it, by its model's own name. Written anew,
    it names no field twice. Raises InvalidRequest."""
    try:
        fields = msgspec.json.decode(body)
    except msgspec.DecodeError as error:  # stricter than `parse`, which takes NaN
        raise InvalidRequest(f"the body is no JSON: {error}") from None
    return msgspec.json.encode({**fields, "model": model})
