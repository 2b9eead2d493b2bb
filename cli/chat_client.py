"""Asks an OpenAI-compatible service for one streamed chat answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress

import httpx
import msgspec


class ChatError(Exception):
    """The service cannot be reached, or answered with an error; the text says which."""


class Turn(msgspec.Struct, frozen=True):
    role: str
    content: str


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta


class _Error(msgspec.Struct):
    message: str


class _Chunk(msgspec.Struct):
    choices: Sequence[_Choice] = ()
    error: _Error | None = None


def client_of(url: str, key: str | None, silence_s: float = 5.0) -> httpx.AsyncClient:
    """Return a client that shows the key. silence_s: its limit on the time without a byte."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    timeout = httpx.Timeout(silence_s, connect=5.0)
    return httpx.AsyncClient(base_url=url, headers=headers, timeout=timeout, trust_env=False)


async def model_name(client: httpx.AsyncClient) -> str:
    """Return the name of the first model the service offers."""
    try:
        response = await client.get("/v1/models")
    except httpx.TransportError as error:
        raise ChatError(f"{client.base_url} cannot be reached: {error}") from error
    if response.status_code != 200:
        raise ChatError(_reason(response))
    return str(response.json()["data"][0]["id"])


async def stream_answer(
    client: httpx.AsyncClient, model: str, turns: Sequence[Turn]
) -> AsyncGenerator[str]:
    """Yield the answer's text as it comes. Closing the generator cancels the answer."""
    body = msgspec.json.encode({"model": model, "messages": turns, "stream": True})
    headers = {"content-type": "application/json"}
    request = client.stream("POST", "/v1/chat/completions", content=body, headers=headers)
    try:
        async with request as response:
            if response.status_code != 200:
                await response.aread()
                raise ChatError(_reason(response))
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    return
                if line.startswith("data: "):
                    yield _text(line.removeprefix("data: "))
    except httpx.TransportError as error:
        raise ChatError(f"the connection broke: {error}") from error
    raise ChatError("the answer ended before it was complete")


def _text(event: str) -> str:
    chunk = msgspec.json.decode(event, type=_Chunk)
    if chunk.error is not None:
        raise ChatError(chunk.error.message)
    return "".join(choice.delta.content or "" for choice in chunk.choices)


def _reason(response: httpx.Response) -> str:
    with suppress(msgspec.MsgspecError):
        if error := msgspec.json.decode(response.content, type=_Chunk).error:
            return error.message
    return f"{response.url} answered {response.status_code}"
