"""One HTTP/2 connection to a verifier. Only this file imports pyqwest.

Its httpx transport keeps httpx's API, resets a stream that is closed early, and opens a new
connection when a server recycles the old one.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
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

CONTENT_TYPE: Final = "application/vnd.picospec"
CONNECT_TIMEOUT_S: Final = 3.0
REQUEST_TIMEOUT_S: Final = 5.0
SESSION_HEADER: Final = "picospec-session"


def session_headers() -> dict[str, str]:
    """Return the header that all requests of one session bear, so that a proxy in front of
    several verifiers can keep them together."""
    return {SESSION_HEADER: secrets.token_hex(8)}


class Connection:
    """It is made at its first use, and given up by `renew`.

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
        self._certificate = certificate
        self._ca_certificate = ca_certificate
        self._headers = {"content-type": CONTENT_TYPE, "accept-encoding": "identity"}
        if key:
            self._headers["authorization"] = f"Bearer {key}"
        self._connect()

    def _connect(self) -> None:
        chain, key = self._certificate or (None, None)
        transport = HTTPTransport(
            http_version=HTTPVersion.HTTP2 if self.url.startswith("http://") else None,
            tls_ca_cert=self._ca_certificate,
            tls_include_system_certs=self._ca_certificate is None,
            tls_cert=chain,
            tls_key=key,
            connect_timeout=CONNECT_TIMEOUT_S,
            follow_redirects=False,
            enable_otel=False,
            enable_gzip=False,
            enable_brotli=False,
            enable_zstd=False,
        )
        self._poster = Client(transport)
        self.client = httpx.AsyncClient(
            base_url=self.url,
            transport=AsyncPyqwestTransport(transport),
            headers=self._headers,
            timeout=REQUEST_TIMEOUT_S,
        )

    def renew(self, silent: httpx.AsyncClient) -> None:
        """Have later requests make a new connection, because nothing comes over this one: a
        dead one is noticed in minutes only. silent: the client whose request found it so; of
        several requests the first one renews it."""
        if self.client is silent:
            self._connect()

    async def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> httpx.Response:
        """Send drafts, without httpx, which would take three times the processor time.

        headers: those of the session. Raises httpx.TransportError.
        """
        silent = self.client
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                response = await self._poster.post(
                    self.url + path, {**self._headers, **headers}, body
                )
        except ConnectionError as error:
            raise httpx.ConnectError(str(error)) from error
        except TimeoutError as error:
            self.renew(silent)
            raise httpx.ReadTimeout("no answer") from error
        except (ReadError, WriteError, RemoteProtocolError) as error:
            raise httpx.NetworkError(str(error)) from error
        return httpx.Response(response.status, content=response.content)

    async def close(self) -> None:
        await self.client.aclose()
