"""`python -m gateway.hosting.probe PORT`: whether the service on that port is alive, by status.

It is for a container's health check, and imports nothing that takes time. It asks /health, over
TLS where the service speaks that; the certificate is not checked, because the service is this
container's own.
"""

from __future__ import annotations

import http.client
import os
import ssl
import sys
from collections.abc import Mapping
from typing import Final

HOST: Final = "127.0.0.1"
TIMEOUT_S: Final = 4.0


def trouble(port: int, environ: Mapping[str, str]) -> str:
    """Return why the service is not alive; empty if it is.

    environ: says what to try first, because a service may log what it cannot read.
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
            if "certificate required" in str(error).lower():
                return ""  # whoever asks for a client's certificate is alive
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


if __name__ == "__main__":
    sys.exit(trouble(int(sys.argv[1]), os.environ) or None)
