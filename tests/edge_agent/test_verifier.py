"""A verifier as its edge uses it: connection, facts, readiness, and what its errors become."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import nullcontext
from threading import get_ident
from types import MappingProxyType
from typing import Any, Final

import pytest
from structlog.testing import capture_logs

from edge_agent.link.connection import Connection
from edge_agent.link.errors import LinkDown, VerifierResponse, from_answer, unreachable
from edge_agent.link.known_verifiers import Event
from edge_agent.link.posts import INLINE_TOKENS
from edge_agent.link.session import EdgeSession
from edge_agent.link.verifier import IDLE_S, Verifier
from edge_agent.metrics import EdgeMetrics
from gateway.errors import (
    ApiError,
    Draining,
    EngineFault,
    Forbidden,
    InvalidRequest,
    NotFound,
    Overloaded,
    RateLimited,
    TooLarge,
    Unavailable,
)
from gateway.http import error_response
from gateway.tenants import SALT_SECRET
from gateway.tracing import NO_SPAN, Span
from speculation import wire
from speculation.messages import Message, Open
from tests.fakes.world import RTT_S, WORDS, World
from tests.guards import GUARD_S
from tests.verifier.fake_target import opening
from tests.virtual_time import compute

NOWHERE: Final = "http://127.0.0.1:9"
"""Nothing listens there."""


def verifier_at(url: str, metrics: EdgeMetrics) -> Verifier:
    return Verifier(Connection(url), metrics)


def test_nobody_can_guess_an_address_from_its_label(
    metrics: EdgeMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = set[str]()
    for secret in ("a", "b"):
        monkeypatch.setenv(SALT_SECRET, secret)
        labels |= {verifier_at("http://10.0.0.1:9", metrics).label for _ in range(2)}

    assert len(labels) == 2


async def test_an_answer_from_before_a_loss_does_not_say_that_a_verifier_is_back(
    metrics: EdgeMetrics,
) -> None:
    verifier = verifier_at(NOWHERE, metrics)
    begun = time.monotonic()
    verifier.answered(begun, Event.IS_READY)
    compute(1.0)

    verifier.note(Event.LOST)
    verifier.answered(begun, Event.IS_READY)
    assert not verifier.is_ready

    verifier.answered(time.monotonic() + 1, Event.IS_READY)
    assert verifier.is_ready


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with World() as world:
        yield world


@pytest.mark.system
async def test_no_proxy_of_the_environment_is_asked_for_what_it_cannot_pass_on(
    metrics: EdgeMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.settimeout(GUARD_S)
        for name in ("HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")

        with pytest.raises(ApiError, match="refused"):
            await verifier_at(NOWHERE, metrics).facts()
        elsewhere = verifier_at("https://192.0.2.1:9000", metrics)
        asking = asyncio.create_task(elsewhere.facts())
        asked, _ = await asyncio.to_thread(proxy.accept)
        with asked:
            head = await asyncio.to_thread(asked.recv, 7)
        with pytest.raises(ApiError):
            await asking

    assert head == b"CONNECT"


@pytest.mark.system
async def test_a_verifier_that_nobody_reaches_is_unavailable_at_once_and_logged_once(
    metrics: EdgeMetrics,
) -> None:
    verifier = verifier_at(NOWHERE, metrics)

    with capture_logs() as logs:
        for _ in range(2):
            with pytest.raises(Unavailable, match=rf"no verifier answers at {NOWHERE}"):
                await verifier.facts()
    with pytest.raises(Unavailable, match="connection refused"):
        await follow(verifier, opening())

    assert [(each["event"], each["url"]) for each in logs] == [
        ("verifier unreachable", NOWHERE)
    ]


@pytest.mark.parametrize("idle", [False, True])
async def test_an_idle_connection_that_carries_nothing_is_replaced_before_it_is_used(
    world: World, idle: bool
) -> None:
    connection = world.verifiers.current.connection
    client = connection.client
    world.processes[0].link.half_open()
    await asyncio.sleep(IDLE_S + (1.0 if idle else -1.0))

    await world.verifiers.facts()
    await world.verifiers.awake()

    assert (connection.client is not client) == idle


@pytest.mark.parametrize("event", [Event.LOST, Event.DRAINS])
def test_requests_apart_leave_the_connection_to_a_verifier_that_is_lost(
    metrics: EdgeMetrics, event: Event
) -> None:
    connection, proxy_connection = (Connection(NOWHERE) for _ in range(2))
    verifier, client = Verifier(connection, metrics, proxy_connection), proxy_connection.client

    verifier.note(Event.IS_READY)
    assert proxy_connection.client is client
    verifier.note(event)

    assert proxy_connection.client is None


async def follow(verifier: Verifier, asked: Open, span: Span = NO_SPAN) -> None:
    """Take all messages of a session. span: of its opening."""
    async for _ in EdgeSession(verifier, asked, spans=(NO_SPAN, span)).events():
        pass


async def test_facts_are_fetched_once_for_all_who_wait_for_them_and_the_round_trip_is_measured(
    world: World, metrics: EdgeMetrics
) -> None:
    (process,) = world.processes
    verifier, path = verifier_at(process.url, metrics), "GET /v1/model-facts"
    before = process.link.requests[path]

    left = asyncio.create_task(verifier.facts())
    await asyncio.sleep(0)
    asked = [asyncio.create_task(verifier.facts()) for _ in range(20)]
    await asyncio.sleep(0)
    left.cancel()
    facts = [*await asyncio.gather(*asked), await verifier.facts()]

    assert {each.model for each in facts} == {"fake"}
    assert process.link.requests[path] == before + 1
    assert verifier.rtt_s == pytest.approx(RTT_S, rel=0.3)


class RecordingSpan:
    """A Span, and the codes that it was ended with."""

    headers = MappingProxyType({})

    def __init__(self) -> None:
        self.ended: list[str | None] = []

    def end(self, error: str | None = None) -> None:
        self.ended.append(error)


async def test_a_span_ends_with_the_code_of_what_kept_the_session_from_opening(
    world: World,
) -> None:
    span: Any = RecordingSpan()
    world.processes[0].is_full = True

    with pytest.raises(Overloaded, match="all slots are taken"):
        await follow(world.verifiers.current, opening(vocabulary=WORDS.digest), span)

    assert span.ended[0] == "overloaded"


@pytest.mark.system
@pytest.mark.parametrize(
    ("tokens", "by_a_thread"), [(INLINE_TOKENS, False), (INLINE_TOKENS + 1, True)]
)
async def test_a_thread_encodes_long_texts_one_after_the_other(
    metrics: EdgeMetrics, monkeypatch: pytest.MonkeyPatch, tokens: int, by_a_thread: bool
) -> None:
    steps, encode = list[tuple[str, bool]](), wire.encode

    def noted(message: Message) -> bytes:
        steps.append(("begin", get_ident() != loops))
        time.sleep(0.01)
        steps.append(("end", get_ident() != loops))
        return encode(message)

    monkeypatch.setattr(wire, "encode", noted)
    loops, long = get_ident(), opening(prompt=(1,) * tokens)
    each = (follow(verifier, long) for verifier in [verifier_at(NOWHERE, metrics)] * 3)
    await asyncio.gather(*each, return_exceptions=True)

    assert steps == [("begin", by_a_thread), ("end", by_a_thread)] * 3


async def test_a_text_that_no_frame_can_carry_is_too_large(metrics: EdgeMetrics) -> None:
    long = opening(prompt=(1 << 20,) * 1_500_000)

    with pytest.raises(TooLarge, match="more than a session can begin with"):
        await follow(verifier_at(NOWHERE, metrics), long)


async def test_a_verifier_that_is_closed_before_it_is_asked_is_unavailable(
    metrics: EdgeMetrics,
) -> None:
    verifier = verifier_at(NOWHERE, metrics)
    waiting = asyncio.create_task(verifier.facts())
    await asyncio.sleep(0)  # the fetch has its task, which has not begun

    await verifier.close()

    with pytest.raises(Unavailable, match="used no more"):
        await waiting


# --- what becomes of errors of the network, and of a verifier that turns the edge away


async def test_a_sessions_name_is_in_no_error_that_is_shown() -> None:
    refused = Connection(NOWHERE)
    nowhere = Connection("http://no-such-host.invalid")
    for connection in (refused, nowhere):
        with pytest.raises(LinkDown) as raised:
            await connection.post("name-of-it", b"", {})

        assert "name-of-it" not in str(raised.value)

    quoted = OSError("error sending request for url (http://h/v1/speculate/name-of-it/drafts)")
    assert "/v1/speculate/*/drafts" in str(unreachable("http://h", quoted))


@pytest.mark.parametrize(
    ("status", "code", "error", "expected"),
    [
        (429, "overloaded", Overloaded, "overloaded"),
        (409, "vocabulary_mismatch", EngineFault, "vocabulary_mismatch"),
        (409, "identity_mismatch", Unavailable, "identity_mismatch"),
        (404, "model_not_found", NotFound, "model_not_found"),
        (400, "invalid_value", InvalidRequest, "invalid_value"),
        (401, "invalid_api_key", EngineFault, "verifier_unauthorized"),
        (503, "loading", Unavailable, "verifier_unavailable"),
        (503, "draining", Draining, "draining"),
        (413, "too_large", TooLarge, "too_large"),
    ],
)
def test_what_a_verifier_answers_is_an_error_with_the_reason(
    status: int, code: str, error: type[ApiError], expected: str
) -> None:
    body = {"error": {"message": "no", "type": "x", "param": "p", "code": code}}

    found = from_answer(VerifierResponse(status, json.dumps(body).encode(), ""))

    assert type(found) is error
    assert found.error_code == expected


def answer(error: ApiError) -> VerifierResponse:
    """The verifier's answer of that error."""
    sent = error_response(error)
    return VerifierResponse(
        sent.status_code, bytes(sent.body), sent.headers.get("retry-after", "")
    )


def test_a_limit_of_the_edges_key_is_told_to_its_client_with_when_to_come_back() -> None:
    error = from_answer(answer(RateLimited("this key may have 2 answers", retry_after_s=7)))

    assert isinstance(error, Overloaded)
    assert (error.retry_after_s, error.message) == (7, "this key may have 2 answers")


def test_a_verifier_that_does_not_go_by_this_name_does_not_refuse_the_key() -> None:
    error = from_answer(answer(Forbidden("this Host is not one of the service's names")))

    assert isinstance(error, EngineFault)
    assert error.error_code == "host_not_allowed"
    assert "PICOSPEC_VERIFIER_KEY" not in error.message


@pytest.mark.parametrize(
    ("status", "fails"), [(204, False), (404, False), (403, True), (500, True)]
)
async def test_a_verifier_that_does_not_forget_its_answers_is_reported(
    metrics: EdgeMetrics, monkeypatch: pytest.MonkeyPatch, status: int, fails: bool
) -> None:
    asked: list[str] = []

    async def ask(method: str, path: str, **_: object) -> VerifierResponse:
        asked.append(f"{method} {path}")
        return VerifierResponse(status, b"")

    verifier = verifier_at(NOWHERE, metrics)
    monkeypatch.setattr(verifier.connection, "ask", ask)

    with pytest.raises(Unavailable) if fails else nullcontext():
        await verifier.forget_answers("a b")

    assert asked == ["DELETE /v1/picospec/pool?cache_salt=a+b"]


async def test_every_request_without_an_answer_is_followed_by_one_elsewhere(
    world: World,
) -> None:
    link, connection = world.processes[0].link, world.verifiers.current.connection
    link.stop()
    counts = []

    for _ in range(4):
        with pytest.raises(LinkDown):
            await connection.ask("POST", "/", within_s=0.3)
        counts.append(link.opened)
    link.stop(False)

    assert counts == [1, 2, 3, 4]
