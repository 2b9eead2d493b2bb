"""TLS at both ends, and certificates of clients, with authorities made here."""

from __future__ import annotations

import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from prometheus_client import CollectorRegistry

from bench.run.services import free_port
from edge_agent.app import open_verifiers
from edge_agent.link.session import EdgeSession
from edge_agent.link.verifier import Verifier
from edge_agent.metrics import EdgeMetrics
from edge_agent.settings import EdgeSettings, load
from gateway.errors import Unavailable
from gateway.hosting.strangers import check_listening
from local_models.store import open_store
from picospec.verifier_checks import check_verifier
from speculation.messages import Commit, Down, Finish
from tests.edge_agent.processes import wait_for
from tests.verifier.conftest import KEY, fake_command, running
from tests.verifier.fake_target import STREAMS, opening, said


@dataclass
class Files:
    """Certificates in a folder; each has an authority of its own."""

    folder: Path

    def authority(self, name: str) -> trustme.CA:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self.folder / f"{name}-ca.pem"))
        return authority

    def certificate(self, name: str, of: trustme.CA) -> None:
        issued = of.issue_cert("127.0.0.1", "localhost")
        (self.folder / f"{name}.pem").write_bytes(
            b"".join(each.bytes() for each in issued.cert_chain_pems)
        )
        key = load_pem_private_key(issued.private_key_pem.bytes(), None)
        pkcs8 = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (self.folder / f"{name}-key.pem").write_bytes(pkcs8)

    def path(self, name: str) -> str:
        return str(self.folder / name)

    @property
    def service(self) -> dict[str, str]:
        """The TLS settings of a service that takes only the edge's certificate."""
        names = ("service.pem", "service-key.pem", "edge-ca.pem")
        return dict(
            zip(("certificate", "key", "client_ca"), map(self.path, names), strict=True)
        )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A certificate of the services, of an edge, and of a stranger."""
    made = Files(tmp_path_factory.mktemp("certificates"))
    for name in ("service", "edge", "stranger"):
        made.certificate(name, made.authority(name))
    return made


@contextmanager
def served(command: list[str], port: int) -> Iterator[None]:
    with running(command, KEY) as process:
        wait_for(port, process)
        yield


@pytest.fixture(scope="module")
def verifier(files: Files) -> Iterator[str]:
    """A verifier that takes only the edge's certificate."""
    port = free_port()
    with served(fake_command(port, tls=files.service), port):
        yield f"https://127.0.0.1:{port}"


def settings(verifier: str, files: Files, shown: str | None) -> EdgeSettings:
    """The edge's, with the certificate that it shows."""
    own = {} if shown is None else {
        "client_certificate": files.path(f"{shown}.pem"),
        "client_key": files.path(f"{shown}-key.pem"),
    }  # fmt: skip
    named = {"verifier_urls": [verifier], "verifier_ca": files.path("service-ca.pem"), **own}
    return load(None, {"PICOSPEC_VERIFIER_KEY": KEY}, named)


def edges_verifier(chosen: EdgeSettings) -> Verifier:
    (only,) = open_verifiers(chosen, EdgeMetrics(CollectorRegistry())).all
    return only


async def test_an_edge_with_a_certificate_of_the_right_authority_gets_its_text(
    verifier: str, files: Files
) -> None:
    edges = edges_verifier(settings(verifier, files, "edge"))
    facts = await edges.facts()
    session = EdgeSession(edges, opening(prompt=(STREAMS, 5), max_tokens=5))
    messages: list[Down] = [message async for message in session.events()]
    was_there = await edges.connection.post("none", b"", {})

    assert facts.model == "fake"
    committed = [token for m in messages if isinstance(m, Commit) for token in m.tokens]
    assert committed == [said((STREAMS,), i) for i in range(5)]
    assert isinstance(messages[-1], Finish)
    assert not was_there


@pytest.mark.parametrize("shown", [None, "stranger"])
async def test_without_such_a_certificate_the_key_opens_nothing(
    verifier: str, files: Files, shown: str | None
) -> None:
    edges = edges_verifier(settings(verifier, files, shown))

    with pytest.raises(Unavailable):
        await edges.check()


async def test_the_doctor_names_an_authority_that_did_not_sign(
    verifier: str, files: Files
) -> None:
    other = {"verifier_ca": Path(files.path("edge-ca.pem"))}
    chosen = settings(verifier, files, "edge").model_copy(update=other)

    findings = await check_verifier(chosen, open_store({}), edges_verifier(chosen))

    assert [(each.subject, each.ok) for each in findings][1:] == [("certificate", False)]
    assert "verifier_ca" in findings[1].remedy


def test_the_edge_serves_by_tls_and_asks_for_a_certificate(files: Files) -> None:
    port = free_port()
    options = [f"PICOSPEC_EDGE__TLS__{k.upper()}={path}" for k, path in files.service.items()]
    command = [
        *("env", *options),
        *(sys.executable, "-m", "edge_agent", "--port", str(port), "--draft", "none"),
        *("--verifier-url", "http://127.0.0.1:1"),
    ]
    with served(command, port):
        answered = _get(port, files, "edge")
        for shown in (None, "stranger"):
            with pytest.raises((httpx.TransportError, ssl.SSLError)):
                _get(port, files, shown)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False)

    assert answered.json()["status"] == "ok"


def _get(port: int, files: Files, shown: str | None) -> httpx.Response:
    context = ssl.create_default_context(cafile=files.path("service-ca.pem"))
    if shown is not None:
        context.load_cert_chain(files.path(f"{shown}.pem"), files.path(f"{shown}-key.pem"))
    with httpx.Client(verify=context, trust_env=False) as client:
        return client.get(f"https://127.0.0.1:{port}/health")


def test_a_certificate_without_its_key_and_a_file_that_is_not_there_are_errors(
    files: Files,
) -> None:
    with pytest.raises(ValueError, match="client_key"):
        load(None, {}, {"client_certificate": files.path("edge.pem")})
    tls = {"certificate": files.path("edge.pem"), "key": "nowhere.pem"}
    with pytest.raises(ValueError, match=r"tls.key: there is no file nowhere\.pem"):
        check_listening(load(None, {}, {"tls": tls}))


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("https://gpu.example:9000", "k"),
        ("http://gpu.example:9000", ""),
        ("http://127.0.0.1:9000", "k"),
        ("http://[::1]:9000", "k"),
    ],
)
def test_a_key_goes_elsewhere_in_the_clear_only_if_that_is_allowed(url: str, key: str) -> None:
    secret = {"PICOSPEC_VERIFIER_KEY": key}
    assert load(None, secret, {"verifier_urls": [url]})

    plain = {"verifier_urls": ["http://gpu.example:9000"]}
    assert load(None, {"PICOSPEC_VERIFIER_KEY": "k"}, {**plain, "allow_plain_http": True})
    with pytest.raises(ValueError, match=r"allow_plain_http: .* gpu\.example in the clear"):
        load(None, {"PICOSPEC_VERIFIER_KEY": "k"}, plain)
