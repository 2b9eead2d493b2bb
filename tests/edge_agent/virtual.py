"""A verifier without sessions, which says whether it is ready and what it serves."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import msgspec

from edge_agent.link.errors import LinkDown, VerifierResponse
from speculation.model_facts import Limits, ModelFacts

RTT_S = 0.05
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
