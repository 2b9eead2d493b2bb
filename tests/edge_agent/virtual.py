"""Verifiers without sessions, which say whether they are ready and what they serve."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
from prometheus_client import CollectorRegistry

from edge_agent.link.errors import LinkDown, VerifierResponse
from edge_agent.link.names import Name
from edge_agent.link.verifier import Verifier
from edge_agent.link.verifiers import Verifiers
from edge_agent.metrics import EdgeMetrics
from speculation.model_facts import Limits, ModelFacts

RTT_S = 0.05
URL = "http://verifiers:9000"
FACTS = ModelFacts(
    "m", 1000, "v", 512, [7], Limits(max_verify=4, max_ahead=16), ["coupled"], [], identity="i"
)


@dataclass(eq=False)
class FakeVerifier:
    """An edge_agent.link.connection.Connection to it."""

    client: object = field(default_factory=object)
    url: str = "fake"
    up: bool = True
    facts: bytes = msgspec.json.encode(FACTS)

    def renew(self, silent: object) -> None:
        if silent in (None, self.client):
            self.client = object()

    async def ask(self, method: str, path: str, **_: object) -> VerifierResponse:
        await asyncio.sleep(RTT_S)
        if not self.up:
            raise LinkDown("not ready")
        return VerifierResponse(200, self.facts if path == "/v1/model-facts" else b"{}")


@dataclass
class Fleet:
    """The verifiers that a name leads to, and an edge that knows the name alone."""

    found: list[str] | OSError = field(default_factory=list)
    asked: int = 0
    behind: dict[str, FakeVerifier] = field(default_factory=dict)
    metrics: EdgeMetrics = field(default_factory=lambda: EdgeMetrics(CollectorRegistry()))

    def __post_init__(self) -> None:
        self.name = Name(URL, self.make, self.resolve)
        self.edge = Verifiers([], self.metrics, 30.0, [self.name])

    def make(self, name: Name, address: str) -> Verifier:
        fake = self.at(address)
        return Verifier(fake, self.metrics, lost=name.look)  # type: ignore[arg-type]

    def at(self, address: str) -> FakeVerifier:
        new = FakeVerifier(url=f"verifiers ({address})", up=bool(address))
        return self.behind.setdefault(address, new)

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        assert (host, port) == ("verifiers", 9000)
        self.asked += 1
        if isinstance(self.found, OSError):
            raise self.found
        return self.found

    @property
    def used(self) -> list[str]:
        return sorted(v.url.removeprefix("verifiers").strip(" ()") for v in self.edge.all)
