"""What operators see of requests: spans, lines of the log and metrics; never a text."""

from __future__ import annotations

import asyncio
import errno
import re
import sys
import threading
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NoReturn

import httpx
import pytest
import structlog
from fastapi import FastAPI
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from starlette.requests import Request
from starlette.responses import Response
from structlog.testing import capture_logs

from gateway.errors import NotFound, Unavailable
from gateway.hosting import logs
from gateway.metrics import MAX_MODELS, OTHERS, Metrics
from gateway.middleware import ANSWERS, route_of
from gateway.ports import Job, Statistics
from gateway.routes import ROUTES
from gateway.tracing import Tracing, open_tracing
from speculation.messages import Totals
from tests.gateway.scripted import MODEL, Body, ScriptedEngine, ask, client_of, make_app
from verifier.routes import OPEN

Posts = list[tuple[str, bytes]]
"""Paths and bodies."""
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> Iterator[Posts]:
    """Yield what is posted to the collector that the variables name."""
    posts: Posts = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posts.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    serving = threading.Thread(target=server.serve_forever, args=(0.02,))
    serving.start()
    yield posts
    server.shutdown()
    serving.join()
    server.server_close()


@pytest.mark.system
@pytest.mark.parametrize(
    ("variable", "named"), [(None, b"picospec-edge"), ("edge-in-rome", b"edge-in-rome")]
)
def test_spans_are_sent_when_tracing_is_closed(
    received: Posts,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    variable: str | None,
    named: bytes,
) -> None:
    if variable is not None:
        monkeypatch.setenv("OTEL_SERVICE_NAME", variable)
    tracing = open_tracing("picospec-edge", wanted=True)
    span = tracing.begin("request", {}, path="/v1/completions")
    span.begin("open", verifier="http://127.0.0.1:9000", rtt_s=0.01).end()
    span.end("overloaded")
    span.end()  # it has ended

    tracing.close()

    ((path, body),) = received
    assert path == "/v1/traces"
    assert named in body
    assert b"picospec.rtt_s" in body
    assert b"overloaded" in body
    assert body.count(b"url.path") == 1
    assert not caplog.records


@pytest.mark.parametrize(
    ("path", "asked", "operation"),
    [
        ("/v1/chat/completions", {"messages": HI}, "chat"),
        ("/v1/messages", {"messages": HI, "max_tokens": 99}, "chat"),
        ("/v1/responses", {"input": "hi"}, "chat"),
        ("/v1/completions", {"prompt": "hi"}, "text_completion"),
    ],
)
async def test_the_span_of_an_answer_has_what_the_conventions_for_models_require(
    path: str, asked: dict[str, object], operation: str
) -> None:
    provider, spans = TracerProvider(shutdown_on_exit=False), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    tracing = Tracing(provider.get_tracer("test"), provider.shutdown)
    app = make_app(ScriptedEngine(), tracing=tracing, model_aliases=["gpt"])
    async with client_of(app) as client:
        await client.post(path, json={"model": "gpt", **asked})

    (span,) = spans.get_finished_spans()
    found = {n.removeprefix("gen_ai."): v for n, v in (span.attributes or {}).items()}
    assert found["operation.name"] == operation
    assert found["provider.name"] == "picospec"
    assert (found["request.model"], found["response.model"]) == ("gpt", MODEL)
    assert found["response.finish_reasons"] == ("stop",)
    assert found["usage.output_tokens"] == 9
    assert isinstance(found["usage.input_tokens"], int)


@pytest.mark.system
def test_what_is_not_sampled_is_not_sent_and_says_so(
    received: Posts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    tracing = open_tracing("picospec-edge", wanted=True)
    span = tracing.begin("request", {})
    headers = span.begin("open").headers
    span.end()

    tracing.close()

    assert received == []
    assert int(headers["traceparent"][-2:], 16) & 1 == 0  # the flag `sampled`


CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "secret words"}]}
STREAM = CHAT | {"stream": True}
OF = f'{{model_name="{MODEL}"}}'
"""The label of series of the model."""


@pytest.mark.parametrize(
    ("given", "kept"),
    [("trace-1.a:b", True), ("a" * 128, True), ("a" * 129, False), ("a b", False)],
)
async def test_a_sane_request_id_is_kept_and_any_other_replaced(given: str, kept: bool) -> None:
    async with client_of(make_app(ScriptedEngine())) as client:
        answer = await client.get("/health", headers={"x-request-id": given})

    assert (answer.headers["x-request-id"] == given) is kept
    assert answer.headers["x-request-id"].startswith("req-") is not kept


async def test_the_log_has_one_line_a_request_and_never_its_text() -> None:
    with capture_logs() as logs:
        await ask(CHAT)
        await ask(CHAT | {"temperature": "secret"})

    first, second = logs
    assert (first["status"], first["prompt_tokens"], first["completion_tokens"]) == (200, 15, 9)
    assert (second["status"], second["error"]) == (400, "invalid_value")
    assert second["prompt_tokens"] == second["completion_tokens"] == 0
    assert "secret" not in repr(logs)


@pytest.mark.parametrize(
    ("body", "script", "status"), [(CHAT, (), 500), (STREAM, (), 500), (STREAM, (b"Hi",), 200)]
)
async def test_a_bugs_traceback_is_logged_without_any_text_of_the_request(
    body: Body, script: tuple[bytes, ...], status: int
) -> None:
    engine = ScriptedEngine(script, then=RuntimeError("a bug"))
    with capture_logs() as logs:
        answer = await ask(body, engine)

    assert answer.status_code == status
    assert '"message":"internal error"' in answer.text
    assert logs[0]["log_level"] == "error"
    assert "RuntimeError: a bug" in logs[0]["traceback"]
    assert "secret" not in repr(logs)


async def test_metrics_have_the_names_dashboards_know() -> None:
    async with client_of(make_app(ScriptedEngine())) as client:
        await client.post("/v1/chat/completions", json=CHAT)
        await client.get("/")
        metrics = (await client.get("/metrics")).text

    for line in (
        'picospec:requests_total{route="answer",status="200"} 1.0',
        'picospec:requests_total{route="page",status="200"} 1.0',
        f"picospec:spec_decode_num_drafts_total{OF} 3.0",
        f"picospec:spec_decode_num_draft_tokens_total{OF} 12.0",
        f"picospec:spec_decode_num_accepted_tokens_total{OF} 7.0",
        f'picospec:spec_decode_num_accepted_tokens_per_pos_total{OF[:-1]},position="2"}} 1.0',
        f"picospec:time_to_first_token_seconds_count{OF} 1.0",
        f"picospec:inter_token_latency_seconds_count{OF} 7.0",
        f"picospec:e2e_request_latency_seconds_count{OF} 1.0",
        f"picospec:generation_tokens_total{OF} 9.0",
        f"picospec:prompt_tokens_total{OF} 15.0",
        f"picospec:num_requests_running{OF} 0.0",
        f'picospec:request_success_total{{finished_reason="stop",{OF[1:]} 1.0',
    ):
        assert line in metrics.splitlines()
    assert re.search(r'picospec:build_info{protocol="\d+",version="[0-9.]+"} 1.0', metrics)
    assert "_created" not in metrics


def test_models_without_end_have_series_of_an_end() -> None:
    counted = Metrics(registry := CollectorRegistry())

    for number in range(3 * MAX_MODELS):
        counted.of(f"model-{number}").generation_tokens.inc()

    name = "picospec:generation_tokens_total"
    (family,) = registry.restricted_registry([name]).collect()
    assert len(family.samples) == MAX_MODELS + 1
    assert registry.get_sample_value(name, {"model_name": OTHERS}) == 2 * MAX_MODELS


def test_each_path_that_gives_answers_counts_as_one() -> None:
    streams = {r.path for r in ROUTES if r.body and "stream" in r.body.model_fields}
    own = {"/v1/picospec/direct/chat/completions", OPEN}

    assert streams - {path for path in streams if path.endswith("tokens")} | own == ANSWERS
    assert [route_of("GET", path) for path in ("/page/main.js", "/status", "/v1/models")] == [
        "page", "probe", "other",
    ]  # fmt: skip


async def test_times_are_measured_from_the_start_of_the_request() -> None:
    now_s = 10.0

    async def wait() -> None:
        nonlocal now_s
        await asyncio.sleep(0.01)  # the Delta before is read first
        now_s += 0.25

    def script(_: Job) -> list[bytes]:
        nonlocal now_s
        now_s += 1 / 3
        return [b"Hi", b" there"]

    app = make_app(ScriptedEngine(script, pause=wait), clock=lambda: now_s)
    async with client_of(app) as client:
        with capture_logs() as logs:
            answer = await client.post("/v1/chat/completions", json=CHAT)
        metrics = (await client.get("/metrics")).text

    assert answer.json()["timings"] == pytest.approx({
        "cache_n": 0, "prompt_n": 15, "prompt_ms": 1000 / 3,
        "prompt_per_token_ms": 1000 / 45, "prompt_per_second": 45,
        "predicted_n": 9, "predicted_ms": 500, "predicted_per_token_ms": 500 / 9,
        "predicted_per_second": 18, "draft_n": 12, "draft_n_accepted": 7,
    })  # fmt: skip
    assert (logs[0]["first_token_s"], logs[0]["duration_s"]) == (0.333, 0.833)
    sums = re.findall(r"^picospec:(\w+)_seconds_sum(?:{.*})? (.*)", metrics, re.MULTILINE)
    found = {name: pytest.approx(float(seconds)) for name, seconds in sums}
    assert found["time_to_first_token"] == 1 / 3
    assert found["inter_token_latency"] == 0.5
    assert found["e2e_request_latency"] == 5 / 6


async def test_rates_without_drafts_or_without_time_are_zero() -> None:
    answer = await ask(
        CHAT, ScriptedEngine(statistics=Statistics(Totals(3, filled=3))), clock=lambda: 0.0
    )

    found = answer.json()["metrics"]["speculative_decoding"]
    assert (found["mean_acceptance_length"], found["draft_acceptance_rate"]) == (1, 0)
    assert (found["num_target_passes"], found["acceptance_histogram"]) == (3, [0])
    assert answer.json()["timings"]["predicted_per_second"] == 0


# Which calls are requests: those have a log line and are counted. What a log never shows, and
# never does to those who write to it.

MESSAGES = "/sessions/s1/messages"
PROBES = ("/health", "/ready", "/metrics")
LATENCY = "picospec:e2e_request_latency_seconds_count"


def is_message(path: str) -> bool:
    return path == MESSAGES


def app_with_messages(**settings: object) -> FastAPI:
    async def take(request: Request) -> Response:
        match await request.body():
            case b"late":
                raise NotFound("the session has ended")
            case b"bug":
                raise RuntimeError("a bug")
        return Response(status_code=HTTPStatus.NO_CONTENT)

    app = make_app(
        ScriptedEngine(), is_message=is_message, session_paths="/sessions/", **settings
    )
    app.add_route(MESSAGES, take, methods=["POST"])
    return app


async def counted(client: httpx.AsyncClient) -> dict[str, float]:
    rows = (await client.get("/metrics")).text.splitlines()
    pairs = (row.rsplit(" ", 1) for row in rows if row.startswith("picospec:"))
    return {name: float(value) for name, value in pairs}


async def test_a_message_of_a_running_request_is_neither_logged_nor_counted() -> None:
    async with client_of(app_with_messages()) as client:
        before = await counted(client)
        with capture_logs() as logs:
            answers = [await client.post(MESSAGES, content=b"draft") for _ in range(3)]
        after = await counted(client)

    assert [answer.status_code for answer in answers] == [204] * 3
    assert answers[0].headers["x-request-id"]
    assert logs == []
    metrics = 'picospec:requests_total{route="probe",status="200"}'
    assert after == before | {metrics: before.get(metrics, 0) + 1}  # the first look itself


async def test_a_message_that_fails_is_counted_apart_and_logged_unless_it_was_late() -> None:
    app = app_with_messages(api_keys=["k"])
    async with client_of(app, {"authorization": "Bearer k"}) as client:
        with capture_logs() as logs:
            answers = [await client.post(MESSAGES, content=what) for what in (b"late", b"bug")]
            answers.append(await client.post(MESSAGES, headers={"authorization": "Bearer x"}))
        after = await counted(client)

    assert [answer.status_code for answer in answers] == [404, 500, 401]
    assert [(line["status"], line["path"]) for line in logs] == [
        (status, "/sessions/*/messages") for status in (500, 401)
    ]
    assert logs[0]["log_level"] == "error"
    for status in (404, 500, 401):
        assert after[f'picospec:failed_draft_messages_total{{status="{status}"}}'] == 1
    requests = {name for name, count in after.items() if ":requests_total" in name and count}
    assert requests <= {'picospec:requests_total{route="probe",status="200"}'}
    assert not any(LATENCY in name for name in after)


@pytest.mark.parametrize("logs_requests", [True, False])
async def test_a_log_has_a_line_for_an_answer_and_for_what_fails(logs_requests: bool) -> None:
    async with client_of(make_app(ScriptedEngine(), log_requests=logs_requests)) as client:
        with capture_logs() as logs:
            for path in (*PROBES, "/status", "/", "/page/main.js", "/v1/models", "/nothing"):
                await client.get(path)
            await client.post("/v1/chat/completions", json=CHAT)

    found = [(line["path"], line["status"]) for line in logs]
    answer = [("/v1/chat/completions", 200)] if logs_requests else []
    assert found == [("/nothing", 404), *answer]
    assert None not in logs[-1].values()


@pytest.mark.parametrize(
    ("down", "shown"),
    [
        (Unavailable("the model is loading"), []),
        (RuntimeError("a bug"), ["RuntimeError: a bug"]),
    ],
)
async def test_a_probe_that_fails_makes_a_line_for_a_bug_alone(
    down: Any,  # noqa: ANN401 - also what facts() must not raise
    shown: list[str],
) -> None:
    async with client_of(make_app(ScriptedEngine(down=down))) as client:
        with capture_logs() as logs:
            for path in PROBES:
                await client.get(path)

    assert [line["traceback"].splitlines()[-1] for line in logs] == shown


@pytest.fixture(params=["console", "json"])
def configured(request: pytest.FixtureRequest) -> Iterator[None]:
    """Log to standard error, in each form."""
    logs.configure(request.param)
    yield
    structlog.reset_defaults()


@pytest.mark.usefixtures("configured")
def test_a_traceback_shows_no_values(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(prompt: str) -> None:
        raise RuntimeError("a bug")

    try:
        fail("".join(["my ", "secret"]))
    except RuntimeError:
        structlog.get_logger("x").error("failed", exc_info=True)

    shown = capsys.readouterr().err
    assert "a bug" in shown
    assert "in fail" in shown
    assert "my secret" not in shown


@pytest.mark.usefixtures("configured")
def test_a_full_disk_fails_nobody_who_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(_: str) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys.stderr, "write", write)

    structlog.get_logger("x").info("an event")
