"""Answers of the verifier's own API, which are passed on as they come, without drafts.

POST /v1/picospec/direct/chat/completions is the same chat, answered by the verifier alone. So a
page that talks to the edge only can show that both answers are the same. The request needs a
seed: without one, they would not be.

Where the verifier speaks another version of the protocol, as while one end is upgraded before
the other, all chats and completions are answered in this way.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from http import HTTPStatus
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from picospec.edge_agent.link.connection import Response as Answering
from picospec.edge_agent.link.uplink import ANSWER_TIMEOUT_S, Uplink
from picospec.edge_agent.link.verifiers import Verifiers
from picospec.gateway.accounts.account import Account
from picospec.gateway.doors.body import checked, parse
from picospec.gateway.doors.chat.request import ChatRequest
from picospec.gateway.doors.services import Services
from picospec.gateway.drain import Drain
from picospec.gateway.errors import ClientGone, InvalidRequest, Unavailable
from picospec.gateway.http.client import connected, send_to_client

PATH: Final = "/v1/picospec/direct/chat/completions"

UNDRAFTED: Final = "undrafted"
"""What `x-picospec-fallback` and the log say of an answer that has no drafts because the ends
speak different versions of the protocol."""

_END_BYTES: Final = 4096
"""So much of an answer's end is kept: it says how many tokens the answer took."""

MAX_BYTES: Final = 64 << 20
"""The longest answer that is passed on: 100,000 events with twenty log-probabilities each."""

MAX_S: Final = 7200.0
"""An answer may take so long. A verifier's own limit is as long by default."""

_TYPES: Final = {
    "application/json": "application/json",
    "text/event-stream": "text/event-stream; charset=utf-8",
}
"""The types of answers that are passed on. A browser would run others, such as HTML, as a part
of this edge's page."""

_BYTES_A_TOKEN: Final = 4
"""About how many bytes of a request are a token of its prompt."""

_TOKENS: Final = re.compile(rb'"prompt_n":(\d+).*"predicted_n":(\d+)')


async def relay(verifiers: Verifiers, services: Services, request: Request) -> Response:
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
    renamed = partial(_renamed, await request.body(), model)
    asked = await checked(services, request, renamed)
    ask = partial(uplink.ask, path, asked)
    return _Relayed(ask, asked, request.state.account, services.drain)


Ask = Callable[[], AbstractAsyncContextManager[Answering]]
"""Gives an answer whose content is still to be read."""


def _renamed(body: bytes, model: str) -> bytes:
    """Return a chat as the verifier is asked for it, by its model's own name."""
    try:
        fields = msgspec.json.decode(body)
    except msgspec.DecodeError as error:  # stricter than `parse`, which takes NaN
        raise InvalidRequest(f"the body is no JSON: {error}") from None
    return msgspec.json.encode({**fields, "model": model})


class _Relayed(Response):
    """One answer, sent once. It ends the verifier's before it returns or raises."""

    def __init__(self, ask: Ask, asked: bytes, account: Account, drain: Drain) -> None:
        super().__init__()
        self._ask = ask
        self._asked = asked
        self._account = account
        self._drain = drain
        self._end = b""
        self._events = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with self._drain.answer():
                async with connected(receive):
                    await self._relay(send)
                await send_to_client(send, _piece(b"", more=False))
        except ClientGone as gone:
            self._account.status, self._account.error = gone.status, gone.code
        except Exception as raised:
            if not self._account.status:
                self._asked = b""  # the verifier has not taken it
                raise
            error = msgspec.json.encode(self._account.failed(raised).body())
            await send(_piece(b"data: %b\n\n" % error, more=False))
        finally:
            self._count()

    async def _relay(self, send: Send) -> None:
        try:
            async with asyncio.timeout(MAX_S), self._ask() as answer:
                await self._pass_on(answer, send)
        except TimeoutError as error:
            raise Unavailable(f"the verifier takes more than {MAX_S:g} s") from error

    async def _pass_on(self, answer: Answering, send: Send) -> None:
        await send_to_client(send, _start(answer))
        pieces, taken = answer.content, 0
        while piece := await _next(pieces):
            taken += len(piece)
            if taken > MAX_BYTES:
                raise Unavailable(f"the verifier's answer has more than {MAX_BYTES} bytes")
            self._end = (self._end + piece)[-_END_BYTES:]
            self._events += piece.count(b"data: ")
            await send_to_client(send, _piece(piece, more=True))

    def _count(self) -> None:
        """Count the tokens; of an answer that was cut about one an event, and its prompt by the
        size of the request."""
        if counted := _TOKENS.search(self._end):
            self._account.took_prompt(int(counted[1]))
            self._account.completion_tokens = int(counted[2])
        else:
            self._account.took_prompt(len(self._asked) // _BYTES_A_TOKEN)
            self._account.completion_tokens = self._events


async def _next(pieces: AsyncIterator[bytes | bytearray | memoryview]) -> bytes:
    """Return the next piece of an answer, or b"" at its end. Raises Unavailable."""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            return bytes(await anext(pieces, b""))
    except TimeoutError as error:
        raise Unavailable(f"the verifier sent nothing for {ANSWER_TIMEOUT_S:g} s") from error


def _start(answer: Answering) -> Message:
    """Return the head of an answer that is passed on. Raises Unavailable."""
    said, _, _ = answer.headers.get("content-type", "").partition(";")
    if (kind := _TYPES.get(said.strip().lower())) is None:
        raise Unavailable("the verifier's answer is neither JSON nor a stream of events")
    headers = {"content-type": kind}
    headers |= {"cache-control": "no-cache", "x-accel-buffering": "no"}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http.response.start", "status": HTTPStatus.OK, "headers": raw}


def _piece(body: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}
