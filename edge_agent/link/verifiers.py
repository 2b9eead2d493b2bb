"""The verifiers that an edge may use, and the choice among them.

If there are several, each is regularly asked whether it is ready. A new answer begins at the
best by delay and load; one that loses its verifier goes on at another of the same identity.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from random import uniform
from typing import Final

import msgspec

from picospec.edge_agent.link.fleet import Fleet
from picospec.edge_agent.link.sessions import Sessions
from picospec.edge_agent.link.uplink import Uplink
from picospec.edge_agent.metrics import EdgeMetrics
from picospec.gateway.errors import ApiError, EngineFault, Unavailable
from picospec.gateway.tracing import Span
from picospec.speculation.messages import ModelFacts

PROBE_S: Final = 2.0
"""All verifiers are probed at about this interval, if there are several."""


class Verifiers:
    """deadline_s: see edge_agent.link.course.Course."""

    def __init__(
        self, uplinks: Sequence[Uplink], metrics: EdgeMetrics, deadline_s: float
    ) -> None:
        self.uplinks = uplinks
        self.fleet = Fleet([uplink.endpoint for uplink in uplinks])
        self._metrics = metrics
        self._deadline_s = deadline_s
        self._probing: asyncio.Task[None] | None = None

    @property
    def current(self) -> Uplink:
        """The uplink of the verifier whose facts were returned last."""
        return self.uplinks[self.fleet.current.number]

    async def facts(self) -> ModelFacts:
        """Return the facts of the best verifier that can be reached. Raises ApiError."""
        error: ApiError | None = None
        for endpoint in self.fleet.ranked(self.fleet.current.identity):
            uplink = self.uplinks[endpoint.number]
            try:
                facts = await uplink.facts()
            except ApiError as failed:
                error = error or failed
            else:
                self.fleet.current = endpoint
                self._metrics.rtt_s.set(uplink.rtt_s)
                return facts
        raise error or Unavailable("there is no verifier")

    @property
    def ready(self) -> bool:
        """True if any verifier is ready, as far as is known."""
        return self.fleet.is_ready

    @property
    def is_compatible(self) -> bool:
        """True if the verifier in use speaks this edge's version of the protocol."""
        return self.fleet.current.is_compatible

    async def tokenizer(self) -> bytes:
        """Return the target's tokenizer, packed. Raises Unavailable or EngineFault."""
        return await self.current.tokenizer()

    def answer(self, span: Span) -> Sessions:
        """Return the sessions of one answer, whose trace has this span. Raises EngineFault if
        the verifier in use opens none for this edge."""
        if not self.is_compatible:
            raise EngineFault(
                "the verifier speaks another version of the protocol", code="protocol_version"
            )
        return Sessions(self.fleet, self.uplinks, self.probe, self._deadline_s, span)

    def forget(self) -> None:
        """Let all facts be fetched again: a verifier was away, or has changed."""
        for uplink in self.uplinks:
            uplink.forget()

    async def forget_answers(self, salt: str | None) -> None:
        """Let all verifiers forget answers of this edge, or of one of its users. Raises an
        ApiError if one does not; the others have forgotten them then."""
        asked = (uplink.forget_answers(salt) for uplink in self.uplinks)
        for failure in await asyncio.gather(*asked, return_exceptions=True):
            if failure is not None:
                raise failure

    def report(self) -> dict[str, object]:
        """Return the verifier in use and the health of each, for /health and /ready. Anybody
        may read these, so they number the verifiers as in the settings and have no address."""
        each = [
            {"ready": e.is_ready, "rtt_ms": _ms(e.rtt_s), "load": e.load}
            for e in self.fleet.endpoints
        ]
        current = {"verifier": self.current.endpoint.number, "rtt_ms": _ms(self.current.rtt_s)}
        return {**current, "verifiers": each}

    async def statuses(self) -> list[dict[str, object]]:
        """Probe all verifiers, and return the part of /status that describes each."""
        await self.probe()
        said = await asyncio.gather(*(uplink.status() for uplink in self.uplinks))
        return [
            {
                "url": uplink.url,
                "in_use": uplink is self.current,
                "ready": uplink.endpoint.is_ready,
                "rtt_ms": _ms(uplink.rtt_s),
                "load": uplink.endpoint.load,
                "identity": uplink.endpoint.identity,
                "protocol": uplink.protocol,
                "drafted": uplink.endpoint.is_compatible,
                **msgspec.structs.asdict(status),
            }
            for uplink, status in zip(self.uplinks, said, strict=True)
        ]

    async def watch(self) -> None:
        """Refresh health and facts until cancelled, if there are several verifiers."""
        while len(self.uplinks) > 1:
            await self.probe()
            for uplink in self.uplinks:
                if uplink.endpoint.is_ready:
                    with suppress(ApiError):
                        await uplink.facts()
            await asyncio.sleep(PROBE_S * uniform(0.5, 1.5))

    async def check(self) -> None:
        """Raise ApiError unless a verifier is ready."""
        await self.probe()
        if not self.ready:
            await self.current.check()

    async def probe(self) -> None:
        """Ask all verifiers whether they are ready. One probe at a time serves all callers."""
        if self._probing is None or self._probing.done():
            self._probing = asyncio.create_task(self._check_all())
        await asyncio.wait([self._probing])

    async def _check_all(self) -> None:
        checks = (uplink.check() for uplink in self.uplinks)
        await asyncio.gather(*checks, return_exceptions=True)  # their states show the failures

    async def close(self) -> None:
        await asyncio.gather(*(uplink.uploads.close() for uplink in self.uplinks))
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.wait([self._probing])


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)
