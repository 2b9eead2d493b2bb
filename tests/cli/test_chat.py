"""A conversation with a service that a mock transport plays."""

from __future__ import annotations

import io
from collections.abc import Callable

import httpx
import pytest
from rich.console import Console

from cli.chat import answer
from cli.chat_client import ChatError, Turn, stream_answer

TURNS = (Turn("user", "hi"),)


def event(content: str) -> str:
    return f'data: {{"choices": [{{"delta": {{"content": "{content}"}}}}]}}\n\n'


def service(*events: str, status: int = 200) -> httpx.AsyncClient:
    """A client of a service that answers every chat with these events."""

    def respond(request: httpx.Request) -> httpx.Response:
        match request.url.path:
            case "/v1/models":
                return httpx.Response(200, json={"object": "list", "data": [{"id": "m"}]})
            case "/metrics":
                return httpx.Response(200, text="picospec:edge_link_rtt_seconds 0.05\n")
            case _:
                return httpx.Response(status, text="".join(events))

    transport = httpx.MockTransport(respond)
    return httpx.AsyncClient(transport=transport, base_url="http://edge")


async def test_an_answer_is_the_pieces_of_its_stream() -> None:
    console = Console(file=io.StringIO(), width=60)
    events = (event(""), event("Hello\\nwor"), event("ld"), "data: [DONE]\n\n")

    async with service(*events) as client:
        text = await answer(client, TURNS, console)

    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert text == "Hello\nworld"
    assert "Hello" in shown
    assert "world" in shown
    assert "RTT 50 ms" in shown


@pytest.mark.parametrize(
    ("client", "reason"),
    [
        (lambda: service(event("half")), "ended before it was complete"),
        (lambda: service('data: {"error": {"message": "no verifier"}}\n\n'), "no verifier"),
        (lambda: service('{"error": {"message": "wrong key"}}', status=401), "wrong key"),
        (lambda: service("<html>", status=502), "answered 502"),
    ],
)
async def test_an_answer_that_fails_says_why(
    client: Callable[[], httpx.AsyncClient], reason: str
) -> None:
    async with client() as used:
        with pytest.raises(ChatError, match=reason):
            async for _ in stream_answer(used, "m", TURNS):
                pass


async def test_a_service_that_is_not_there_is_a_clear_error() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    transport = httpx.MockTransport(refuse)
    async with httpx.AsyncClient(transport=transport, base_url="http://edge") as client:
        with pytest.raises(ChatError, match="cannot be reached"):
            await answer(client, TURNS, Console(file=io.StringIO()))


async def test_the_whole_conversation_is_sent() -> None:
    bodies: list[bytes] = []

    def respond(request: httpx.Request) -> httpx.Response:
        bodies.append(request.content)
        return httpx.Response(200, text="data: [DONE]\n\n")

    turns = (Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"))
    transport = httpx.MockTransport(respond)
    async with httpx.AsyncClient(transport=transport, base_url="http://edge") as client:
        pieces = [piece async for piece in stream_answer(client, "m", turns)]

    assert pieces == []
    assert b'"messages":[{"role":"user","content":"a"},{"role":"assistant"' in bodies[0]
