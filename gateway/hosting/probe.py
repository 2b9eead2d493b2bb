"""`python -m gateway.hosting.probe PORT` exits with 0 if a service is alive.

It is for a container's health check, and imports nothing that takes time. It requests /health,
over TLS if the service uses TLS; the certificate is not checked, because the service is this
container's own. A service that requires a client's certificate closes the connection at any
moment: a service that answers the client's hello with TLS is alive.
"""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

HOST: Final = "127.0.0.1"
TIMEOUT_S: Final = 4.0

_TLS_RECORDS: Final = (b"\x15\x03", b"\x16\x03")
"""An alert and a handshake message begin with these bytes (RFC 8446, 5.1)."""


def trouble(port: int, environ: Mapping[str, str]) -> str:
    """Return the reason why the service is not alive; empty if it is alive.

    environ: tells whether to try TLS first, because a service may log what it cannot read.
    """
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    plain = http.client.HTTPConnection(HOST, port, timeout=TIMEOUT_S)
    secure = http.client.HTTPSConnection(HOST, port, timeout=TIMEOUT_S, context=context)
    is_secure = any(name.endswith("__TLS__CERTIFICATE") for name in environ)
    reason = ""
    for connection in (secure, plain) if is_secure else (plain, secure):
        try:
            return _ask(connection)
        except (OSError, http.client.HTTPException) as error:
            if connection is secure and _answers_hello(port, context, error):
                return ""
            reason = reason or f"{type(error).__name__}: {error}"
    return reason


def _ask(connection: http.client.HTTPConnection) -> str:
    try:
        connection.request("GET", "/health")
        response = connection.getresponse()
        body = response.read(4096).decode(errors="replace")
        return "" if response.status == 200 else f"{response.status} {body}"
    finally:
        connection.close()


def _answers_hello(port: int, context: ssl.SSLContext, error: Exception) -> bool:
    """Return True if a service that failed with an error answers a TLS hello with TLS. After a
    timeout the service is not asked again."""
    if isinstance(error, TimeoutError):
        return False
    received, sent, head = ssl.MemoryBIO(), ssl.MemoryBIO(), b""
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(received, sent).do_handshake()
    with suppress(OSError), socket.create_connection((HOST, port), TIMEOUT_S) as raw:
        raw.sendall(sent.read())
        while len(head) < 2 and (more := raw.recv(2 - len(head))):
            head += more
    return head in _TLS_RECORDS


if __name__ == "__main__":
    sys.exit(trouble(int(sys.argv[1]), os.environ) or None)
