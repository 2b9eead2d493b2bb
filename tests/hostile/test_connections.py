"""Strangers who only hold connections, at both ends."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx
import pytest

from bench.run.services import free_port
from gateway.hosting.connections import silent
from tests.verifier.conftest import fake_command, serving

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts a socket's bytes")
DESCRIPTORS = 200


@contextmanager
def held(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Hold connections on which nothing is sent."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            for _ in range(count)
        ]


@LINUX
@pytest.mark.parametrize(
    ("sent", "is_cut"), [(b"", True), (b"PRI * HTTP", True), (b"x" * 24, False)]
)
def test_only_a_connection_without_a_first_request_is_cut(sent: bytes, is_cut: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
            accepted, _ = listener.accept()
            client.sendall(sent)
            with accepted:
                if sent:
                    accepted.recv(len(sent), socket.MSG_WAITALL)
                count = silent.look(port, patience_s=-1.0)
                accepted.setblocking(False)
                try:
                    was_cut = accepted.recv(1) == b""
                except BlockingIOError:
                    was_cut = False

    assert count == 1
    assert was_cut == is_cut


@LINUX
def test_silent_connections_do_not_make_a_verifier_unreachable() -> None:
    port = free_port()
    limited = ["prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}", *fake_command(port)]
    with serving(limited, port), held(port, 2 * DESCRIPTORS):
        answer = httpx.get(f"http://127.0.0.1:{port}/health", timeout=30, trust_env=False)

    assert answer.status_code == 200
