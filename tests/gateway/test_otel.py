"""Spans reach a collector, where the standard variables say."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from picospec.gateway.tracing import open_tracing

Posts = list[tuple[str, bytes]]
"""Paths and bodies."""


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
