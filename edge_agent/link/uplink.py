"""The verifier as the edge sees it: one HTTP/2 connection, its facts, a Link for each session.

Only this file imports pyqwest. Its httpx transport keeps httpx's API, resets a stream that is
closed early, and opens a new connection when a server recycles the old one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
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

from edge_agent.link import upstream_errors
from edge_agent.link.posts import Post, Posts, RoundTrip
from edge_agent.link.session_link import Link
from edge_agent.metrics import EdgeMetrics
from gateway.errors import ApiError, EngineFault, Unavailable
from models.tokenizer_file import MAX_PACKED_BYTES
from speculation.protocol.messages import PROTOCOL_VERSION, ModelFacts, Open

CONTENT_TYPE: Final = "application/vnd.picospec"
CONNECT_TIMEOUT_S: Final = 3.0
REQUEST_TIMEOUT_S: Final = 5.0
TOKENIZER_TIMEOUT_S: Final = 600.0
"""A tokenizer has megabytes, and comes once."""

_FIRST_SAMPLES: Final = 3
"""Round trips measured at the start, because the first ones include what connecting costs."""


@dataclass(frozen=True, slots=True)
class Connection:
    """One transport, used in two ways that both raise httpx.TransportError."""

    client: httpx.AsyncClient
    post: Post
    """Sends drafts without httpx, which would take three times the processor time."""


def connect(url: str, *, key: str | None, ca_certificate: bytes | None) -> Connection:
    """Return a connection to the verifier, which is made at its first use.

    http:// is HTTP/2 with prior knowledge; https:// negotiates HTTP/2 by ALPN, and checks the
    certificate against ca_certificate (PEM), or else the system's authorities.
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
        timeout=REQUEST_TIMEOUT_S,
    )
    return Connection(client, _post_without_httpx(transport, url, headers))


def _post_without_httpx(transport: HTTPTransport, url: str, headers: Mapping[str, str]) -> Post:
    client = Client(transport)

    async def post(path: str, body: bytes) -> httpx.Response:
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                response = await client.post(url + path, headers, body)
        except ConnectionError as error:
            raise httpx.ConnectError(str(error)) from error
        except TimeoutError as error:
            raise httpx.ReadTimeout("no answer") from error
        except (ReadError, WriteError, RemoteProtocolError) as error:
            raise httpx.NetworkError(str(error)) from error
        return httpx.Response(response.status, content=response.content)

    return post


class Uplink:
    """The edge's connection to the verifier, which it owns."""

    def __init__(self, connection: Connection, metrics: EdgeMetrics) -> None:
        self._client = connection.client
        self._post = connection.post
        self._metrics = metrics
        self._rtt = RoundTrip(metrics.rtt_s)
        self._facts: ModelFacts | None = None

    @property
    def url(self) -> str:
        return str(self._client.base_url)

    @property
    def rtt_s(self) -> float:
        """The smoothed round trip to the verifier; 0 until it is known."""
        return self._rtt.seconds

    async def facts(self) -> ModelFacts:
        """Return the target's facts, which are fetched once and after each `forget`.

        Raises Unavailable, or EngineFault when the two ends cannot work together.
        """
        if self._facts is None:
            facts = self._read(await self._get("/v1/model-facts"))
            for _ in range(_FIRST_SAMPLES):
                await self.check()
            self._facts = facts
        return self._facts

    async def tokenizer(self) -> bytes:
        """Return the target's tokenizer, packed. Raises Unavailable or EngineFault."""
        try:
            async with self._client.stream(
                "GET", "/v1/tokenizer", timeout=TOKENIZER_TIMEOUT_S
            ) as response:
                packed = bytearray()
                async for chunk in response.aiter_bytes():
                    packed += chunk
                    if len(packed) > MAX_PACKED_BYTES:
                        raise EngineFault(f"a tokenizer of more than {MAX_PACKED_BYTES} bytes")
        except httpx.TransportError as error:
            raise upstream_errors.unreachable(self.url, error) from error
        self._check(httpx.Response(response.status_code, content=bytes(packed)))
        return bytes(packed)

    async def check(self) -> None:
        """Get the verifier's health, and time it. Raises Unavailable."""
        begun = time.monotonic()
        try:
            await self._get("/health")
        except ApiError:
            self.forget()
            raise
        self._rtt.observe(begun)

    def open(self, request: Open) -> Link:
        """Return a link that opens this session when its events are read."""
        posts = Posts(self._post, self._rtt, self._metrics)
        return Link(self._client, posts, request, self._metrics)

    def forget(self) -> None:
        """Have the facts fetched again: the verifier was away, or is another one now."""
        self._facts = None

    async def close(self) -> None:
        await self._client.aclose()

    async def _get(self, path: str) -> httpx.Response:
        try:
            response = await self._client.get(path)
        except httpx.TransportError as error:
            raise upstream_errors.unreachable(self.url, error) from error
        self._check(response)
        return response

    def _check(self, response: httpx.Response) -> None:
        if response.status_code != 200:
            answered = upstream_errors.from_response(response)
            if isinstance(answered, EngineFault | Unavailable):
                raise answered
            # the client did not make this request, and must not be blamed for it
            raise Unavailable(f"the verifier does not answer as one: {answered.message}")

    def _read(self, response: httpx.Response) -> ModelFacts:
        try:
            facts = msgspec.json.decode(response.content, type=ModelFacts)
        except msgspec.MsgspecError as error:
            raise EngineFault(f"{self.url} does not look like a verifier: {error}") from error
        if facts.protocol != PROTOCOL_VERSION:
            raise EngineFault(
                f"the verifier uses protocol {facts.protocol}, this edge {PROTOCOL_VERSION}",
                code="protocol_version",
            )
        return facts
