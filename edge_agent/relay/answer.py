"""Passes on an answer of another service, piece by piece as it comes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from http import HTTPStatus
from typing import Final

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from picospec.edge_agent.link.connection import Response as Answering
from picospec.edge_agent.link.uplink import ANSWER_TIMEOUT_S
from picospec.edge_agent.relay.allowed import EVENTS, SAFE, type_of
from picospec.edge_agent.relay.upload import HEAD_S, Upload
from picospec.gateway.accounts.account import Account
from picospec.gateway.doors.door import sent_event
from picospec.gateway.drain import Drain
from picospec.gateway.errors import OPENAI, ApiError, ClientGone, Unavailable
from picospec.gateway.http.responses import connected, send_to_client

MAX_BYTES: Final = 256 << 20
"""A longer answer is not passed on; this is hours of audio."""

MAX_S: Final = 7200.0
"""An answer may take this many seconds. A verifier's own limit is as long by default."""

_ENDS_BYTES: Final = 4096
"""This much of an answer's beginning and end is kept, because its token counts are there."""

_BYTES_A_TOKEN: Final = 4
"""About this many bytes of a request are a token of its prompt."""

_PROMPT: Final = re.compile(
    rb'"(?:tokens_evaluated|prompt_tokens|input_tokens|prompt_eval_count)": ?(\d{1,9})'
)
_READ: Final = re.compile(rb'"prompt_n": ?(\d{1,9})')
"""Finds the number of prompt tokens that were not cached, if nothing counts all of them."""

_CACHED: Final = re.compile(rb'"(?:cache_n|cache_read_input_tokens)": ?(\d{1,9})')
"""Finds the cached tokens, which `prompt_n` and Anthropic's `input_tokens` leave out."""

_GENERATED: Final = re.compile(
    rb'"(?:predicted_n|completion_tokens|output_tokens|eval_count)": ?(\d{1,9})'
)

Piece = bytes | bytearray | memoryview
Ask = Callable[[], AbstractAsyncContextManager[Answering]]
"""Opens an answer whose content is still to be read."""


class Relayed(Response):
    """Passes on one answer, once. It ends the other service's before it returns or raises.

    If an answer cannot be completed, a stream of events ends with an error. Others are cut, so
    that nobody takes a part of an answer for all of it.
    """

    def __init__(
        self,
        ask: Ask,
        account: Account,
        drain: Drain,
        upload: Upload | None = None,
        asked_bytes: int = 0,
    ) -> None:
        """upload: the request's body, if it has not been read. asked_bytes: the size of the
        request's text, by which the prompt is charged if the answer has no token counts."""
        super().__init__()
        self._ask = ask
        self._account = account
        self._drain = drain
        self._upload = upload
        self._asked_bytes = asked_bytes
        self._began = self._end = b""
        self._kind = ""
        self._events = 0
        self._is_charged = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        complete = self._upload.complete if self._upload else None
        try:
            async with self._drain.answer():
                async with connected(receive, complete):
                    await self._relay(send)
                await send_to_client(send, _piece(b"", more=False))
        except ClientGone as gone:
            self._account.status, self._account.error = gone.status, gone.code
        except Exception as raised:
            if not self._account.status:
                self._is_charged = False  # the other service has not taken the request
                raise
            await self._fail(self._account.failed(raised), send)
        finally:
            if self._is_charged:
                self._count()

    async def _relay(self, send: Send) -> None:
        try:
            async with asyncio.timeout(MAX_S), AsyncExitStack() as stack:
                answer = await self._head(stack)
                await self._pass_on(answer, send)
        except TimeoutError as error:
            raise self._unavailable("takes too long") from error
        except ApiError as error:
            if self._upload is None or self._upload.error is None:
                raise
            raise self._upload.error from error

    @property
    def _peer(self) -> str:
        return self._account.relayed or "verifier"

    def _unavailable(self, how: str) -> Unavailable:
        return Unavailable(f"the {self._peer} {how}", code=f"{self._peer}_unavailable")

    async def _head(self, stack: AsyncExitStack) -> Answering:
        async with asyncio.timeout(HEAD_S) as deadline:
            if self._upload is None:
                return await stack.enter_async_context(self._ask())
            self._upload.deadline = deadline
            try:
                return await stack.enter_async_context(self._ask())
            finally:
                self._upload.deadline = None

    async def _pass_on(self, answer: Answering, send: Send) -> None:
        self._kind = type_of(answer.headers.get("content-type", ""), self._peer)
        await send_to_client(send, _start(self._kind))
        taken = 0
        while (piece := await self._next(answer.content)) is not None:
            taken += len(piece)
            if taken > MAX_BYTES:
                raise Unavailable(f"the {self._peer}'s answer has more than {MAX_BYTES} bytes")
            self._began += piece[: _ENDS_BYTES - len(self._began)]
            self._end = (self._end + piece[-_ENDS_BYTES:])[-_ENDS_BYTES:]
            self._events += piece.count(b"data: ") + piece.count(b'"done":false')
            await send_to_client(send, _piece(piece, more=True))

    async def _next(self, pieces: AsyncIterator[Piece]) -> bytes | None:
        """Return the next piece of an answer, or None at its end. Raises Unavailable."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                piece = await anext(pieces, None)
                return None if piece is None else bytes(piece)
        except TimeoutError as error:
            raise self._unavailable(f"sent nothing for {ANSWER_TIMEOUT_S:g} s") from error

    async def _fail(self, error: ApiError, send: Send) -> None:
        if self._kind == EVENTS:
            shape = self._account.shape
            event = sent_event(shape.body(error), "" if shape is OPENAI else "error")
            with suppress(ClientGone):
                await send_to_client(send, _piece(event, more=False))

    def _count(self) -> None:
        """Count the tokens. An answer without token counts is charged one token per event, and
        its prompt by the size of the request."""
        prompt, cached = _prompt(self._began, self._end)
        generated = _last(_GENERATED, self._began, self._end)
        if prompt is None and generated is None:
            asked = self._upload.text_bytes if self._upload else self._asked_bytes
            prompt, generated = asked // _BYTES_A_TOKEN, self._events
        self._account.took_prompt((prompt or 0) + cached)
        self._account.completion_tokens = generated or 0


def _prompt(*texts: bytes) -> tuple[int | None, int]:
    """Return the number of a prompt's tokens, and of cached ones which that leaves out."""
    cached = _last(_CACHED, *texts) or 0
    if (whole := _last(_PROMPT, *texts)) is None:
        return _last(_READ, *texts), cached
    anthropic = any(b'"cache_read_input_tokens"' in text for text in texts)
    return whole, cached if anthropic else 0


def _last(said: re.Pattern[bytes], *texts: bytes) -> int | None:
    found = [number for text in texts for number in said.findall(text)]
    return int(found[-1]) if found else None


def _start(kind: str) -> Message:
    headers = {"content-type": kind, **SAFE}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http.response.start", "status": HTTPStatus.OK, "headers": raw}


def _piece(body: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}
