"""The verifiers that an edge may use, and which of them it uses.

With several, each is asked now and then whether it is ready. A new answer begins at the nearest
that is not busy; an answer that loses its verifier goes on at another one of the same identity.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from contextlib import suppress
from random import uniform
from typing import Final

import msgspec

from picospec.edge_agent.link.failover import Failover
from picospec.edge_agent.link.session_link import Link
from picospec.edge_agent.link.uplink import Uplink
from picospec.edge_agent.metrics import EdgeMetrics
from picospec.gateway.errors import ApiError, Unavailable
from picospec.gateway.tracing import Span
from picospec.speculation.protocol.messages import ModelFacts

PROBE_S: Final = 2.0
"""Time between two probes of all verifiers, where there are several."""

STAY_S: Final = 0.05
"""How much nearer another verifier must be for new answers to move there: the one in use holds
the beginning of the conversation in its KV cache."""

ABANDONED_S: Final = 30.0
"""How long a lost session's verifier is looked for, to end the session; it does so by itself
when nobody has read the session for its resume window."""


class Verifiers:
    def __init__(
        self, uplinks: Sequence[Uplink], metrics: EdgeMetrics, deadline_s: float
    ) -> None:
        self.uplinks = uplinks
        self.current = uplinks[0]
        """The one whose facts were given out last."""

        self._metrics = metrics
        self._deadline_s = deadline_s
        self._probing: asyncio.Task[None] | None = None
        self._abandoned: set[asyncio.Task[None]] = set()

    async def facts(self) -> ModelFacts:
        """Return the facts of the best verifier that can be reached. Raises ApiError."""
        error: ApiError | None = None
        for uplink in self._ranked(self.current.identity):
            try:
                facts = await uplink.facts()
            except ApiError as failed:
                error = error or failed
            else:
                self.current = uplink
                self._metrics.rtt_s.set(uplink.rtt_s)
                return facts
        raise error or Unavailable("there is no verifier")

    @property
    def ready(self) -> bool:
        """Whether any was ready when it was last heard of."""
        return any(uplink.health.ready for uplink in self.uplinks)

    async def tokenizer(self) -> bytes:
        """Return the target's tokenizer, packed. Raises Unavailable or EngineFault."""
        return await self.current.tokenizer()

    def choose(self, identity: str, without: Collection[Uplink] = ()) -> Uplink | None:
        """Return the best verifier that can go on with texts of that identity, if any; one that
        is ready, if any is."""
        ranked = self._ranked(identity)
        usable = (u for u in ranked if u.may_serve(identity) and u not in without)
        return next(usable, None)

    def place(self, uplink: Uplink) -> int:
        """Return a verifier's place in the list, from 0."""
        return self.uplinks.index(uplink)

    def _ranked(self, identity: str) -> list[Uplink]:
        """Return the verifiers, the best first: ready ones, of that identity, near and idle."""

        def cost(uplink: Uplink) -> tuple[bool, bool, float]:
            health, stays = uplink.health, uplink is self.current
            cost_s = health.cost_s - (STAY_S if stays else 0.0)
            return not health.ready, not uplink.may_serve(identity), cost_s

        return sorted(self.uplinks, key=cost)

    def answer(self, span: Span) -> Failover:
        """Return what opens the sessions of one answer, whose trace has this span."""
        return Failover(self, self._metrics, self._deadline_s, span)

    def forget(self) -> None:
        """Have all facts fetched again: a verifier was away, or is another one now."""
        for uplink in self.uplinks:
            uplink.forget()

    def report(self) -> dict[str, object]:
        """Return which one is in use, and the health of each, for /health and /ready. Anybody
        may read these, so they tell no address: verifiers are numbered as in the settings."""
        each = [
            {"ready": u.health.ready, "rtt_ms": _ms(u.rtt_s), "load": u.health.load}
            for u in self.uplinks
        ]
        current = {"verifier": self.place(self.current), "rtt_ms": _ms(self.current.rtt_s)}
        return {**current, "verifiers": each}

    async def statuses(self) -> list[dict[str, object]]:
        """Ask all verifiers how they are, and return what /status says of each."""
        await self.probe()
        said = await asyncio.gather(*(uplink.status() for uplink in self.uplinks))
        return [
            {
                "url": uplink.url,
                "in_use": uplink is self.current,
                "ready": uplink.health.ready,
                "rtt_ms": _ms(uplink.rtt_s),
                "load": uplink.health.load,
                "identity": uplink.identity,
                **msgspec.structs.asdict(status),
            }
            for uplink, status in zip(self.uplinks, said, strict=True)
        ]

    async def watch(self) -> None:
        """Keep the health and the facts of several verifiers known, until cancelled."""
        while len(self.uplinks) > 1:
            await self.probe()
            for uplink in self.uplinks:
                if uplink.health.ready:
                    with suppress(ApiError):
                        await uplink.facts()
            await asyncio.sleep(PROBE_S * uniform(0.5, 1.5))

    async def check(self) -> None:
        """Raise ApiError unless a verifier is ready."""
        await self.probe()
        if not self.ready:
            await self.current.check()

    async def probe(self) -> None:
        """Ask all verifiers whether they are ready; one probe at a time serves all who wait."""
        if self._probing is None or self._probing.done():
            self._probing = asyncio.create_task(self._check_all())
        await asyncio.wait([self._probing])

    async def _check_all(self) -> None:
        checks = (uplink.check() for uplink in self.uplinks)
        await asyncio.gather(*checks, return_exceptions=True)  # their health says what failed

    def abandon(self, link: Link) -> None:
        """End a lost session as soon as its verifier can be reached."""
        task = asyncio.create_task(link.cancel(ABANDONED_S))
        self._abandoned.add(task)
        task.add_done_callback(self._abandoned.discard)

    async def close(self) -> None:
        tasks = [*self._abandoned, *([self._probing] if self._probing else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for uplink in self.uplinks:
            await uplink.close()


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)
