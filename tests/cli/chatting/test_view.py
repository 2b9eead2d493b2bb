"""A conversation with a service that a mock transport plays."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from rich.live import Live

from picospec.cli.chat import AnswerView, answer, coloured
from picospec.cli.chat_client import (
    ChatError,
    Chunk,
    Model,
    Progress,
    Speculation,
    Turn,
    first_model,
    stream_answer,
)
from tests.cli.screen import Screen

TURNS = (Turn("user", "hi"),)
MODEL = Model("m", "picospec")
DONE = "data: [DONE]\n\n"


def event(content: str, **report: object) -> str:
    """Return a chunk with content, and with what it tells of speculation."""
    choices = [{"delta": {"content": content}}] if content or not report else []
    said = {"speculation": report} if report else {}
    return f"data: {json.dumps({'choices': choices, **said})}\n\n"


def service(
    *events: str,
    status: int = 200,
    models: str = '{"data": [{"id": "m", "owned_by": "picospec"}]}',
    asked: list[dict[str, Any]] | None = None,
) -> httpx.AsyncClient:
    """A client of a service that answers every chat with these events, and notes the bodies."""

    def respond(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, text=models)
        if asked is not None:
            asked.append(json.loads(request.content))
        return httpx.Response(status, text="".join(events))

    transport = httpx.MockTransport(respond)
    return httpx.AsyncClient(transport=transport, base_url="http://edge")


async def test_an_answer_is_the_pieces_of_its_stream() -> None:
    screen = Screen()
    link = event("", event="link", rtt_ms=50.0)
    events = (event(""), event("Hello\nwor"), link, event("ld"), DONE)

    async with service(*events) as client:
        text = await answer(client, TURNS, screen, Progress(time.monotonic))

    assert text == "Hello\nworld"
    for part in ("Hello", "world", "RTT 50 ms"):
        assert part in screen.text


@pytest.mark.parametrize(
    ("client", "reason"),
    [
        (lambda: service(event("half")), "ended before it was complete"),
        (lambda: service('data: {"error": {"message": "no verifier"}}\n\n'), "no verifier"),
        (lambda: service('{"error": {"message": "wrong key"}}', status=401), "wrong key"),
        (lambda: service("<html>", status=502), "answered 502"),
        (lambda: service('{"error": "no such model"}', status=404), "no such model"),
        (lambda: service('data: {"error": "out of memory"}\n\n'), "out of memory"),
        (lambda: service("data: <html>\n\n"), "no OpenAI-compatible service"),
        (lambda: service('data: {"choices": [{"delta": 1}]}\n\n'), "OpenAI-compatible"),
    ],
)
async def test_an_answer_that_fails_says_why(
    client: Callable[[], httpx.AsyncClient], reason: str
) -> None:
    async with client() as used:
        with pytest.raises(ChatError, match=reason):
            async for _ in stream_answer(used, MODEL, TURNS):
                pass


@pytest.mark.parametrize("body", ["<html>", '{"data": []}', '{"data": null}', "[]"])
async def test_a_service_without_a_list_of_models_is_a_clear_error(body: str) -> None:
    async with service(models=body) as client:
        with pytest.raises(ChatError, match="no OpenAI-compatible service"):
            await first_model(client)


async def test_what_other_services_leave_empty_is_no_error() -> None:
    models = '{"data": [{"id": "m", "owned_by": null}]}'
    events = ('data: {"choices": null}\n\n', event("hi"), DONE)

    async with service(*events, models=models) as client:
        assert await answer(client, TURNS, Screen(), Progress(time.monotonic)) == "hi"


async def test_reasoning_is_shown_above_the_answer_and_is_no_part_of_it() -> None:
    screen = terminal()
    delta = {"choices": [{"delta": {"reasoning_content": "Let me see."}}]}

    async with service(f"data: {json.dumps(delta)}\n\n", event("Yes."), DONE) as client:
        text = await answer(client, TURNS, screen, Progress(time.monotonic))

    assert text == "Yes."
    assert "\x1b[2mLet me see.\x1b[0m\n" in screen.text


@pytest.mark.parametrize(
    ("owner", "steady"), [("picospec", True), ("picospec", False), ("", True)]
)
async def test_only_a_service_that_tells_of_speculation_is_asked_to_and_steadily_if_wanted(
    owner: str, steady: bool
) -> None:
    asked: list[dict[str, Any]] = []

    async with service(DONE, asked=asked) as client:
        [_ async for _ in stream_answer(client, Model("m", owner), TURNS, steady=steady)]

    expected = {"include_speculation": True, "steady": steady} if owner else None
    assert asked[0].get("stream_options") == expected


def terminal() -> Screen:
    return Screen(force_terminal=True, color_system="standard", legacy_windows=False)


def drawn(screen: Screen, *chunks: Chunk) -> str:
    """Return what is written for these chunks, without what ends the view."""
    with Live(console=screen, auto_refresh=False) as live:
        view = AnswerView(live)
        for chunk in chunks:
            view.add(chunk, "fast")
        return screen.text


def chain(text: str, *, broken: bool = False) -> Chunk:
    return Chunk("", Speculation("chain", text=text, broken=broken))


def test_each_part_of_a_text_has_the_colour_of_its_origin() -> None:
    text = coloured("abcdef", [(2, "draft"), (1, "target"), (2, "lookup"), (1, "later")])

    assert [(span.start, span.end, span.style) for span in text.spans] == [
        (0, 2, "green"),
        (3, 5, "blue"),
    ]


def test_the_chain_runs_ahead_until_the_text_has_come_there() -> None:
    committed = Chunk(" cat", Speculation(spans=[(4, "draft")]))

    shown = drawn(terminal(), Chunk("The"), chain(" cat sat\non"), committed)

    before, _, after = shown.partition("\x1b[32m cat")
    assert "\x1b[2;3m cat sat" in before
    assert "\x1b[2;3m sat" in after
    assert "on" not in shown


@pytest.mark.parametrize("last", [chain("", broken=True), Chunk(" dog")])
def test_a_chain_that_was_wrong_is_gone(last: Chunk) -> None:
    screen = terminal()
    drawn(screen, Chunk("The"), chain(" cat"))
    screen.file = io.StringIO()

    assert " cat" not in drawn(screen, Chunk("The"), last)


async def test_where_no_terminal_is_there_are_no_colours_and_no_chain() -> None:
    screen = Screen()
    spans = event("ab", spans=[[1, "draft"], [1, "target"]], tokens={"draft": 1, "target": 1})
    ahead = event("", event="chain", text="zz", tokens=1)

    async with service(spans, ahead, DONE) as client:
        await answer(client, TURNS, screen, Progress(time.monotonic))

    assert screen.text.split() == ["ab"]
