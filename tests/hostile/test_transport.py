"""A process without a free file descriptor loses no answer that runs."""

from __future__ import annotations

import asyncio
import os
import re
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest

from edge_agent.link import connection
from edge_agent.metrics import EdgeMetrics
from tests.edge_agent.conftest import metrics as metrics
from tests.edge_agent.processes import ROOT, TEXT, Answer, is_here, proxying, running, using
from tests.fakes.faulty_link import FaultyLink
from tests.guards import GUARD_S

RENEW_WITHOUT_DESCRIPTORS = """
import asyncio, os, resource
from contextlib import suppress
from edge_agent.link.connection import Connection
from edge_agent.link.errors import LinkDown

async def main():
    for url in ("http://127.0.0.1:9", "https://127.0.0.1:9"):
        link, held = Connection(url), []
        with suppress(LinkDown):
            await link.ask("GET", "/ready", within_s=5.0)
        with suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        for ask in (
            lambda: link.ask("GET", "/ready", within_s=5.0),
            lambda: link.post("x", b"", {}),
        ):
            link.renew(link.client)
            try:
                await ask()
            except LinkDown as error:
                assert "Too many open files" in str(error), error
            else:
                raise AssertionError(url)
        for descriptor in held:
            os.close(descriptor)

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
asyncio.run(main())
os._exit(0)  # threads of the HTTP client that still run do not outlive an interpreter that ends
"""


def test_without_a_descriptor_a_connection_is_renewed_and_its_requests_fail() -> None:
    command = [sys.executable, "-c", RENEW_WITHOUT_DESCRIPTORS]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": "1"}

    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=GUARD_S)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("error", [RuntimeError("no client"), OSError(24, "Too many open")])
async def test_an_answer_is_resumed_once_a_transport_can_be_made_again(
    metrics: EdgeMetrics, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    make, refused = connection.HTTPTransport, list[Exception]()

    def made(**options: object) -> object:
        if refused:
            raise refused.pop()
        return make(**options)  # type: ignore[arg-type]

    monkeypatch.setattr(connection, "HTTPTransport", made)
    with running("") as (only,):
        async with FaultyLink(only.port) as link, using([link.url], metrics) as verifiers:

            async def fall_silent() -> None:
                refused.extend([error] * 3)
                link.half_open()

            assert await Answer(verifiers, metrics).run(fall_silent) == TEXT

    assert not refused
    assert metrics.reopens._value.get() == 0


# The shipped proxies pass no metrics to strangers, and keep no connection that is silent.

METRICS: Final = [
    "/metrics", "/metrics?x", "/metrics/", "/METRICS", "//metrics", "/./metrics",
    "/a/../metrics", "/%6detrics", "/%6D%65%74%72%69%63%73", "/%2fmetrics",
    "http://localhost/metrics",
]  # fmt: skip
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"
SILENT: Final = {
    "no hello": (None, b""),
    "a part of a hello": (None, b"\x16\x03\x01"),
    "no request on HTTP/1.1": ("http/1.1", b""),
    "a part of a head": ("http/1.1", b"GET /ready HTTP/1.1\r\nhost: loc"),
    "nothing on HTTP/2": ("h2", b""),
    "a preface alone": ("h2", PREFACE),
    "a part of the fields": ("h2", PREFACE + b"\0\0\1\1\0\0\0\0\1\x82"),
}
"""What a client says, after TLS by the protocol or in place of it, before it falls silent."""

CLOSED_WITHIN_S: Final = 30.0
"""Most time until a silent connection is closed whose deadline the test makes 1 s."""


Proxy = tuple[int, ssl.SSLContext]
"""A proxy's port, and what a client trusts."""


def hasty(configuration: str) -> str:
    """Return a proxy's configuration with a deadline of 1 s for whoever says nothing."""
    return re.sub(
        r"(client-hs|http-request|client_header_timeout|keepalive_timeout) (10|30|75)s",
        r"\1 1s",
        configuration,
    )


@pytest.fixture(params=["haproxy", "nginx"], scope="module")
def proxy(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    if not is_here(request.param):
        pytest.skip(f"no {request.param} here")
    folder: Path = tmp_path_factory.mktemp("proxy")
    with running("", "") as (one, two):
        ports = (one.port, two.port)
        with proxying(request.param, ports, folder, hasty) as (url, authority):
            context = ssl.create_default_context(cadata=authority.decode())
            yield urlsplit(url).port or 0, context


@asynccontextmanager
async def connected(
    proxy: Proxy, protocol: str | None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Open a connection, with TLS if a protocol is named."""
    port, context = proxy
    context.set_alpn_protocols([protocol or "h2"])
    secure = {"ssl": context, "server_hostname": "localhost"} if protocol else {}
    reader, writer = await asyncio.open_connection("127.0.0.1", port, **secure)  # type: ignore[arg-type]
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def status(proxy: Proxy, target: str) -> int:
    async with connected(proxy, "http/1.1") as (reader, writer):
        writer.write(f"GET {target} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
        return int((await reader.readline()).split()[1])


@pytest.mark.parametrize("target", METRICS)
async def test_no_metrics_are_passed(proxy: Proxy, target: str) -> None:
    assert await status(proxy, target) == 403


async def test_all_else_is_passed(proxy: Proxy) -> None:
    assert await status(proxy, "/ready") == 200
    assert await status(proxy, "/metric") != 403


@pytest.mark.parametrize("said", SILENT.values(), ids=SILENT)
async def test_a_silent_connection_is_closed(
    proxy: Proxy, said: tuple[str | None, bytes]
) -> None:
    protocol, words = said
    async with connected(proxy, protocol) as (reader, writer):
        writer.write(words)
        async with asyncio.timeout(CLOSED_WITHIN_S):
            while await reader.read(4096):
                pass
