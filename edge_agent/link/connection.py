"""One HTTP/2 connection to a verifier. Only this file imports pyqwest.

Its httpx transport keeps httpx's API, resets a stream that is closed early, and opens a new
connection when a server recycles the old one. Whatever keeps a request from its verifier is an
httpx.TransportError here, also where this process has no file descriptor left.
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import cached_property, partial
from http import HTTPStatus
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Final

import httpx
from pyqwest import (
    Client,
    HTTPTransport,
    HTTPVersion,
    ReadError,
    RemoteProtocolError,
    WriteError,
)
from pyqwest.httpx import AsyncPyqwestTransport

from picospec.edge_agent.link import upstream_errors
from picospec.edge_agent.link.reading import MAX_ANSWER_BYTES, whole, within
from picospec.gateway.errors import EngineFault, Unavailable

CONTENT_TYPE: Final = "application/vnd.picospec"
CONNECT_TIMEOUT_S: Final = 3.0
REQUEST_TIMEOUT_S: Final = 5.0
OPEN_PATH: Final = "/v1/speculate"
SESSION_HEADER: Final = "picospec-session"


def session_headers() -> dict[str, str]:
    """Return the header that all requests of one session bear, so that a proxy in front of
    several verifiers can keep them together."""
    return {SESSION_HEADER: secrets.token_hex(8)}


class Connection:
    """A Transport. It is made at its first use, and given up by `renew`.

    http:// is HTTP/2 with prior knowledge; https:// negotiates HTTP/2 by ALPN, and checks the
    certificate against ca_certificate (PEM), or else the system's authorities. certificate: the
    chain and the key (PEM) that it shows a verifier that asks for them.
    """

    client: httpx.AsyncClient
    """Raises httpx.TransportError."""

    def __init__(
        self,
        url: str,
        *,
        key: str | None,
        ca_certificate: bytes | None,
        certificate: tuple[bytes, bytes] | None = None,
    ) -> None:
        self.url = url
        self._headers = {"content-type": CONTENT_TYPE, "accept-encoding": "identity"}
        if key:
            self._headers["authorization"] = f"Bearer {key}"
        secured = url.startswith("https://")
        if secured and ca_certificate is None:
            ca_certificate = system_authorities() or None
        chain, private_key = certificate or (None, None)
        self._make = partial(
            HTTPTransport,
            http_version=None if secured else HTTPVersion.HTTP2,
            tls_ca_cert=ca_certificate,
            tls_include_system_certs=secured and ca_certificate is None,
            tls_cert=chain,
            tls_key=private_key,
            connect_timeout=CONNECT_TIMEOUT_S,
            follow_redirects=False,
            enable_otel=False,
            enable_gzip=False,
            enable_brotli=False,
            enable_zstd=False,
        )
        self._connect()
        self._transport.made  # noqa: B018 - a certificate that is none is an error at the start

    def _connect(self) -> None:
        self._transport = _Transport(self._make)
        self.client = httpx.AsyncClient(
            base_url=self.url,
            transport=self._transport,
            headers=self._headers,
            timeout=REQUEST_TIMEOUT_S,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),  # none is kept
        )

    def renew(self, silent: httpx.AsyncClient) -> None:
        """Have later requests make a new connection, because nothing comes over this one: a
        dead one is noticed in minutes only. silent: the client whose request found it so; of
        several requests the first one renews it."""
        if self.client is silent:
            self._connect()

    @asynccontextmanager
    async def open(
        self, frame: bytes, headers: Mapping[str, str], within_s: float
    ) -> AsyncGenerator[AsyncIterator[bytes]]:
        client = self.client
        request = client.build_request(
            "POST", OPEN_PATH, headers=headers, content=frame, timeout=None
        )
        try:
            async with asyncio.timeout(within_s):
                response = await client.send(request, stream=True)
                if response.status_code != HTTPStatus.OK:
                    raise upstream_errors.from_response(await whole(response))
            try:
                yield response.aiter_raw()
            finally:
                await response.aclose()
        except (TimeoutError, httpx.TransportError) as error:
            if isinstance(error, TimeoutError):
                self.renew(client)
            raise upstream_errors.unreachable(self.url, error) from error

    async def post(self, session: str, frames: bytes, headers: Mapping[str, str]) -> bool:
        # without httpx, which would take three times the processor time
        silent, url = self.client, f"{self.url}{OPEN_PATH}/{session}/drafts"
        try:
            with _transport_errors():
                async with asyncio.timeout(REQUEST_TIMEOUT_S):
                    async with self._transport.poster.stream(
                        "POST", url, {**self._headers, **headers}, frames
                    ) as response:
                        content = await within(MAX_ANSWER_BYTES, response.content)
        except (TimeoutError, httpx.TransportError) as error:
            if isinstance(error, TimeoutError):
                self.renew(silent)
            raise upstream_errors.unreachable(self.url, error) from error
        return _was_taken(httpx.Response(response.status, content=content))

    async def close(self) -> None:
        await self.client.aclose()


def _was_taken(response: httpx.Response) -> bool:
    """Return whether drafts were taken. Raises Unavailable, or EngineFault for an error."""
    match response.status_code:
        case HTTPStatus.NO_CONTENT:
            return True
        case HTTPStatus.NOT_FOUND:
            return False
        case HTTPStatus.TOO_MANY_REQUESTS:
            raise Unavailable("the verifier takes no drafts now")
    error = upstream_errors.from_response(response)
    if isinstance(error, Unavailable):
        raise error
    raise EngineFault(f"the verifier does not take a draft: {error.message}")


class _Transport(httpx.AsyncBaseTransport):
    """pyqwest's, which the first request makes: where that fails, the request fails."""

    def __init__(self, make: Callable[[], HTTPTransport]) -> None:
        self._make = make

    @cached_property
    def made(self) -> HTTPTransport:
        return self._make()

    @cached_property
    def poster(self) -> Client:
        return Client(self.made)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        with _transport_errors():
            return await AsyncPyqwestTransport(self.made).handle_async_request(request)


@contextmanager
def _transport_errors() -> Iterator[None]:
    """Raise pyqwest's errors as httpx's; a TimeoutError stays one."""
    try:
        yield
    except (ConnectionError, RuntimeError) as error:  # the latter where none can be made
        raise httpx.ConnectError(str(error)) from error
    except TimeoutError:
        raise
    except (OSError, ReadError, WriteError, RemoteProtocolError) as error:
        raise httpx.NetworkError(str(error)) from error


def system_authorities() -> bytes:
    """Return the system's authorities (PEM) that a transport takes. It takes all or none."""
    known = ssl.create_default_context().get_ca_certs(binary_form=True)
    texts = (ssl.DER_cert_to_PEM_cert(certificate).encode() for certificate in known)
    return b"".join(text for text in texts if _is_taken(text))


def _is_taken(authority: bytes) -> bool:
    try:
        HTTPTransport(tls_ca_cert=authority)
    except RuntimeError:
        return False
    return True
