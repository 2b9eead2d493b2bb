"""The verifiers of one model, or of all models of an edge, and the choice among them.

If there are several, each is regularly asked whether it is ready. A new answer begins at the
best by delay and load; one that loses its verifier goes on at another of the same identity.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from random import Random, uniform
from typing import Final

import msgspec

from edge_agent.link.connection import session_headers
from edge_agent.link.errors import LinkDown
from edge_agent.link.failover_policy import FailoverPolicy, State, Wait
from edge_agent.link.known_verifiers import KnownVerifiers
from edge_agent.link.names import Name
from edge_agent.link.prefixes import PromptBlocks, PromptReading, Speed
from edge_agent.link.session import EdgeSession, Progress
from edge_agent.link.verifier import Verifier
from edge_agent.metrics import NEAR, ONLY, PREFIX, EdgeMetrics
from gateway.background_work import kept_going, start
from gateway.errors import ApiError, EngineFault, Unavailable
from gateway.tracing import Span
from local_models.constraints import NAME
from speculation.messages import Open, Opened
from speculation.model_facts import ModelFacts, TokenId

PROBE_S: Final = 2.0
"""All verifiers are probed at about this interval, if there are several."""

SHOWN_PLACED: Final = 16
"""/status shows where so many of the last answers began."""


@dataclass(frozen=True, slots=True)
class Placed:
    """Where an answer began, why, and when, by the monotonic clock."""

    model: str
    verifier: str
    reason: str
    at_s: float

    def shown(self, now_s: float) -> dict[str, object]:
        """Return the part of /status that describes it."""
        where = {"model": self.model, "verifier": self.verifier, "reason": self.reason}
        return {**where, "seconds_ago": round(now_s - self.at_s, 1)}


class Verifiers(KnownVerifiers[Verifier]):
    """verifiers: those that stay. deadline_s: see
    edge_agent.link.failover_policy.FailoverPolicy. names: those behind each of these come and
    go."""

    def __init__(
        self,
        verifiers: Sequence[Verifier],
        metrics: EdgeMetrics,
        deadline_s: float,
        names: Sequence[Name] = (),
    ) -> None:
        super().__init__([*verifiers, *_behind(names)])
        self._fixed = verifiers
        self._names = names
        self._metrics = metrics
        self._deadline_s = deadline_s
        self._probing: asyncio.Task[None] | None = None
        self.changed: Callable[[], None] = lambda: None
        """Called when other verifiers are behind the names."""

        self.placed = deque[Placed](maxlen=SHOWN_PLACED)
        """Where the last answers began, the latest first."""

    def part(self) -> Verifiers:
        """Return the verifiers of one model, which `use` sets. Only the whole is to be watched
        and closed."""
        part = Verifiers(self.all, self._metrics, self._deadline_s, self._names)
        part.placed = self.placed
        return part

    async def facts(self, identity: str = "") -> ModelFacts:
        """Return the facts of the best verifier that can be reached, one with this identity if
        any is ready. Raises ApiError."""
        error: ApiError | None = None
        self.current.wake()
        for verifier in self.ranked(identity or self.preferred):
            try:
                facts = await verifier.facts()
            except ApiError as failed:
                error = error or failed
                continue
            if verifier in self.all:
                self.current = verifier
                self._metrics.rtt_s.set(verifier.rtt_s)
                return facts
            error = error or Unavailable("the verifier serves this model no more")
        raise error or Unavailable("no verifier serves this model now")

    async def tokenizer(self) -> bytes:
        """Return the target's tokenizer, packed. Raises Unavailable or EngineFault."""
        return await self.current.tokenizer()

    async def awake(self) -> None:
        """Return when the connection in use, if it was idle, has answered or was replaced."""
        await self.current.awake()

    def answer(
        self,
        identity: str,
        span: Span,
        tokens: tuple[TokenId, ...] = (),
        owner: str | None = None,
    ) -> AnswerSessions:
        """Return the sessions of one answer, whose texts have this identity and whose trace has
        this span. tokens: the prompt. owner: what parts its KV from that of others, if anything
        does. Raises EngineFault if the verifier in use opens none for this edge, or Unavailable
        if no verifier can take the answer."""
        if not self.current.model.is_compatible:
            raise EngineFault(
                "the verifier speaks another version of the protocol", code="protocol_version"
            )
        prompt = PromptBlocks.of(tokens, owner or "") if tokens and self._may_choose else None
        sessions = AnswerSessions(self, identity, self._deadline_s, span, prompt)
        placed, why = sessions.verifier, ONLY
        if prompt is not None:
            why = PREFIX if placed.prefixes.held(prompt) else NEAR
            self._metrics.placed.labels(placed.label, why).inc()
        now_s = time.monotonic()
        self.placed.appendleft(Placed(placed.model.name, placed.label, why, now_s))
        return sessions

    @property
    def _may_choose(self) -> bool:
        return bool(self._names) or len(self.all) > 1

    def forget(self) -> None:
        """Let all facts be fetched again: a verifier was away, or has changed."""
        for verifier in self.all:
            verifier.forget()

    async def forget_answers(self, salt: str | None) -> None:
        """Let all verifiers forget answers of this edge, or of one of its users. Raises an
        ApiError if one does not; the others have forgotten them then."""
        requests = (verifier.forget_answers(salt) for verifier in self.all)
        for failure in await asyncio.gather(*requests, return_exceptions=True):
            if failure is not None:
                raise failure

    def report(self, current: Verifier) -> dict[str, object]:
        """Return the verifier in use and the health of each, for /health and /ready. Anybody
        may read these, so they name the verifiers by their labels and have no address."""
        each = [
            {"verifier": v.label, "ready": v.is_ready, "rtt_ms": _ms(v.rtt_s), "load": v.load}
            for v in self.all
        ]
        in_use = {"verifier": current.label, "rtt_ms": _ms(current.rtt_s)}
        return {**in_use, "verifiers": each}

    async def statuses(self, current: Collection[Verifier]) -> list[dict[str, object]]:
        """Probe all verifiers, and return the part of /status that describes each. current:
        those in use."""
        await self.probe()
        verifiers = self.all  # others may be in use after the wait
        statuses = await asyncio.gather(*(verifier.status() for verifier in verifiers))
        return [
            {
                "url": verifier.url,
                "verifier": verifier.label,
                "model": verifier.model.name,
                "in_use": verifier in current,
                "ready": verifier.is_ready,
                "rtt_ms": _ms(verifier.rtt_s),
                "load": verifier.load,
                "sessions": verifier.open_sessions,
                "identity": verifier.model.identity,
                "protocol": verifier.protocol,
                "drafted": verifier.model.is_compatible,
                "speedups": verifier.speedups.learned_statistics(),
                "prefix_tokens": verifier.prefixes.tokens,
                **msgspec.structs.asdict(status),
            }
            for verifier, status in zip(verifiers, statuses, strict=True)
        ]

    async def watch(self) -> None:
        """Refresh health and facts until cancelled, if there are several verifiers, and follow
        the names."""
        async with asyncio.TaskGroup() as tasks:
            for name in self._names:
                tasks.create_task(kept_going(partial(name.follow, self._changed)))
            while self._may_choose:
                await self._refresh()
                await asyncio.sleep(PROBE_S * uniform(0.5, 1.5))

    async def _refresh(self) -> None:
        if len(self.all) == 1:
            return
        await self.probe()
        for verifier in self.all:
            if verifier.is_ready:
                with suppress(ApiError):  # `facts` raises nothing else
                    await verifier.facts()

    def _changed(self) -> None:
        """Use the verifiers that the names lead to by now."""
        self.use([*self._fixed, *_behind(self._names)])
        self.changed()

    async def check(self) -> None:
        """Raise ApiError unless a verifier is ready."""
        await self.probe()
        if not self.is_ready:
            await self.current.check()

    async def probe(self) -> None:
        """Ask all verifiers whether they are ready. One probe at a time serves all callers."""
        if self._probing is None or self._probing.done():
            self._probing = start(self._check_all())
        await asyncio.wait([self._probing])

    async def _check_all(self) -> None:
        checks = (start(verifier.check()) for verifier in self.all)
        await asyncio.gather(*checks, return_exceptions=True)  # their states show the failures

    async def close(self) -> None:
        await asyncio.gather(*(verifier.close() for verifier in self._fixed))
        await asyncio.gather(*(name.close() for name in self._names))
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.wait([self._probing])


def _behind(names: Sequence[Name]) -> list[Verifier]:
    return [verifier for name in names for verifier in name.verifiers]


class AnswerSessions:
    """The sessions of one answer, which are opened one after another, where its FailoverPolicy
    decides. prompt: None if there is only one verifier. verifier: the one in use, or where the
    next session is opened. Raises Unavailable if no verifier can take the first one."""

    def __init__(
        self,
        verifiers: Verifiers,
        identity: str,
        deadline_s: float,
        span: Span,
        prompt: PromptBlocks | None,
    ) -> None:
        self._verifiers = verifiers
        self._prompt = prompt
        self._policy = FailoverPolicy(verifiers, identity, deadline_s, Random(), prompt)
        self._span = span
        self.verifier = self._policy.begin()
        self._headers = session_headers()
        self._progress = Progress(time.monotonic())
        self._ended_by: ApiError | None = None  # the error that ended the last session
        self._replaces = ""  # the last session that the verifier in use opened
        self.reopened = 0
        """The number of times that the answer went on at another or a restarted verifier."""

    def open(self, request: Open) -> EdgeSession:
        """Return a session, which is opened when its events are read."""
        return EdgeSession(
            self.verifier,
            replace(request, replaces=self._replaces),
            within_s=self._policy.timeout_s(
                4 * len(request.prompt + request.committed + request.predicted),
                time.monotonic(),
                constrained=NAME in request.sampling.extras,
            ),
            headers=self._headers,
            progress=self._progress,
            spans=(self._span, self._begin_span(request)),
            opened=self._opened,
            reading=self._reading(request),
        )

    def _reading(self, request: Open) -> PromptReading | None:
        """Return the reading of the prompt. Of a session that goes on with an answer no speed
        is learned: it reads more than the prompt."""
        if self._prompt is None:
            return None
        speed = Speed() if request.committed else self._verifiers.speed
        return PromptReading(self._prompt, self.verifier.prefixes, speed)

    def _begin_span(self, request: Open) -> Span:
        """Begin the part of the answer's span that lasts until the session is open."""
        after = {"after": self._ended_by.error_code} if self._ended_by else {}
        return self._span.begin(
            "re-open" if after else "open",
            model=request.model,
            prompt_tokens=len(request.prompt),
            committed_tokens=len(request.committed),
            verifier=self.verifier.url,
            rtt_s=self.verifier.rtt_s,
            **after,
        )

    def _opened(self, message: Opened) -> None:
        goes_on, metrics = self._policy.state is State.REOPENING, self.verifier.metrics
        is_same_process = self._policy.opened(message.session)
        if is_same_process:
            metrics.resumes.inc()
        else:
            self._progress.begin(time.monotonic())
            self.verifier.began(message.session)
            if goes_on:
                metrics.reopens.inc()
                self.reopened += 1
        self._replaces = message.session

    async def again(self, session: EdgeSession, error: ApiError) -> None:
        """Note that the session ended with this error; wait until another may be opened for the
        rest of the answer, or raise the reason why none can be."""
        self._ended_by = error
        self._policy.ended(error, time.monotonic(), progressed=session.progressed)
        while isinstance(step := self._policy.choose(time.monotonic()), Wait):
            await asyncio.sleep(step.seconds)
            if step.probes_all:
                await self._verifiers.probe()
        self._use(step)

    def _use(self, verifier: Verifier) -> None:
        """Use a verifier. Of the same one keep the session's name, which it may still hold, and
        if it was only out of reach, the headers by which a proxy finds it."""
        if verifier is not self.verifier:
            self._replaces = ""
        if verifier is not self.verifier or not isinstance(self._ended_by, LinkDown):
            self._headers = session_headers()
        self.verifier = verifier


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)
