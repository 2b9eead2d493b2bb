"""Spans reach a collector, where the standard variables say."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from picospec.gateway.hosting.tracing import exporting


class Collector(ThreadingHTTPServer):
    """Keeps what is posted to it."""

    def __init__(self) -> None:
        self.received: list[tuple[str, bytes]] = []
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.received.append((self.path, body))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    server = Collector()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    serving = threading.Thread(target=server.serve_forever, args=(0.02,))
    serving.start()
    yield server
    server.shutdown()
    serving.join()
    server.server_close()


@pytest.mark.parametrize(
    ("variable", "named"), [(None, b"picospec-edge"), ("edge-in-rome", b"edge-in-rome")]
)
def test_spans_are_sent_when_tracing_is_closed(
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    variable: str | None,
    named: bytes,
) -> None:
    if variable is not None:
        monkeypatch.setenv("OTEL_SERVICE_NAME", variable)
    tracing = exporting("picospec-edge")
    span = tracing.begin("request", {}, path="/v1/completions")
    span.begin("open", verifier="http://127.0.0.1:9000", rtt_s=0.01).end()
    span.end("overloaded")
    span.end()  # it has ended

    tracing.close()

    ((path, body),) = collector.received
    assert path == "/v1/traces"
    assert named in body
    assert b"picospec.rtt_s" in body
    assert b"overloaded" in body
    assert body.count(b"url.path") == 1
    assert not caplog.records


def test_what_is_not_sampled_is_not_sent_and_says_so(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    tracing = exporting("picospec-edge")
    span = tracing.begin("request", {})
    headers = span.begin("open").headers
    span.end()

    tracing.close()

    assert collector.received == []
    assert int(headers["traceparent"][-2:], 16) & 1 == 0  # the flag `sampled`
