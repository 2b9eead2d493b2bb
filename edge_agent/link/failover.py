"""One answer's way from verifier to verifier: where it goes on, and when it is given up.

A session that is lost is opened again at a verifier that is ready, from the tokens that were
committed. Where none is, the answer waits for one, up to a deadline. An answer that has not
begun waits for nothing: its client can ask again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from random import uniform
from typing import Final, Protocol

from picospec.edge_agent.link.progress import IDLE
from picospec.edge_agent.link.retry import Retries
from picospec.edge_agent.link.session_link import Link
from picospec.edge_agent.link.session_trace import SessionTrace
from picospec.edge_agent.link.uplink import Uplink
from picospec.edge_agent.metrics import EdgeMetrics
from picospec.gateway.errors import (
    ApiError,
    Draining,
    InvalidRequest,
    Overloaded,
    TooLarge,
    Unavailable,
)
from picospec.gateway.tracing import Fact, Span
from picospec.speculation.protocol.messages import Open

MAX_LOST: Final = 3
"""Sessions that may be lost at one position of the text; then the answer is given up. If it is
the answer that breaks verifiers, it must not break all of them."""

LEAVING: Final = "shutting_down"
"""The Fault of a verifier that hands its sessions over, and is not broken."""

JITTER_S: Final = 0.2
"""Longest wait before a lost session is opened elsewhere, so that all sessions of a verifier do
not come to another one at the same moment."""

MIN_WAIT_S: Final = 0.1
MAX_WAIT_S: Final = 1.0
"""Shortest and longest wait, on average, between two looks for a verifier that is ready."""


class Choice(Protocol):
    """What edge_agent.link.verifiers.Verifiers does for it."""

    def choose(self, identity: str, without: Collection[Uplink]) -> Uplink | None:
        """Return the best verifier that can go on with texts of that identity, if any."""

    def place(self, uplink: Uplink) -> int:
        """Return a verifier's place in the list, from 0."""

    async def probe(self) -> None:
        """Ask all verifiers whether they are ready."""

    def abandon(self, link: Link) -> None:
        """End a lost session as soon as its verifier can be reached."""


class Failover:
    """edge_agent.driver.Sessions."""

    def __init__(
        self, choice: Choice, metrics: EdgeMetrics, deadline_s: float, span: Span
    ) -> None:
        self._choice = choice
        self._metrics = metrics
        self._deadline_s = deadline_s
        self._span = span
        self._tried: set[Uplink] = set()
        """Verifiers that lost the session or did not take it; they may do so after a wait."""

        self._barred: set[Uplink] = set()
        """Verifiers that will never take it, as with a wrong key or another model, and those
        that let it wait for too long."""

        self._lost_at: float | None = None  # when a session was lost last
        self._lost_here = 0  # sessions lost since the last new token
        self._waits = 0  # since a session was opened
        self._identity = ""
        self._begun_at = 0  # the session's first position
        self._ended_by: str | None = None  # what the session before ended by
        self._uplink: Uplink
        self._link: Link
        self.reopened = 0
        """How often the answer went on in another session."""

    @property
    def rtt_s(self) -> float:
        return self._uplink.rtt_s

    @property
    def verifier(self) -> int:
        """The place in the edge's list of the verifier in use."""
        return self._choice.place(self._uplink)

    def open(self, request: Open) -> Link:
        self._identity, self._begun_at = request.identity, len(request.committed)
        uplink = self._ready() or self._choice.choose(self._identity, self._barred)
        if uplink is None:
            raise Unavailable("no verifier can go on with this answer")
        if self._lost_at is not None:
            self._metrics.reopens.inc()
            self.reopened += 1
        self._uplink = uplink
        retries = Retries(self._is_elsewhere, self._deadline_s)
        self._link = uplink.open(request, retries, self._trace(request))
        return self._link

    def _trace(self, request: Open) -> SessionTrace:
        facts: dict[str, Fact] = {"verifier": self._uplink.url, "rtt_s": self._uplink.rtt_s}
        if self._ended_by is None:
            return SessionTrace(self._span, "open", request, **facts)
        return SessionTrace(self._span, "re-open", request, after=self._ended_by, **facts)

    def _ready(self) -> Uplink | None:
        """Return the best verifier that is ready and was not tried."""
        best = self._choice.choose(self._identity, self._tried | self._barred)
        return best if best and best.health.ready else None

    def _is_elsewhere(self) -> bool:
        best = self._choice.choose(self._identity, {self._uplink} | self._barred)
        return best is not None and best.health.ready

    async def again(self, error: ApiError) -> None:
        self._ended_by = error.error_code
        if self._link.opened:
            self._lost(error)
        else:
            self._turned_away(error)
        if self._lost_at is None:
            if isinstance(error, Draining):
                await self._choice.probe()  # one that was restarted just now may be ready
            if self._ready() is None:
                raise error
            return
        await asyncio.sleep(uniform(0.0, JITTER_S))
        while self._ready() is None:
            await self._wait(error, self._lost_at + self._deadline_s - time.monotonic())

    def _lost(self, error: ApiError) -> None:
        self._choice.abandon(self._link)
        if not isinstance(error, Unavailable | Overloaded):
            raise error
        self._lost_at = self._link.lost_at or time.monotonic()
        self._tried, self._waits = {self._uplink}, 0
        if error.error_code == IDLE:
            self._barred.add(self._uplink)
        if self._link.position > self._begun_at:
            self._lost_here = 0
        self._lost_here += error.error_code != LEAVING
        if self._lost_here >= MAX_LOST:
            reason = f"{MAX_LOST} verifiers were lost at one token of the answer"
            raise Unavailable(f"{reason}; the last: {error}", code=error.error_code) from error

    def _turned_away(self, error: ApiError) -> None:
        if self._lost_at is None and isinstance(error, InvalidRequest | TooLarge):
            raise error
        if isinstance(error, Draining):
            self._uplink.health.set_draining(True)
        passes = isinstance(error, Unavailable | Overloaded)
        if passes and error.error_code != "identity_mismatch":
            self._tried.add(self._uplink)
        else:
            self._barred.add(self._uplink)

    async def _wait(self, error: ApiError, left_s: float) -> None:
        """Wait, and look again who is ready. Raise the error when that is no use."""
        if left_s <= 0.0 or self._choice.choose(self._identity, self._barred) is None:
            raise error
        wait_s = min(MAX_WAIT_S, MIN_WAIT_S * 2**self._waits) * uniform(0.5, 1.5)
        if isinstance(error, Overloaded):
            wait_s += error.retry_after_s
        self._waits += 1
        await asyncio.sleep(min(wait_s, left_s))
        self._tried.clear()
        await self._choice.probe()
