"""A process without a free file descriptor loses no answer that runs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from picospec.edge_agent.link import connection
from picospec.edge_agent.metrics import EdgeMetrics
from tests.edge_agent.conftest import metrics as metrics
from tests.edge_agent.faulty_link import FaultyLink
from tests.edge_agent.fleet import TEXT, Answer, running, using
from tests.edge_agent.processes import ROOT

RENEW_WITHOUT_DESCRIPTORS = """
import asyncio, os, resource
from contextlib import suppress
from picospec.edge_agent.link.connection import Connection
from picospec.edge_agent.link.connection import LinkDown

async def main():
    for url in ("http://127.0.0.1:9", "https://127.0.0.1:9"):
        link, held = Connection(url, key=None, ca_certificate=None), []
        with suppress(LinkDown):
            await link.ask("GET", "/ready")
        with suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        for ask in (lambda: link.ask("GET", "/ready"), lambda: link.post("x", b"", {})):
            link.renew(link.client)
            try:
                await ask()
            except LinkDown as error:
                assert "Too many open files" in str(error), error
            else:
                raise AssertionError(url)
        for descriptor in held:
            os.close(descriptor)

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
asyncio.run(main())
os._exit(0)  # threads of the HTTP client that still run do not outlive an interpreter that ends
"""


def test_without_a_descriptor_a_connection_is_renewed_and_its_requests_fail() -> None:
    command = [sys.executable, "-c", RENEW_WITHOUT_DESCRIPTORS]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": "1"}

    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("error", [RuntimeError("no client"), OSError(24, "Too many open")])
async def test_an_answer_is_resumed_once_a_transport_can_be_made_again(
    metrics: EdgeMetrics, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    make, refused = connection.HTTPTransport, list[Exception]()

    def made(**options: object) -> object:
        if refused:
            raise refused.pop()
        return make(**options)  # type: ignore[arg-type]

    monkeypatch.setattr(connection, "HTTPTransport", made)
    with running("") as (only,):
        async with FaultyLink(only.port) as link, using([link.url], metrics) as verifiers:

            async def fall_silent() -> None:
                refused.extend([error] * 3)
                link.half_open()

            assert await Answer(verifiers, metrics).run(fall_silent) == TEXT

    assert not refused
    assert metrics.reopens._value.get() == 0
