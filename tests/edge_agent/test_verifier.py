"""A session with a verifier that cuts, answers with errors and dies."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from contextlib import nullcontext, suppress
from dataclasses import replace
from threading import get_ident
from types import MappingProxyType

import pytest
from structlog.testing import capture_logs

from edge_agent.link import verifier as verifying
from edge_agent.link.connection import Connection
from edge_agent.link.errors import LinkDown, VerifierResponse, from_answer, unreachable
from edge_agent.link.known_verifiers import Event
from edge_agent.link.posts import INLINE_TOKENS
from edge_agent.link.session import EdgeSession
from edge_agent.link.verifier import Verifier
from edge_agent.link.verifiers import Verifiers
from edge_agent.metrics import EdgeMetrics
from gateway.background_work import running_alongside
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
from gateway.tracing import NO_SPAN
from picospec.link import Link
from speculation import wire
from speculation.messages import (
    Commit,
    Down,
    Draft,
    Finish,
    Message,
    Open,
    Sampling,
)
from tests.edge_agent.fake_verifier import target_at
from tests.edge_agent.processes import Process, seen
from tests.guards import GUARD_S
from tests.virtual_time import compute


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
    verifier = verifier_at("http://127.0.0.1:9", metrics)
    begun = time.monotonic()
    verifier.answered(begun, Event.IS_READY)
    compute(1.0)

    verifier.note(Event.LOST)
    verifier.answered(begun, Event.IS_READY)
    assert not verifier.is_ready

    verifier.answered(time.monotonic() + 1, Event.IS_READY)
    assert verifier.is_ready


@pytest.fixture
async def verifier(process: Process, metrics: EdgeMetrics) -> Verifier:
    return verifier_at(process.url, metrics)


@pytest.mark.system
async def test_no_proxy_of_the_environment_is_asked_for_what_it_cannot_pass_on(
    process: Process, metrics: EdgeMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.settimeout(GUARD_S)
        for name in ("HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")

        await verifier_at(process.url, metrics).facts()
        elsewhere = verifier_at("https://192.0.2.1:9000", metrics)
        asking = asyncio.create_task(elsewhere.facts())
        asked, _ = await asyncio.to_thread(proxy.accept)
        with asked:
            head = await asyncio.to_thread(asked.recv, 7)
        with pytest.raises(ApiError):
            await asking

    assert head == b"CONNECT"


@pytest.mark.system
async def test_a_verifier_that_nobody_reaches_is_logged_once(metrics: EdgeMetrics) -> None:
    verifier = verifier_at("http://127.0.0.1:1", metrics)

    with capture_logs() as logs:
        for _ in range(2):
            with pytest.raises(ApiError):
                await verifier.facts()

    assert [(each["event"], each["url"]) for each in logs] == [
        ("verifier unreachable", "http://127.0.0.1:1")
    ]


@pytest.mark.system
@pytest.mark.parametrize("idle", [False, True])
async def test_an_idle_connection_that_carries_nothing_is_replaced_before_it_is_used(
    process: Process, metrics: EdgeMetrics, monkeypatch: pytest.MonkeyPatch, idle: bool
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(verifying, "now_with_sleep", lambda: now)
    async with Link(("127.0.0.1", process.port)) as link:
        verifiers = Verifiers(
            [verifier := verifier_at(f"http://127.0.0.1:{link.port}", metrics)], metrics, 30.0
        )
        await verifiers.facts()
        client, old = verifier.connection.client, set(link.connections)
        for connection in old:
            connection.stall(True)
        now += verifying.IDLE_S + idle

        await verifiers.facts()
        await verifiers.awake()

        assert (verifier.connection.client is not client) == idle
        if idle:
            assert isinstance((await everything(verifier, request()))[-1], Finish)


@pytest.mark.parametrize("event", [Event.LOST, Event.DRAINS])
def test_requests_apart_leave_the_connection_to_a_verifier_that_is_lost(
    metrics: EdgeMetrics, event: Event
) -> None:
    address = "http://127.0.0.1:9"
    connection, proxy_connection = (Connection(address) for _ in range(2))
    verifier, client = Verifier(connection, metrics, proxy_connection), proxy_connection.client

    verifier.note(Event.IS_READY)
    assert proxy_connection.client is client
    verifier.note(event)

    assert proxy_connection.client is None


def request(model: str = "plain", max_tokens: int = 40) -> Open:
    return Open(model, "fake", (1, 2, 3), Sampling(), 5, max_tokens, (7,))


async def everything(verifier: Verifier, asked: Open) -> list[Down]:
    async with asyncio.timeout(GUARD_S):
        return [message async for message in EdgeSession(verifier, asked).events()]


def committed(messages: list[Down]) -> list[int]:
    """Tokens in order, each position once."""
    tokens: list[int] = []
    for message in messages:
        if isinstance(message, Commit):
            assert message.start <= len(tokens), "a gap"
            tokens[message.start : message.start + len(message.tokens)] = message.tokens
    return tokens


@pytest.mark.system
async def test_facts_are_fetched_once_and_the_round_trip_is_measured(
    verifier: Verifier,
) -> None:
    facts = await verifier.facts()

    assert facts.model == "plain"
    assert facts is await verifier.facts()
    assert verifier.rtt_s > 0.0


@pytest.mark.system
async def test_facts_are_fetched_once_for_all_who_wait_for_them(verifier: Verifier) -> None:
    before = (await seen(verifier.url))["told"]

    left = asyncio.create_task(verifier.facts())
    await asyncio.sleep(0)
    asked = [asyncio.create_task(verifier.facts()) for _ in range(20)]
    await asyncio.sleep(0)
    left.cancel()
    facts = await asyncio.gather(*asked)

    assert {each.model for each in facts} == {"plain"}
    assert (await seen(verifier.url))["told"] == before + 1


@pytest.mark.system
async def test_a_verifier_that_does_not_send_its_tokenizer_is_unavailable_in_time(
    metrics: EdgeMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "TOKENIZER_TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        up = verifier_at(f"http://127.0.0.1:{silent.getsockname()[1]}", metrics)
        async with asyncio.timeout(60):
            with pytest.raises(Unavailable):
                await up.tokenizer()


@pytest.mark.system
async def test_bytes_that_are_no_frames_are_a_fault(verifier: Verifier) -> None:
    with pytest.raises(EngineFault, match="broke the protocol"):
        await everything(verifier, request("garbage"))


class RecordingSpan:
    """A Span, and the codes that it was ended with."""

    headers = MappingProxyType({})

    def __init__(self) -> None:
        self.ended: list[str | None] = []

    def end(self, error: str | None = None) -> None:
        self.ended.append(error)


@pytest.mark.system
async def test_a_span_ends_with_the_code_of_what_kept_the_session_from_opening(
    verifier: Verifier,
) -> None:
    span = RecordingSpan()

    with pytest.raises(Draining, match="it is draining"):
        async for _ in EdgeSession(
            verifier, request("draining"), spans=(NO_SPAN, span)
        ).events():  # type: ignore[arg-type]
            pass

    assert span.ended[0] == "draining"


@pytest.mark.system
@pytest.mark.parametrize(
    ("tokens", "by_a_thread"), [(INLINE_TOKENS, False), (INLINE_TOKENS + 1, True)]
)
async def test_a_thread_encodes_long_texts_one_after_the_other(
    verifier: Verifier, monkeypatch: pytest.MonkeyPatch, tokens: int, by_a_thread: bool
) -> None:
    steps, encode = list[tuple[str, bool]](), wire.encode

    def noted(message: Message) -> bytes:
        if not isinstance(message, Open):
            return encode(message)
        steps.append(("begin", get_ident() != loops))
        time.sleep(0.01)
        steps.append(("end", get_ident() != loops))
        return encode(message)

    monkeypatch.setattr(wire, "encode", noted)
    loops, long = get_ident(), replace(request(), prompt=(1,) * tokens)
    await asyncio.gather(*(everything(verifier, long) for _ in range(3)))

    assert steps == [("begin", by_a_thread), ("end", by_a_thread)] * 3


async def test_a_text_that_no_frame_can_carry_is_too_large(verifier: Verifier) -> None:
    long = replace(request(), prompt=(1 << 20,) * 1_500_000)

    with pytest.raises(TooLarge, match="more than a session can begin with"):
        await everything(verifier, long)


@pytest.mark.system
async def test_drafts_arrive_even_when_a_post_fails(verifier: Verifier) -> None:
    session, messages = EdgeSession(verifier, request("flaky", max_tokens=41)), list[Down]()
    async with asyncio.timeout(GUARD_S), running_alongside(session.post()):
        session.send(Draft(0, 0, 0, tuple(target_at(i) for i in range(8))))
        session.send(Draft(0, 8, 8, tuple(target_at(i) for i in range(8, 16))))
        messages += [message async for message in session.events()]

    assert committed(messages) == [target_at(i) for i in range(41)]
    assert isinstance(messages[-1], Finish)
    assert messages[-1].totals.accepted > 0  # a busy host lets passes overtake some


async def test_drafts_of_an_older_epoch_that_still_wait_are_dropped(verifier: Verifier) -> None:
    session = EdgeSession(verifier, request())

    for position in range(100):
        session.send(Draft(0, position, 0, (1,)))
    session.send(Draft(1, 0, 0, (2,)))

    assert [m.epoch for m in session._posts._waiting] == [1]


async def test_a_verifier_that_is_closed_before_it_is_asked_is_unavailable(
    metrics: EdgeMetrics,
) -> None:
    verifier = verifier_at("http://127.0.0.1:9", metrics)
    waiting = asyncio.create_task(verifier.facts())
    await asyncio.sleep(0)  # the fetch has its task, which has not begun

    await verifier.close()

    with pytest.raises(Unavailable, match="used no more"):
        await waiting


@pytest.mark.system
async def test_no_verifier_is_unavailable_at_once(metrics: EdgeMetrics) -> None:
    verifier = verifier_at("http://127.0.0.1:9", metrics)

    with pytest.raises(Unavailable, match=r"no verifier answers at http://127\.0\.0\.1:9"):
        await verifier.facts()
    with pytest.raises(Unavailable, match="connection refused"):
        await everything(verifier, request())


# --- what becomes of errors of the network, and of a verifier that turns the edge away


async def test_a_sessions_name_is_in_no_error_that_is_shown() -> None:
    refused = Connection("http://127.0.0.1:9")
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
    verifier: Verifier, monkeypatch: pytest.MonkeyPatch, status: int, fails: bool
) -> None:
    asked: list[str] = []

    async def ask(method: str, path: str, **_: object) -> VerifierResponse:
        asked.append(f"{method} {path}")
        return VerifierResponse(status, b"")

    monkeypatch.setattr(verifier.connection, "ask", ask)

    with pytest.raises(Unavailable) if fails else nullcontext():
        await verifier.forget_answers("a b")

    assert asked == ["DELETE /v1/picospec/pool?cache_salt=a+b"]


# A connection that carries nothing is replaced by each request that it fails.

SETTINGS = b"\0\0\0\4\0\0\0\0\0"


@pytest.mark.system
async def test_every_request_without_an_answer_is_followed_by_one_elsewhere() -> None:
    connected = list[asyncio.StreamWriter]()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.append(writer)
        writer.write(SETTINGS)
        with suppress(OSError):
            await reader.read()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        connection = Connection(f"http://127.0.0.1:{port}")
        counts = []
        for _ in range(4):
            with pytest.raises(LinkDown):
                await connection.ask("POST", "/", within_s=0.3)
            counts.append(len(connected))
        for writer in connected:
            writer.close()

    assert counts == [1, 2, 3, 4]


class Drained(Connection):
    """Every answer is that the verifier drains; `made` counts the clients."""

    made = 0

    async def ask(self, *_: object, **__: object) -> VerifierResponse:
        if self.client is None:
            self.made += 1
        self._made()
        return VerifierResponse(503, b'{"error":{"message":"bye","code":"draining"}}')


async def test_every_answer_that_it_drains_is_followed_by_a_request_elsewhere(
    metrics: EdgeMetrics,
) -> None:
    connection = Drained("http://127.0.0.1:9")
    verifier = Verifier(connection, metrics)

    for expected in range(3):
        with pytest.raises(Draining):
            await verifier.check()
        assert connection.made == expected
