"""Verifiers on a virtual clock, and an edge's answers from them: no socket, and no second lost.

A FakeVerifier is an edge_agent.link.connection.Connection over the real verifying session; its
target generates position * 3 + 100, one token in PASS_S.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import pytest
from prometheus_client import CollectorRegistry

from picospec.edge_agent.link.fleet import Event, Fleet
from picospec.edge_agent.link.sessions import Sessions
from picospec.edge_agent.link.uplink import Uplink
from picospec.edge_agent.link.upstream_errors import LinkDown
from picospec.edge_agent.metrics import EdgeMetrics
from picospec.gateway.errors import ApiError, Draining, Unavailable
from picospec.gateway.tracing import NO_SPAN
from picospec.speculation.judges.judge import Judgement
from picospec.speculation.protocol import wire
from picospec.speculation.protocol.messages import (
    BEAT_S,
    Beat,
    Commit,
    Fault,
    Finish,
    Limits,
    ModelFacts,
    Open,
    Opened,
    Sampling,
)
from picospec.speculation.verifying.session import VerifyingSession
from tests.edge_agent.fake_verifier import target_at
from tests.gateway.steady import virtual_time

RTT_S, PASS_S = 0.05, 0.05
TOKENS = 100
TEXT = [target_at(position) for position in range(TOKENS)]
PLAIN = Sampling()
LIMITS = Limits(max_verify=4, max_ahead=16)
FACTS = ModelFacts("m", 1000, "v", 512, [7], LIMITS, ["coupled"], [], identity="i")
T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run on a virtual clock, which `time.monotonic` shows too."""

    async def timed() -> T:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("time.monotonic", asyncio.get_running_loop().time)
            return await main

    return virtual_time.run(timed())


@dataclass(eq=False)
class FakeVerifier:
    """What befalls it is set from outside."""

    number: int
    url: str = "fake"
    up: bool = True
    silent: bool = False
    draining: bool = False
    refusal: ApiError | None = None
    poisoned: bool = False
    """Its process ends with each session after six tokens."""

    hands_over: bool = False
    """It ends each session at once, as one that is told to stop a second time."""

    trial_s: float = 0.0
    """It tries the grammar of an Open for so long."""

    first_token_s: float = 0.0
    asked: int = 0
    run: int = 0
    opened: int = 0
    replaced: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    sessions: dict[str, asyncio.Event] = field(default_factory=dict)
    """Those that run, each with what is set when its stream is cut."""

    def kill(self) -> None:
        self.up, self.run = False, self.run + 1
        self.cut()

    def cut(self) -> None:
        for cut in self.sessions.values():
            cut.set()

    async def check(self) -> None:
        """GET /ready."""
        await asyncio.sleep(RTT_S)
        if self.silent or not self.up:
            raise Unavailable("not ready")
        if self.draining:
            raise Draining("it drains")

    @asynccontextmanager
    async def open(
        self, frame: bytes, headers: Mapping[str, str], within_s: float
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        self.asked += 1
        (request,) = wire.Decoder().feed(frame)
        assert isinstance(request, Open)
        if request.sampling.extras:
            await self._try(within_s)
        await self._answer(within_s)
        self.opened += 1
        self.names.update(headers.values())
        if request.replaces in self.sessions:
            self.replaced.append(request.replaces)
            self.sessions[request.replaces].set()
        name = f"{self.number}{self.run:07d}-{self.opened}"
        cut = self.sessions[name] = asyncio.Event()
        try:
            yield self._stream(name, request, cut)
        except TimeoutError as error:
            raise LinkDown("nothing came", "silent") from error
        finally:
            self.sessions.pop(name, None)

    async def _try(self, within_s: float) -> None:
        await asyncio.sleep(min(self.trial_s, within_s))
        if self.trial_s >= within_s:
            raise LinkDown("no answer", "silent")

    async def _answer(self, within_s: float) -> None:
        if self.silent:
            await asyncio.sleep(within_s)
            raise LinkDown("no answer", "silent")
        await asyncio.sleep(RTT_S)
        if not self.up:
            raise LinkDown("connection refused", "refused")
        if self.draining:
            raise Draining("it drains")
        if self.refusal is not None:
            raise self.refusal

    async def _stream(
        self, name: str, request: Open, cut: asyncio.Event
    ) -> AsyncIterator[bytes]:
        session = VerifyingSession(request, LIMITS, vocabulary_size=1000, u=iter(()))
        yield wire.encode(Opened(name, LIMITS))
        due_s = self.first_token_s
        while not session.finished:
            due_s += PASS_S
            while due_s > 0.0:
                await self._wait(cut, min(due_s, BEAT_S))
                due_s -= BEAT_S
                if due_s > 0.0:
                    yield wire.encode(Beat())
            due_s = 0.0
            start = session.begin(0).start
            if self.poisoned and start > 5:
                self.kill()
                raise LinkDown("its process ended", "broken")
            if self.hands_over or (self.draining and start % 50 == 49):
                yield wire.encode(Fault("shutting_down", "it goes home", retryable=True))
                return
            for message in session.resolve(Judgement((target_at(start),), 0)):
                yield wire.encode(message)

    async def _wait(self, cut: asyncio.Event, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await cut.wait()
        except TimeoutError:
            while self.silent:  # noqa: ASYNC110 - a virtual clock
                await asyncio.sleep(BEAT_S)
            return
        raise LinkDown("cut", "broken")

    async def post(self, session: str, frames: bytes, headers: Mapping[str, str]) -> bool:
        await self._answer(5.0)
        return session in self.sessions


class World:
    """An edge's view of some verifiers, all of which are known and ready."""

    def __init__(self, count: int = 2, deadline_s: float = 30.0) -> None:
        self.metrics = EdgeMetrics(CollectorRegistry())
        self.verifiers = [FakeVerifier(number) for number in range(count)]
        self.uplinks = [
            Uplink(fake, self.metrics, fake.number)  # type: ignore[arg-type]
            for fake in self.verifiers
        ]
        self.fleet = Fleet([uplink.endpoint for uplink in self.uplinks])
        self.deadline_s = deadline_s
        self._last_s = self.gap_s = 0.0
        """The longest time between two tokens."""

        for uplink in self.uplinks:
            uplink.endpoint.learn(FACTS)
            uplink.note(Event.IS_READY)

    async def probe(self) -> None:
        await asyncio.gather(*map(self._check, self.uplinks))

    async def _check(self, uplink: Uplink) -> None:
        try:
            await self.verifiers[uplink.endpoint.number].check()
        except ApiError as error:
            uplink.note(Event.DRAINS if isinstance(error, Draining) else Event.LOST)
        else:
            uplink.note(Event.IS_READY)

    async def answer(self, text: list[int], sampling: Sampling = PLAIN) -> None:
        """Generate an answer into `text`. Raises ApiError."""
        sessions = Sessions(self.fleet, self.uplinks, self.probe, self.deadline_s, NO_SPAN)
        self._last_s = asyncio.get_running_loop().time()
        request = Open("m", "v", (1, 2), sampling, 5, TOKENS, (7,), identity="i")
        while not await self._follow(sessions, request, text):
            pass

    async def _follow(self, sessions: Sessions, request: Open, text: list[int]) -> bool:
        link = sessions.open(replace(request, committed=tuple(text)))
        now = asyncio.get_running_loop().time
        try:
            async with aclosing(link.events()) as events:
                async for message in events:
                    if isinstance(message, Commit):
                        assert message.start == len(text)
                        text += message.tokens
                        self.gap_s = max(self.gap_s, now() - self._last_s)
                        self._last_s = now()
                    if isinstance(message, Finish):
                        return True
        except ApiError as error:
            try:
                await sessions.again(error)
            finally:
                self.gap_s = max(self.gap_s, now() - self._last_s)
        return False
