"""One trace from the client's request at the edge to the session at the verifier."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gateway.hosting.settings import ServiceSettings
from gateway.tracing import NO_TRACING, Tracing
from tests.fakes.world import PASS_S, World
from tests.guards import GUARD_S
from tests.verifier.fake_target import FAILS, STALLS, STREAMS

CLIENTS_TRACE = f"{0xABCDEF:032x}"
CLIENTS_SPAN = f"{0x1234:016x}"
TRACEPARENT = f"00-{CLIENTS_TRACE}-{CLIENTS_SPAN}-01"
SECRET = 44
"""A token of the prompt; no span may show it."""


class Recorder:
    """Tracing whose spans stay in memory."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracing = Tracing(provider.get_tracer("picospec"), provider.shutdown)

    @property
    def spans(self) -> list[ReadableSpan]:
        """All that have ended, in the order in which they began."""
        return sorted(self._exporter.get_finished_spans(), key=lambda s: s.start_time or 0)

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    async def until(self, name: str, count: int = 1) -> None:
        """Wait for spans that end a little after the response."""
        async with asyncio.timeout(GUARD_S):
            while len(self.named(name)) < count:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.01)


def ask(first: int = STREAMS, tokens: int = 8) -> dict[str, object]:
    return {"prompt": [first, 5, SECRET], "max_tokens": tokens}


def parent(span: ReadableSpan) -> int:
    assert span.parent is not None
    return span.parent.span_id


def span_id(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


def error_of(span: ReadableSpan) -> object:
    return (span.attributes or {}).get("error.type")


@pytest.fixture
def edges() -> Recorder:
    return Recorder()


@pytest.fixture
def verifiers() -> Recorder:
    return Recorder()


@pytest.fixture
async def world(
    edges: Recorder, verifiers: Recorder, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    monkeypatch.setattr("edge_agent.app.open_tracing", lambda *_, **__: edges.tracing)
    monkeypatch.setattr("verifier.app.open_tracing", lambda *_, **__: verifiers.tracing)
    async with World(2, drain_timeout_s=0.0) as world:
        yield world


@pytest.fixture
async def client(world: World, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with world.edge(tmp_path) as edge:
        yield edge.client


async def test_a_trace_goes_from_the_clients_request_to_the_verifiers_session(
    client: httpx.AsyncClient, edges: Recorder, verifiers: Recorder
) -> None:
    headers = {"traceparent": TRACEPARENT}
    answer = await client.post("/v1/completions", json=ask(), headers=headers)
    await verifiers.until("session")
    await verifiers.until("request")

    assert answer.status_code == 200
    assert [span.name for span in edges.spans] == ["request", "open", "first token"]
    assert [span.name for span in verifiers.spans] == ["request", "session"]
    at_edge, opening, first_token = edges.spans
    at_verifier, session = verifiers.spans
    traces = [s.context.trace_id for s in (*edges.spans, *verifiers.spans) if s.context]
    assert set(traces) == {int(CLIENTS_TRACE, 16)}
    assert [f"{parent(at_edge):016x}", parent(opening), parent(first_token)] == [
        CLIENTS_SPAN,
        span_id(at_edge),
        span_id(at_edge),
    ]
    assert [parent(at_verifier), parent(session)] == [span_id(opening), span_id(at_verifier)]


async def test_spans_have_facts_and_no_text(
    client: httpx.AsyncClient, edges: Recorder, verifiers: Recorder
) -> None:
    headers = {"authorization": "Bearer a-key"}
    await client.post("/v1/completions", json=ask(), headers=headers)
    await verifiers.until("session")

    facts = {span.name: dict(span.attributes or {}) for span in edges.spans}
    session = dict(verifiers.named("session")[0].attributes or {})
    await verifiers.until("request")
    assert "gen_ai.usage.output_tokens" not in (verifiers.named("request")[0].attributes or {})
    assert facts["open"].pop("url.full", "").startswith("http://127.0.0.1:")
    assert facts["open"].pop("picospec.rtt_s") > 0
    assert facts["open"] == {
        "gen_ai.request.model": "fake",
        "gen_ai.usage.input_tokens": 3,
        "picospec.committed_tokens": 0,
    }
    assert facts["request"]["gen_ai.usage.output_tokens"] == 8
    assert facts["request"]["http.response.status_code"] == 200
    assert facts["request"]["picospec.first_token_s"] > 0
    assert session["gen_ai.usage.output_tokens"] == session["picospec.passes"] == 8
    assert session["picospec.acceptance"] == 0
    everything = "".join(span.to_json() for span in [*edges.spans, *verifiers.spans])
    assert "a-key" not in everything
    assert str(SECRET) not in {
        str(value)
        for span in [*edges.spans, *verifiers.spans]
        for value in (span.attributes or {}).values()
    }


async def test_a_request_that_fails_says_by_which_code(
    client: httpx.AsyncClient, edges: Recorder, verifiers: Recorder
) -> None:
    answer = await client.post("/v1/completions", json={"prompt": [5] * 999})
    await client.post("/v1/completions", json=ask(FAILS))
    await verifiers.until("session", 3)

    failed, recovered = edges.named("request")
    assert error_of(failed) == answer.json()["error"]["code"]
    assert not failed.status.is_ok
    assert recovered.status.is_ok
    assert [error_of(span) for span in verifiers.named("session")] == [
        "target_failed",
        "target_failed",
        None,
    ]


async def test_a_client_that_leaves_ends_all_its_spans(
    client: httpx.AsyncClient, edges: Recorder, verifiers: Recorder
) -> None:
    asking = asyncio.create_task(client.post("/v1/completions", json=ask(STALLS)))
    await edges.until("open")
    asking.cancel()
    await asyncio.wait([asking])
    await verifiers.until("session")

    assert [span.name for span in edges.spans] == ["request", "open", "first token"]
    assert [error_of(span) for span in verifiers.named("session")] == ["cancelled"]


async def test_what_is_no_request_for_work_has_no_span(
    client: httpx.AsyncClient, edges: Recorder, verifiers: Recorder
) -> None:
    await client.get("/health")
    await client.get("/v1/models")

    assert edges.spans == verifiers.spans == []


async def test_a_session_opened_again_is_a_span_of_the_same_request(
    client: httpx.AsyncClient, edges: Recorder, world: World
) -> None:
    asking = asyncio.create_task(client.post("/v1/completions", json=ask(tokens=20)))
    await edges.until("first token")
    await asyncio.sleep(6 * PASS_S)
    leaving = next(each for each in world.processes if each.target.running)
    (staying,) = {*world.processes} - {leaving}
    leaving.signal(signal.SIGTERM)
    answer = await asking

    assert answer.json()["usage"]["completion_tokens"] == 20
    names = [span.name for span in edges.spans]
    assert names == ["request", "open", "first token", "re-open", "first token"]
    request, _, _, again, _ = edges.spans
    facts = dict(again.attributes or {})
    assert parent(again) == span_id(request)
    assert facts["picospec.after"] == "shutting_down"
    assert facts["picospec.committed_tokens"] > 5  # type: ignore[operator]
    assert facts["url.full"] == staying.url


@pytest.mark.system
def test_without_tracing_opentelemetrys_sdk_is_not_loaded() -> None:
    program = """
import sys
import edge_agent.app, verifier.app
from gateway import tracing
from gateway.hosting.settings import ServiceSettings
settings = ServiceSettings.load(None, {}, {})
tracing.open_tracing("x", wanted=settings.tracing)
sys.exit("opentelemetry.sdk" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_without_tracing_nothing_is_sent_along() -> None:
    span = NO_TRACING.begin("request", {"traceparent": TRACEPARENT}).begin("open")

    assert span.headers == {}


def test_tracing_that_is_not_installed_is_a_setting_that_cannot_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.tracing.find_spec", lambda _: None)

    with pytest.raises(ValueError, match="pip install opentelemetry-sdk"):
        ServiceSettings.load(None, {}, {"tracing": True})
