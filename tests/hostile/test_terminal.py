"""What a service or a model says to a terminal."""

from __future__ import annotations

import io
import json
import time

import httpx
import pytest
from rich.console import Console

from picospec.answer_progress import AnswerProgress
from picospec.answer_view import answer
from picospec.chat_client import ChatError, Turn, first_model
from picospec.findings import Finding, report

ORDERS = "\x1b]52;c;aGk=\x07\x1b[2J\x9b2J\x00\x08\x7f\r"
"""Fill the clipboard, clear the screen, by 7 and by 8 bits, and what moves the cursor."""


def service(*, status: int = 200, name: str = "m") -> httpx.AsyncClient:
    said = [
        {"choices": [{"delta": {"reasoning_content": f"a{ORDERS}b"}}]},
        {"choices": [], "speculation": {"event": "chain", "text": f"c{ORDERS}d"}},
        {"choices": [{"delta": {"content": f"e\t{ORDERS}f\ng"}}]},
    ]
    events = "".join(f"data: {json.dumps(event)}\n\n" for event in said) + "data: [DONE]\n\n"
    refusal = {"error": {"message": f"h{ORDERS}i"}}

    def respond(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": name, "owned_by": "picospec"}]})
        return httpx.Response(
            status, **({"text": events} if status == 200 else {"json": refusal})
        )

    return httpx.AsyncClient(transport=httpx.MockTransport(respond), base_url="http://edge")


def orders(text: str) -> set[str]:
    """The control characters of a text."""
    return {c for c in text if not c.isprintable()} - {"\n", "\t"}


async def test_an_answer_gives_the_terminal_no_orders() -> None:
    console = Console(file=io.StringIO(), width=60)

    async with service() as client:
        await answer(client, [Turn("user", "hi")], console, AnswerProgress(time.monotonic))

    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert {"a", "b", "e", "f", "g"} <= set(shown)
    assert not orders(shown)


async def test_an_error_and_a_models_name_give_the_terminal_no_orders() -> None:
    console = Console(file=io.StringIO(), width=60)
    async with service(status=400, name=f"m{ORDERS}") as client:
        with pytest.raises(ChatError) as raised:
            await answer(client, [Turn("user", "hi")], console, AnswerProgress(time.monotonic))
        model = await first_model(client)

    assert not orders(f"{raised.value}{model.id}")


def test_a_finding_gives_the_terminal_no_orders() -> None:
    console = Console(file=io.StringIO(), width=200)

    report([Finding(f"a{ORDERS}", False, f"b{ORDERS}", f"[red]c{ORDERS}")], console)

    assert not orders(console.file.getvalue())  # type: ignore[attr-defined]
