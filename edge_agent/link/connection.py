"""The connections to one verifier or other peer. Only this file imports pyqwest.

A stream that is left early is reset, and a new connection replaces one that the server
recycles. Any failure to reach the verifier is a LinkDown, even if this process has no file
descriptor left.
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from http import HTTPStatus
from types import MappingProxyType
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from pyqwest import (
    Client,
    HTTPTransport,
    HTTPVersion,
    Proxy,
    ReadError,
    RemoteProtocolError,
    WriteError,
)
from pyqwest import Response as Response

from edge_agent.link.errors import (
    VERIFIER,
    AnswerTooLong,
    Peer,
    VerifierResponse,
    from_answer,
    unreachable,
)
from edge_agent.settings import EdgeSettings
from gateway.errors import (
    EngineFault,
    Unavailable,
)
from gateway.hosting.strangers import is_loopback

CONTENT_TYPE: Final = "application/vnd.picospec"
CONNECT_TIMEOUT_S: Final = 3.0
"""A connection to a verifier must be open within this time, or another verifier is asked."""

REQUEST_TIMEOUT_S: Final = 5.0
"""A verifier must answer within this time where its facts, Drafts or an acknowledgement are
concerned."""

SESSION_HEADER: Final = "picospec-session"
OPEN_PATH: Final = "/v1/speculate"
UPLOADS_PATH: Final = f"{OPEN_PATH}/uploads"
TAKES_RECORDS: Final[Mapping[str, str]] = MappingProxyType({"picospec-answer": "records"})
"""This header asks that the answer of an upload stream consists of records."""

NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})

MAX_ANSWER_BYTES: Final = 1 << 20
"""A verifier's answer that is no stream and no tokenizer has at most this many bytes. The
longest are facts with 1,024 stop tokens and 256 features."""


def session_headers() -> dict[str, str]:
    """Return the header of all requests of one session, by which a proxy in front of several
    verifiers can keep them together."""
    return {SESSION_HEADER: secrets.token_hex(8)}


def _no_proxy(host: str) -> Proxy:
    """Return what replaces the proxy that the environment names (HTTP_PROXY) for this host: it
    leads to no service of this machine, passes on no HTTP/2 without TLS, and looks names up
    itself."""
    return Proxy("http://127.0.0.1", no_proxy=host)


class Credentials(NamedTuple):
    """What a connection shows to its peer, and whom it trusts."""

    key: str | None = None
    ca_certificate: bytes | None = None
    """The authorities (PEM) that https:// checks a certificate against; None: the system's."""

    certificate: tuple[bytes, bytes] | None = None
    """The chain and key (PEM) to show to a peer that asks for them."""


NO_CREDENTIALS: Final = Credentials()


class Connection:
    """A connection to one peer. It is made at its first use, and dropped by `renew`. It retries
    nothing; errors are ApiErrors: LinkDown if no answer comes, else the peer's error.

    http:// uses HTTP/2 with prior knowledge; https:// negotiates HTTP/2 by ALPN.

    prior_knowledge: if False, http:// uses HTTP/1.1 with one connection per running request.
    address: an IP address, which is used in place of those of the host's name. The certificate
    must still have the name.
    """

    def __init__(
        self,
        url: str,
        credentials: Credentials = NO_CREDENTIALS,
        *,
        peer: Peer = VERIFIER,
        prior_knowledge: bool = True,
        address: str = "",
    ) -> None:
        self.base = url
        self.address = address
        self.url = f"{url} ({address})" if address else url
        """Names the peer in errors, in the log and in /status."""

        self.peer = peer
        self._headers = {"content-type": CONTENT_TYPE, "accept-encoding": "identity"}
        if credentials.key:
            self._headers["authorization"] = f"Bearer {credentials.key}"
        secured, authorities = url.startswith("https://"), credentials.ca_certificate
        if secured and authorities is None:
            authorities = system_authorities() or None
        chain, private_key = credentials.certificate or (None, None)
        host = urlsplit(url).hostname or ""
        is_direct = bool(address) or is_loopback(host) or (prior_knowledge and not secured)
        self._make = partial(
            HTTPTransport,
            http_version=HTTPVersion.HTTP2 if prior_knowledge and not secured else None,
            tls_ca_cert=authorities,
            tls_include_system_certs=secured and authorities is None,
            tls_cert=chain,
            tls_key=private_key,
            proxy=_no_proxy(host) if is_direct else None,
            connect_timeout=CONNECT_TIMEOUT_S,
            dns_overrides={host: [address]} if address else None,
            follow_redirects=False,
            enable_otel=False,
            enable_gzip=False,
            enable_brotli=False,
            enable_zstd=False,
        )
        self.client: Client | None = Client(self._make())  # raises for a wrong certificate

    def renew(self, silent: Client | None) -> None:
        """Make later requests open a new connection, because this one may be dead or lead to a
        stopped process, which the transport notices late. silent: the client to replace,
        None for one made since; nothing happens if it was replaced already."""
        if silent in (None, self.client):
            self.client = None

    def _made(self) -> Client:
        if self.client is None:
            try:
                self.client = Client(self._make())
            except RuntimeError as error:
                raise ConnectionError(str(error)) from error
        return self.client

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        body: bytes | AsyncIterator[bytes] = b"",
        headers: Mapping[str, str] = NO_HEADERS,
        *,
        within_s: float | None = None,
    ) -> AsyncGenerator[Response]:
        """Yield a response whose head arrived within `within_s`; its content is still to be
        read. Raises LinkDown, also in place of a TimeoutError of the reader."""
        client, url = self.client, self.base + path
        try:
            client = self._made()
            async with AsyncExitStack() as stack:
                async with asyncio.timeout(within_s):
                    answer = client.stream(method, url, {**self._headers, **headers}, body)
                    response = await stack.enter_async_context(answer)
                yield response
        except (OSError, ReadError, WriteError, RemoteProtocolError) as error:
            if isinstance(error, TimeoutError):
                self.renew(client)
            raise unreachable(self.url, error, self.peer) from error

    @asynccontextmanager
    async def post_to(
        self,
        path: str,
        headers: Mapping[str, str],
        body: bytes | AsyncIterator[bytes],
        *,
        within_s: float | None = None,
    ) -> AsyncGenerator[Response]:
        """Yield the response to a POST; its content is still to be read. Raises ApiError, also
        for every status but 200."""
        async with self.stream("POST", path, body, headers, within_s=within_s) as response:
            if response.status != HTTPStatus.OK:
                async with asyncio.timeout(REQUEST_TIMEOUT_S):
                    raise from_answer(await read_answer(response), self.peer)
            yield response

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] = NO_HEADERS,
        *,
        within_s: float,
        max_bytes: int = MAX_ANSWER_BYTES,
    ) -> VerifierResponse:
        """Return a whole answer. Raises LinkDown; AnswerTooLong for more than `max_bytes`."""
        client = self.client
        try:
            async with (
                asyncio.timeout(within_s),
                self.stream(method, path, body, headers) as response,
            ):
                return await read_answer(response, max_bytes)
        except TimeoutError as error:
            self.renew(client)
            raise unreachable(self.url, error, self.peer) from error

    @asynccontextmanager
    async def open(
        self, frame: bytes, headers: Mapping[str, str], within_s: float
    ) -> AsyncGenerator[AsyncIterator[bytes]]:
        """Open a session with an Open's frame, which must be answered within `within_s`; yield
        the pieces of its stream. Leaving the context ends the session. A TimeoutError that
        leaves it becomes a LinkDown too."""
        async with self.post_to(OPEN_PATH, headers, frame, within_s=within_s) as response:
            yield (bytes(piece) async for piece in response.content)

    @asynccontextmanager
    async def upload(
        self, records: AsyncIterator[bytes], headers: Mapping[str, str]
    ) -> AsyncGenerator[AsyncIterator[bytes]]:
        """Begin an upload stream of these records; yield the pieces of its answer. The caller
        limits the time. Raises ApiError, also without HTTP/2."""
        headers = {**headers, **TAKES_RECORDS}
        async with self.post_to(UPLOADS_PATH, headers, records) as response:
            if response.http_version != HTTPVersion.HTTP2:
                raise EngineFault("an upload stream needs HTTP/2")
            yield (bytes(piece) async for piece in response.content)

    async def post(self, session: str, frames: bytes, headers: Mapping[str, str]) -> bool:
        """Send drafts of a session. Return True if the session was still there."""
        path = f"{OPEN_PATH}/{session}/drafts"
        answer = await self.ask("POST", path, frames, headers, within_s=REQUEST_TIMEOUT_S)
        match answer.status:
            case HTTPStatus.NO_CONTENT:
                return True
            case HTTPStatus.NOT_FOUND:
                return False
            case HTTPStatus.TOO_MANY_REQUESTS:
                raise Unavailable("the verifier takes no drafts now")
        error = from_answer(answer)
        if isinstance(error, Unavailable):
            raise error
        raise EngineFault(f"the verifier does not take a draft: {error.message}")


class Connector:
    """Makes connections to an edge's verifiers, with its certificates, which are used when a
    connection is. key: the one to show. Raises OSError if a file cannot be read."""

    def __init__(self, settings: EdgeSettings, key: str | None) -> None:
        authority = settings.verifier_ca.read_bytes() if settings.verifier_ca else None
        certificate: tuple[bytes, bytes] | None = None
        if settings.client_certificate and settings.client_key:
            chain, private = settings.client_certificate, settings.client_key
            certificate = chain.read_bytes(), private.read_bytes()
        self._credentials = Credentials(key, authority, certificate)

    def __call__(
        self, url: str, address: str = "", *, prior_knowledge: bool = True
    ) -> Connection:
        return Connection(
            url, self._credentials, prior_knowledge=prior_knowledge, address=address
        )


async def read_answer(
    response: Response, max_bytes: int = MAX_ANSWER_BYTES
) -> VerifierResponse:
    """Return an answer with its whole body, which is not decompressed, because a few bytes
    could become many. The caller limits the time. Raises AnswerTooLong."""
    body = bytearray()
    async for piece in response.content:
        body += piece
        if len(body) > max_bytes:
            raise AnswerTooLong(f"the verifier sends an answer of more than {max_bytes} bytes")
    return VerifierResponse(
        response.status, bytes(body), response.headers.get("retry-after", "")
    )


def system_authorities() -> bytes:
    """Return the system's authorities (PEM), less each that a transport does not accept."""
    known = ssl.create_default_context().get_ca_certs(binary_form=True)
    texts = (ssl.DER_cert_to_PEM_cert(certificate).encode() for certificate in known)
    return b"".join(text for text in texts if _is_taken(text))


def _is_taken(authority: bytes) -> bool:
    try:
        HTTPTransport(tls_ca_cert=authority)
    except RuntimeError:
        return False
    return True
