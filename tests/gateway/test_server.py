"""What a client sees on the wire, what happens when it goes away, and what operators see."""

from __future__ import annotations

import asyncio
import http.server
import json
import re
import socket
import ssl
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
import trustme
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from gateway.hosting.probe import trouble
from gateway.hosting.server import check_free
from gateway.metrics import MAX_MODELS, OTHERS, Metrics
from gateway.middleware import ANSWERS, route_of
from gateway.ports import Job, Statistics
from gateway.routes import ROUTES
from speculation.messages import Totals
from tests.gateway.scripted import MODEL, Body, ScriptedEngine, ask, client_of, make_app, served
from tests.guards import GUARD_S
from verifier.routes import OPEN

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "secret words"}]}
STREAM = CHAT | {"stream": True}
OF = f'{{model_name="{MODEL}"}}'
"""The label of series of the model."""


async def forever() -> None:
    await asyncio.Event().wait()


async def closed(engine: ScriptedEngine, count: int) -> None:
    async with asyncio.timeout(GUARD_S):
        for _ in range(count):
            await engine.closed.acquire()


async def test_a_stream_is_framed_as_events_that_end_with_done() -> None:
    answer = await ask(STREAM)

    *events, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert all(json.loads(event.removeprefix("data: ")) for event in events)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"


@pytest.mark.parametrize(
    ("script", "more", "keep_alive_s"),
    [
        ([b"Hi"], {}, 9.0),
        ([b"Hi"], {"n": 3}, 9.0),
        ([b""], {}, 0.01),
    ],
    ids=["one choice", "three choices", "nothing but comments"],
)
async def test_a_client_that_goes_away_mid_stream_closes_every_generator(
    script: list[bytes], more: Body, keep_alive_s: float
) -> None:
    engine = ScriptedEngine(script, pause=forever)
    app = make_app(engine, keep_alive_s=keep_alive_s)
    async with served(app) as url, httpx.AsyncClient(base_url=url) as client:
        async with client.stream("POST", "/v1/chat/completions", json=STREAM | more) as answer:
            await anext(answer.aiter_lines())

        await closed(engine, more.get("n", 1))
        metrics = (await client.get("/metrics")).text

    assert 'picospec:requests_total{route="answer",status="499"} 1.0' in metrics
    assert f"picospec:num_requests_running{OF} 0.0" in metrics
    aborted = f'picospec:request_success_total{{finished_reason="abort",{OF[1:]} 1.0'
    assert aborted in metrics


@pytest.mark.parametrize("body", [CHAT, STREAM])
async def test_a_client_that_goes_away_before_the_first_token_closes_the_generator(
    body: Body,
) -> None:
    waiting = asyncio.Event()

    async def wait() -> None:
        waiting.set()
        await forever()

    engine = ScriptedEngine([b""], pause=wait)
    async with served(make_app(engine)) as url, httpx.AsyncClient(base_url=url) as client:
        with capture_logs() as logs:
            request = asyncio.create_task(client.post("/v1/chat/completions", json=body))
            await waiting.wait()
            request.cancel()
            await closed(engine, 1)
            async with asyncio.timeout(GUARD_S):
                while not logs:  # noqa: ASYNC110 - the server writes it once it knows
                    await asyncio.sleep(0.01)

    assert [entry["status"] for entry in logs] == [499]


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


@pytest.mark.parametrize("body", [CHAT, STREAM])
async def test_a_bug_is_a_500_and_its_traceback_is_logged_without_any_text_of_the_request(
    body: Body,
) -> None:
    engine = ScriptedEngine((), then=RuntimeError("a bug"))
    with capture_logs() as logs:
        answer = await ask(body, engine)

    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "internal error"
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


# A container's health check, against services with and without TLS.

ROOT = Path(__file__).parents[2]
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of a connection that is reset when it is closed."""


class Answers(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/health" else 404)
        self.end_headers()
        self.wfile.write(b"so it is")

    def log_message(self, *_: object) -> None:
        pass


class Fails(Answers):
    status = 503


@contextmanager
def probe_served(
    context: ssl.SSLContext | None = None, answers: type[Answers] = Answers
) -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), answers)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    if context:
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def context_of(authority: trustme.CA, *, asks: bool) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("verifier.example").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED if asks else ssl.CERT_NONE
    return context


@pytest.mark.parametrize("environ", [{}, {"PICOSPEC_VERIFIER__TLS__CERTIFICATE": "f"}])
@pytest.mark.parametrize("kind", ["plain", "tls", "mutual"])
def test_a_service_that_answers_is_alive_whatever_it_speaks(
    kind: str, environ: dict[str, str]
) -> None:
    authority = trustme.CA()
    context = None if kind == "plain" else context_of(authority, asks=kind == "mutual")

    with probe_served(context) as port:
        assert trouble(port, environ) == ""


@pytest.mark.parametrize(
    "answer", [b"garbage\r\n\r\n", b"", None], ids=["garbage", "reset", "silence"]
)
def test_what_does_not_answer_a_hello_by_tls_is_dead(
    answer: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """answer: what every connection gets before it is closed; None for nothing, and no end."""
    monkeypatch.setattr("gateway.hosting.probe.TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=answered, args=(server, answer), daemon=True).start()

        assert trouble(server.getsockname()[1], {}) != ""


def answered(server: socket.socket, answer: bytes | None) -> None:
    kept = []
    with suppress(OSError):  # the end of the test closes it
        while True:
            connection, _ = server.accept()
            if answer is None:
                kept.append(connection)
                continue
            if answer:
                connection.sendall(answer)
            else:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            connection.close()


def test_a_service_that_says_so_is_not_alive() -> None:
    for context in (None, context_of(trustme.CA(), asks=False)):
        with probe_served(context, Fails) as port:
            assert trouble(port, {}) == "503 so it is"


def test_the_probe_is_a_command() -> None:
    command = [sys.executable, "-m", "gateway.hosting.probe"]
    with probe_served() as port:
        assert subprocess.run([*command, str(port)], cwd=ROOT).returncode == 0

    with socket.socket() as taken:  # by nobody who listens, and by nobody else meanwhile
        taken.bind(("127.0.0.1", 0))
        command.append(str(taken.getsockname()[1]))
        dead = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert dead.returncode == 1
    assert "refused" in dead.stderr


def test_a_port_in_use_is_named_with_what_chooses_another() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]

        with pytest.raises(OSError, match=rf"\Aport {port} of .* PICOSPEC_EDGE__PORT\Z"):
            check_free("edge", "127.0.0.1", port)
