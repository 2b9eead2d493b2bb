"""Reads whole answers of a verifier, up to a size: it may send more than this machine holds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Final

import httpx

Buffer = bytes | bytearray | memoryview

MAX_ANSWER_BYTES: Final = 1 << 20
"""The most bytes of an answer that is no stream and no tokenizer. The longest are facts with
1,024 stop tokens and 256 features."""


async def ask(
    client: httpx.AsyncClient,
    method: str,
    path: str,
    within_s: float,
    *,
    most_bytes: int = MAX_ANSWER_BYTES,
    headers: Mapping[str, str] | None = None,
) -> httpx.Response:
    """Return the whole answer to a request without a body. Raises httpx.TransportError."""
    request = client.stream(method, path, headers=headers, timeout=None)
    try:
        async with asyncio.timeout(within_s), request as response:
            return await whole(response, most_bytes)
    except TimeoutError as error:
        raise httpx.ReadTimeout("no answer") from error


async def whole(response: httpx.Response, most_bytes: int = MAX_ANSWER_BYTES) -> httpx.Response:
    """Return an answer with all of its body, and close it.

    The bytes are taken as they are: unpacked, a few could become many. The caller limits the
    time. Raises httpx.TransportError, also where the body is longer.
    """
    try:
        content = await within(most_bytes, response.aiter_raw())
    finally:
        await response.aclose()
    kept = {name: response.headers[name] for name in _KEPT if name in response.headers}
    return httpx.Response(response.status_code, headers=kept, content=content)


_KEPT: Final = ("retry-after",)
"""The headers that are read of such an answer."""


async def within(most_bytes: int, pieces: AsyncIterator[Buffer]) -> bytes:
    """Return the pieces of a body. Raises httpx.TransportError where they are longer."""
    body = bytearray()
    async for piece in pieces:
        body += piece
        if len(body) > most_bytes:
            raise httpx.RemoteProtocolError(f"an answer of more than {most_bytes} bytes")
    return bytes(body)
