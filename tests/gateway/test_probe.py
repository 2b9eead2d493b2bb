"""A container's health check, against services with and without TLS."""

from __future__ import annotations

import http.server
import socket
import ssl
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trustme

from picospec.gateway.hosting.probe import trouble

ROOT = Path(__file__).parents[2]
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of a connection that is reset when it is closed."""


class Answers(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/health" else 404)
        self.end_headers()
        self.wfile.write(b"so it is")

    def log_message(self, *_: object) -> None:
        pass


class Fails(Answers):
    status = 503


@contextmanager
def served(
    context: ssl.SSLContext | None = None, answers: type[Answers] = Answers
) -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), answers)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    if context:
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def context_of(authority: trustme.CA, *, asks: bool) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("verifier.example").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED if asks else ssl.CERT_NONE
    return context


@pytest.mark.parametrize("environ", [{}, {"PICOSPEC_VERIFIER__TLS__CERTIFICATE": "f"}])
@pytest.mark.parametrize("kind", ["plain", "tls", "mutual"])
def test_a_service_that_answers_is_alive_whatever_it_speaks(
    kind: str, environ: dict[str, str]
) -> None:
    authority = trustme.CA()
    context = None if kind == "plain" else context_of(authority, asks=kind == "mutual")

    with served(context) as port:
        assert trouble(port, environ) == ""


@pytest.mark.parametrize(
    "answer", [b"garbage\r\n\r\n", b"", None], ids=["garbage", "reset", "silence"]
)
def test_what_does_not_answer_a_hello_by_tls_is_dead(
    answer: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """answer: what every connection gets before it is closed; None for nothing, and no end."""
    monkeypatch.setattr("picospec.gateway.hosting.probe.TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=answered, args=(server, answer), daemon=True).start()

        assert trouble(server.getsockname()[1], {}) != ""


def answered(server: socket.socket, answer: bytes | None) -> None:
    kept = []
    with suppress(OSError):  # the end of the test closes it
        while True:
            connection, _ = server.accept()
            if answer is None:
                kept.append(connection)
                continue
            if answer:
                connection.sendall(answer)
            else:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            connection.close()


def test_a_service_that_says_so_is_not_alive() -> None:
    for context in (None, context_of(trustme.CA(), asks=False)):
        with served(context, Fails) as port:
            assert trouble(port, {}) == "503 so it is"


def test_the_probe_is_a_command() -> None:
    command = [sys.executable, "-m", "picospec.gateway.hosting.probe"]
    with served() as port:
        assert subprocess.run([*command, str(port)], cwd=ROOT).returncode == 0

    with socket.socket() as taken:  # by nobody who listens, and by nobody else meanwhile
        taken.bind(("127.0.0.1", 0))
        command.append(str(taken.getsockname()[1]))
        dead = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert dead.returncode == 1
    assert "refused" in dead.stderr
