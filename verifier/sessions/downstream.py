"""Streams a session's messages as one long response body.

Headers are sent with the first body message, so one is sent at once. In a silence a Beat is
sent at intervals, so that the edge soon notices a lost link or process. The stream ends after a
Finish or a Fault, or when the client goes away; the session ends with it.
"""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from picospec.gateway.accounts.account import Account
from picospec.gateway.errors import ClientGone
from picospec.gateway.http.responses import connected, send_to_client
from picospec.speculation.protocol import wire
from picospec.speculation.protocol.messages import BEAT_S, Beat, Fault
from picospec.verifier.sessions.session import Session

CONTENT_TYPE: Final = "application/vnd.picospec"

_BEAT: Final = wire.encode(Beat())
_GONE: Final = Fault("cancelled", "nobody reads the session's stream")
_START: Final[Message] = {
    "type": "http.response.start",
    "status": 200,
    "headers": (
        (b"content-type", CONTENT_TYPE.encode()),
        (b"cache-control", b"no-store"),
        (b"x-accel-buffering", b"no"),
    ),
}


class Downstream(Response):
    """Responds with a session's stream. It owns the session, and ends it when it ends."""

    def __init__(self, session: Session, account: Account) -> None:
        super().__init__()
        self._session = session
        self._account = account

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with connected(receive):
                await self._stream(send)
            await _send(send, b"", more=False)  # a server reports our own end as a disconnect
        except ClientGone as gone:
            self._account.status, self._account.error = gone.status, gone.code
        finally:
            self._session.cancel(_GONE)

    async def _stream(self, send: Send) -> None:
        await send_to_client(send, _START)
        await _send(send, wire.encode(self._session.opened))
        while True:
            try:
                async with asyncio.timeout(BEAT_S):
                    entries = await self._session.read()
            except TimeoutError:
                await _send(send, _BEAT)
                continue
            if not entries:
                return
            await _send(send, b"".join(entry.frame for entry in entries))


async def _send(send: Send, data: bytes, *, more: bool = True) -> None:
    body: Message = {"type": "http.response.body", "body": data, "more_body": more}
    await send_to_client(send, body)
