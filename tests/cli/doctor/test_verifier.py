"""What the doctor finds on the way to a verifier, and what it advises."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from prometheus_client import CollectorRegistry

from picospec.cli.doctor.drafting import check_gain, check_vocabulary
from picospec.cli.doctor.verifier import check_certificate, check_verifier, not_reached
from picospec.edge_agent.app import open_verifiers
from picospec.edge_agent.metrics import EdgeMetrics
from picospec.edge_agent.settings import EdgeSettings, load
from picospec.gateway.errors import ApiError, EngineFault, Unavailable
from picospec.models.store import open_store


@contextmanager
def tls(issued: trustme.LeafCert) -> Iterator[int]:
    """Serve TLS handshakes with a certificate; yield the port."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    issued.configure_cert(context)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def handshakes() -> None:
            while True:
                try:
                    plain, _ = server.accept()
                except OSError:
                    return
                try:
                    context.wrap_socket(plain, server_side=True).close()
                except OSError:
                    plain.close()

        threading.Thread(target=handshakes, daemon=True).start()
        yield int(server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)


def settings(url: str, ca: Path | None = None) -> EdgeSettings:
    return load(None, {}, {"verifier_url": url, "verifier_ca": ca, "draft_model": "smollm2"})


def authority(folder: Path) -> tuple[trustme.CA, Path]:
    ca, pem = trustme.CA(), folder / "ca.pem"
    ca.cert_pem.write_to_path(str(pem))
    return ca, pem


def test_a_certificate_of_the_named_authority_is_valid_until_it_ends(tmp_path: Path) -> None:
    ca, pem = authority(tmp_path)
    with tls(ca.issue_cert("localhost")) as port:
        known = check_certificate(settings(f"https://localhost:{port}", pem))
        unknown = check_certificate(settings(f"https://localhost:{port}"))
    soon = datetime.now(UTC) + timedelta(days=3)
    with tls(ca.issue_cert("localhost", not_after=soon)) as port:
        ending = check_certificate(settings(f"https://localhost:{port}", pem))
    with tls(ca.issue_cert("elsewhere.example")) as port:
        foreign = check_certificate(settings(f"https://localhost:{port}", pem))

    assert known.ok
    assert [each.ok for each in (unknown, ending, foreign)] == [False, False, False]
    assert "verifier_ca" in unknown.remedy
    assert "2 days" in ending.remedy or "3 days" in ending.remedy


def test_a_service_without_tls_has_no_certificate() -> None:
    with socket.create_server(("127.0.0.1", 0)) as plain:
        port = plain.getsockname()[1]
        plain.close()
        finding = check_certificate(settings(f"https://localhost:{port}"))

    assert not finding.ok
    assert check_certificate(settings("http://127.0.0.1:9000")).ok
    assert "can be read" in check_certificate(settings("http://192.0.2.1")).found


@pytest.mark.parametrize(
    ("error", "subject", "remedy"),
    [
        (EngineFault("no", code="verifier_unauthorized"), "key", "PICOSPEC_VERIFIER_KEY"),
        (EngineFault("no", code="protocol_version"), "protocol", "one version of PicoSpec"),
        (EngineFault("not a verifier"), "verifier", "another service"),
        (Unavailable("no route"), "verifier", "firewall"),
    ],
)
def test_what_stopped_the_edge_is_named_with_a_remedy(
    error: ApiError, subject: str, remedy: str
) -> None:
    *before, last = not_reached(error, "https://gpu.example:9000")

    assert all(finding.ok for finding in before)
    assert (last.subject, last.ok) == (subject, False)
    assert remedy in last.remedy


def test_a_verifier_elsewhere_must_answer_and_one_here_need_not_yet(tmp_path: Path) -> None:
    async def verdict(host: str) -> bool:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            chosen = settings(f"http://{host}:{closed.getsockname()[1]}")
            (uplink,) = open_verifiers(chosen, EdgeMetrics(CollectorRegistry())).uplinks
            store = open_store({"PICOSPEC_CACHE": str(tmp_path)})
            findings = await check_verifier(chosen, store, uplink)
            return all(finding.ok for finding in findings)

    assert asyncio.run(verdict("localhost"))
    assert not asyncio.run(verdict("127.0.0.2"))


def test_other_tokens_are_well_where_judging_keeps_them_exact() -> None:
    assert check_vocabulary("padded", "separate").ok
    assert check_vocabulary("different", "coupled").ok
    assert not check_vocabulary("different", "separate").ok


def test_a_draft_model_as_slow_as_the_target_gains_nothing() -> None:
    quick = check_gain(pass_s=0.07, draft_s=0.02, rtt_s=0.05)
    slow = check_gain(pass_s=0.07, draft_s=0.07, rtt_s=0.05)

    assert quick.ok
    assert "code 3" in quick.found
    assert not slow.ok
    assert "a smaller draft model" in slow.remedy
