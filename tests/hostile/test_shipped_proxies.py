"""The shipped proxies pass no metrics to strangers, and keep no connection that is silent."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest

from tests.edge_agent.conftest import metrics as metrics
from tests.edge_agent.processes import is_here, proxying, running

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
