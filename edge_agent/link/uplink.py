"""The way to the verifier: one HTTP/2 connection, its facts, and a Link for each session.

The only file that imports pyqwest. Its httpx transport keeps httpx's API, resets a stream that
is closed early, and goes on when a server recycles its connections.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import httpx
import msgspec
from pyqwest import (
    Client,
    HTTPTransport,
    HTTPVersion,
    ReadError,
    RemoteProtocolError,
    WriteError,
)
from pyqwest.httpx import AsyncPyqwestTransport

from edge_agent.link import upstream_errors as refusals
from edge_agent.link.posts import Post
from edge_agent.link.round_trip import RoundTrip
from edge_agent.link.session_link import Link
from edge_agent.metrics import EdgeMetrics
from gateway.errors import ApiError, EngineFault, Unavailable
from speculation.protocol.messages import PROTOCOL_VERSION, ModelFacts, Open

CONTENT_TYPE: Final = "application/vnd.picospec"
CONNECT_TIMEOUT_S: Final = 3.0
ASK_TIMEOUT_S: Final = 5.0
_SAMPLES: Final = 3
"""Round trips measured at first: the fastest is free of what connecting costs."""


@dataclass(frozen=True, slots=True)
class Connection:
    """One transport, used in two ways. Both raise httpx.TransportError."""

    client: httpx.AsyncClient
    post: Post
    """For drafts: past httpx, a third of the processor time (154 against 498 us, measured)."""


def connect(url: str, *, key: str | None, ca_certificate: bytes | None) -> Connection:
    """Return a way to the verifier; nothing is sent yet.

    http:// is HTTP/2 with prior knowledge; https:// takes HTTP/2 by ALPN, and checks the
    certificate against ca_certificate (PEM), or the system's authorities.
    """
    transport = HTTPTransport(
        http_version=HTTPVersion.HTTP2 if url.startswith("http://") else None,
        tls_ca_cert=ca_certificate,
        tls_include_system_certs=ca_certificate is None,
        connect_timeout=CONNECT_TIMEOUT_S,
        follow_redirects=False,
        enable_otel=False,
    )
    headers = {"content-type": CONTENT_TYPE}
    if key:
        headers["authorization"] = f"Bearer {key}"
    client = httpx.AsyncClient(
        base_url=url,
        transport=AsyncPyqwestTransport(transport),
        headers=headers,
        timeout=ASK_TIMEOUT_S,
    )
    return Connection(client, _direct(transport, url, headers))


def _direct(transport: HTTPTransport, url: str, headers: Mapping[str, str]) -> Post:
    client = Client(transport)

    async def post(path: str, body: bytes) -> httpx.Response:
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                answer = await client.post(url + path, headers, body)
        except ConnectionError as error:
            raise httpx.ConnectError(str(error)) from error
        except TimeoutError as error:
            raise httpx.ReadTimeout("no answer") from error
        except (ReadError, WriteError, RemoteProtocolError) as error:
            raise httpx.NetworkError(str(error)) from error
        return httpx.Response(answer.status, content=answer.content)

    return post


class Uplink:
    """Owns the connection."""

    def __init__(
        self,
        connection: Connection,
        metrics: EdgeMetrics,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = connection.client
        self._post = connection.post
        self._metrics = metrics
        self._clock = clock
        self._rtt = RoundTrip(metrics.rtt_s)
        self._facts: ModelFacts | None = None

    @property
    def url(self) -> str:
        return str(self._client.base_url)

    @property
    def rtt_s(self) -> float:
        """The round trip to the verifier; 0 until it is known."""
        return self._rtt.seconds

    async def facts(self) -> ModelFacts:
        """Return what the target is: asked once, and again after the verifier was away.

        Raises Unavailable, or EngineFault when the two ends cannot work together.
        """
        if self._facts is None:
            facts = self._read(await self._ask("/v1/model-facts"))
            for _ in range(_SAMPLES):
                await self.check()
            self._facts = facts
        return self._facts

    async def check(self) -> None:
        """Ask the verifier for its health, and time it. Raises Unavailable."""
        begun = self._clock()
        try:
            await self._ask("/health")
        except ApiError:
            self.forget()
            raise
        self._rtt.observe(self._clock() - begun)

    def open(self, request: Open) -> Link:
        """Return a link that opens this session when its events are asked for."""
        return Link(
            self._client,
            self._post,
            request,
            rtt=self._rtt,
            metrics=self._metrics,
            clock=self._clock,
        )

    def forget(self) -> None:
        """The verifier was away, or is another one now: ask for its facts again."""
        self._facts = None

    async def close(self) -> None:
        await self._client.aclose()

    async def _ask(self, path: str) -> httpx.Response:
        try:
            response = await self._client.get(path)
        except httpx.TransportError as error:
            raise refusals.unreachable(self.url, error) from error
        if response.status_code != 200:
            raise _as_ours(refusals.refusal(response))
        return response

    def _read(self, response: httpx.Response) -> ModelFacts:
        try:
            facts = msgspec.json.decode(response.content, type=ModelFacts)
        except msgspec.MsgspecError as error:
            raise EngineFault(f"{self.url} does not look like a verifier: {error}") from error
        if facts.protocol != PROTOCOL_VERSION:
            raise EngineFault(
                f"the verifier speaks protocol {facts.protocol}, this edge {PROTOCOL_VERSION}",
                code="protocol_version",
            )
        return facts


def _as_ours(error: ApiError) -> ApiError:
    """What the client did not ask for cannot be the client's mistake."""
    if isinstance(error, EngineFault | Unavailable):
        return error
    return Unavailable(f"the verifier does not answer as one: {error.message}")
