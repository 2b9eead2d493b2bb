"""The verifiers that an edge may use, and the choice among them.

If there are several, each is regularly asked whether it is ready. A new answer begins at the
best by delay and load; one that loses its verifier goes on at another of the same identity.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from random import Random, uniform
from typing import Final

import msgspec

from picospec.edge_agent.link.connection import LinkDown, session_headers
from picospec.edge_agent.link.course import Course, Wait
from picospec.edge_agent.link.session import Link, Progress
from picospec.edge_agent.link.uplink import Endpoint, Fleet, Uplink
from picospec.edge_agent.metrics import EdgeMetrics
from picospec.gateway.errors import ApiError, EngineFault, Unavailable
from picospec.gateway.tracing import Span
from picospec.models.grammars import NAME
from picospec.speculation.messages import ModelFacts, Open, Opened

# Opens the sessions of one answer, one after another, where its Course decides.


class Sessions:
    """uplinks: those of the fleet's endpoints. probe: asks all verifiers whether they are
    ready. deadline_s: see Course. span: the answer's."""

    def __init__(
        self,
        fleet: Fleet,
        uplinks: Sequence[Uplink],
        probe: Callable[[], Awaitable[None]],
        deadline_s: float,
        span: Span,
    ) -> None:
        self._fleet = fleet
        self._uplinks = uplinks
        self._probe = probe
        self._deadline_s = deadline_s
        self._span = span
        self._course: Course
        self._chosen: Endpoint | None = None  # where the next session is opened
        self._uplink = uplinks[fleet.current.number]
        self._link: Link
        self._headers = session_headers()
        self._progress = Progress(time.monotonic())
        self._ended_by: ApiError | None = None  # the error that ended the last session
        self._session = ""  # the last session that the verifier in use opened
        self._lost = False  # True once a session was lost
        self.reopened = 0
        """The number of times that the answer went on at another or a restarted verifier."""

    @property
    def rtt_s(self) -> float:
        """The round trip to the verifier in use."""
        return self._uplink.rtt_s

    @property
    def verifier(self) -> int:
        """The index of the verifier in use in the edge's list."""
        return self._uplink.endpoint.number

    def open(self, request: Open) -> Link:
        """Return a link that opens this session when its events are read. Raises Unavailable if
        no verifier can take it."""
        if self._chosen is None:
            self._course = Course(self._fleet, request.identity, self._deadline_s, Random())
            step = self._course.choose(time.monotonic())
            if isinstance(step, Wait):
                raise TypeError("an answer that has not begun waits for nothing")
            self._chosen = step
        chosen, self._chosen = self._chosen, None
        self._go(self._uplinks[chosen.number])
        self._link = Link(
            self._uplink,
            replace(request, replaces=self._session),
            within_s=self._course.timeout_s(
                4 * len(request.prompt + request.committed + request.predicted),
                time.monotonic(),
                constrained=NAME in request.sampling.extras,
            ),
            headers=self._headers,
            progress=self._progress,
            spans=(self._span, self._begin_span(request)),
            opened=self._opened,
        )
        return self._link

    def _go(self, uplink: Uplink) -> None:
        """Use a verifier. Of the same one keep the session's name, which it may still hold, and
        if it was only out of reach, the headers by which a proxy finds it."""
        if uplink is not self._uplink:
            self._session = ""
        if uplink is not self._uplink or not isinstance(self._ended_by, LinkDown):
            self._headers = session_headers()
        self._uplink = uplink

    def _begin_span(self, request: Open) -> Span:
        """Begin the part of the answer's span that lasts until the session is open."""
        after = {"after": self._ended_by.error_code} if self._ended_by else {}
        return self._span.begin(
            "re-open" if after else "open",
            model=request.model,
            prompt_tokens=len(request.prompt),
            committed_tokens=len(request.committed),
            verifier=self._uplink.url,
            rtt_s=self._uplink.rtt_s,
            **after,
        )

    def _opened(self, message: Opened) -> None:
        is_same_process = self._course.opened(message.session)
        if is_same_process:
            self._uplink.metrics.resumes.inc()
        else:
            self._progress.begin(time.monotonic())
            if self._lost:
                self._uplink.metrics.reopens.inc()
                self.reopened += 1
        self._session = message.session

    async def again(self, error: ApiError) -> None:
        """Note that the session ended with this error; wait until another may be opened for the
        rest of the answer, or raise the reason why none can be."""
        link, self._ended_by = self._link, error
        self._lost = self._lost or link.opened
        self._course.ended(error, time.monotonic(), progressed=link.progressed)
        while isinstance(step := self._course.choose(time.monotonic()), Wait):
            await asyncio.sleep(step.seconds)
            if step.probes_all:
                await self._probe()
        self._chosen = step


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
