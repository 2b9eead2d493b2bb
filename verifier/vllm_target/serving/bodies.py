"""Bounds a body that arrives on our port before vLLM parses it in its only event loop.

vLLM makes objects of the whole body, whatever it contains: 60 MB of `{},` would take minutes,
and more memory than most hosts have. So would the tokens of 60 MB of text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Final

from starlette.requests import Request
from starlette.types import Message, Receive, Scope

from gateway.access import is_open
from gateway.endpoints.bodies import body_limit_bytes
from gateway.json_bounds import SMALL_BYTES, check_structure
from gateway.operator_fields import without_operators
from gateway.request_body import read_body
from gateway.turns import ThreadTurns

MAX_WAITING: Final = 32
"""This many large bodies of one tenant, each of 64 MiB at most, may wait to be counted."""

_NO_JSON: Final = "multipart/form-data"
"""Bodies with audio files have this media type."""


@dataclass(frozen=True, slots=True)
class Bodies:
    context_tokens: int
    takes_media: bool
    """True if bodies may contain images, which may be larger than any text."""

    counting: ThreadTurns = field(
        default_factory=partial(ThreadTurns, 1, MAX_WAITING, "bodies wait to be counted")
    )

    async def taken(self, scope: Scope, receive: Receive) -> Receive:
        """Read a request's body; return a `receive` from which an app reads it again, without
        the fields that are an operator's.

        Raises InvalidRequest for more values than any client sends, and for what is no JSON
        object; Overloaded, or the errors of `read_body`: TooLarge for more text than the
        context holds.
        """
        if is_open(scope["path"]):  # vLLM reads no body there, and no key is needed
            return receive
        request = Request(scope, receive)
        is_json = not request.headers.get("content-type", "").lower().startswith(_NO_JSON)
        is_text = is_json and (not self.takes_media or scope["path"].endswith("/tokenize"))
        limit_bytes = body_limit_bytes(self.context_tokens) if is_text else None
        body = await read_body(request, limit_bytes)
        if is_json and len(body) > SMALL_BYTES:
            tenant = scope["state"]["context"].tenant
            body = await self.counting.run(tenant, partial(_checked, body))
        elif is_json and body:
            body = without_operators(body)
        unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return unread.pop() if unread else await receive()

        return again


def _checked(body: bytes) -> bytes:
    check_structure(body)
    return without_operators(body)
