"""Opens the sessions of one answer, one after another, where its Course decides."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from random import Random

from picospec.edge_agent.link.connection import session_headers
from picospec.edge_agent.link.course import Course, Wait
from picospec.edge_agent.link.fleet import Endpoint, Fleet
from picospec.edge_agent.link.session_link import Link, Progress
from picospec.edge_agent.link.uplink import Uplink
from picospec.edge_agent.link.upstream_errors import LinkDown
from picospec.gateway.errors import ApiError
from picospec.gateway.tracing import Span
from picospec.models.grammars import NAME
from picospec.speculation.messages import Open, Opened


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
        self._course.ended(
            error, time.monotonic(), opened=link.opened, progressed=link.progressed
        )
        while isinstance(step := self._course.choose(time.monotonic()), Wait):
            await asyncio.sleep(step.seconds)
            if step.probes_all:
                await self._probe()
        self._chosen = step
