"""What strangers and models do to a log, to headers and to a terminal."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Mapping, Sequence
from urllib.parse import quote

import httpx
import pytest
import structlog
from rich.console import Console
from structlog.testing import capture_logs

from gateway.hosting import logs
from gateway.log_limits import EVERY_S, MAX_CHARACTERS
from picospec.answer_progress import AnswerProgress
from picospec.answer_view import answer
from picospec.chat_client import ChatError, Turn, first_model
from picospec.findings import Finding, report
from tests.gateway.scripted import ScriptedEngine, SetClock, client_of, make_app

KEY = {"authorization": "Bearer right"}
LARGE = {"content-length": "9999"}
ODD = "\x1b]0;pwned\x07\x1b[2J\r\n2026 [info] \x9b2J\u202e"


@pytest.mark.parametrize(
    ("method", "path", "headers", "settings", "status"),
    [
        ("GET", "/v1/models", {}, {"api_keys": ["right"]}, 401),
        ("POST", "/", {}, {"api_keys": ["right"]}, 405),
        ("GET", "/nothing", {}, {}, 404),
        ("PUT", "/v1/models", {}, {}, 405),
        ("POST", "/v1/completions", LARGE, {"body_limit_bytes": 1024}, 413),
    ],
)
async def test_requests_without_a_key_share_a_line_a_minute_that_counts_them(
    method: str, path: str, headers: Mapping[str, str], settings: dict[str, object], status: int
) -> None:
    clock = SetClock()
    async with client_of(make_app(ScriptedEngine(), clock=clock, **settings)) as client:
        with capture_logs() as lines:
            for wait_s in (0.0,) * 50 + (EVERY_S,):
                clock.now += wait_s
                answer = await client.request(method, path, headers=headers)
                assert answer.status_code == status

    assert [(line["status"], line["refused"]) for line in lines] == [(status, 1), (status, 50)]


@pytest.mark.parametrize("form", ["console", "json"])
async def test_a_path_is_cut_and_steers_no_terminal(
    form: logs.LogFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    logs.configure(form)
    try:
        async with client_of(make_app(ScriptedEngine())) as client:
            await client.get(f"/{quote(ODD)}{'x' * 60_000}")
        try:
            raise RuntimeError(ODD)
        except RuntimeError as bug:
            structlog.get_logger("x").error("failed", reason=ODD, exc_info=bug)
        structlog.get_logger("x").error("failed", traceback=f"one\n{ODD}")
    finally:
        structlog.reset_defaults()
    request, *others = written.getvalue().splitlines()

    assert ("one\n" if form == "console" else r"one\n") in written.getvalue()
    assert "pwned" in request
    assert len(request) < 3 * MAX_CHARACTERS + 400
    assert all(line.isprintable() for line in (request, *others))


@pytest.mark.parametrize("path", ["/", "/v1/models", "/nothing", "/metrics", "/health"])
@pytest.mark.parametrize("headers", [KEY, {}])
async def test_no_answer_is_taken_for_a_page_that_is_none(
    path: str, headers: Mapping[str, str]
) -> None:
    async with client_of(make_app(ScriptedEngine(), api_keys=["right"])) as client:
        answer = await client.get(path, headers=headers)

    assert answer.headers.get_list("x-content-type-options") == ["nosniff"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("host", "a")], 200),
        ([("host", "a"), ("host", "b")], 400),
        ([("host", "a"), ("authorization", "Bearer right")], 200),
        ([("host", "a"), *[("authorization", "Bearer right")] * 2], 400),
        ([("host", "a"), *[("x-api-key", "right")] * 2], 400),
    ],
)
async def test_a_header_by_which_a_request_is_let_in_is_there_once(
    headers: Sequence[tuple[str, str]], status: int
) -> None:
    async with client_of(make_app(ScriptedEngine())) as client:
        request = httpx.Request("GET", "http://gateway/v1/models", headers=headers)
        answer = await client.send(request)

    assert answer.status_code == status


@pytest.mark.parametrize("headers", [[], [(b"host", b"")]])
async def test_http_1_1_without_a_host_is_refused(headers: list[tuple[bytes, bytes]]) -> None:
    sent: list[Mapping[str, object]] = []
    scope = {
        "type": "http", "http_version": "1.1", "method": "GET", "path": "/v1/models",
        "headers": headers, "query_string": b"", "root_path": "",
    }  # fmt: skip

    async def receive() -> Mapping[str, object]:
        return {"type": "http.request"}

    async def send(message: Mapping[str, object]) -> None:
        sent.append(message)

    await make_app(ScriptedEngine())(scope, receive, send)  # type: ignore[arg-type]

    assert sent[0]["status"] == 400


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
