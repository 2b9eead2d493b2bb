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

from edge_agent.link import uploads
from edge_agent.link.connection import LinkDown, VerifierResponse
from edge_agent.link.failover_policy import Event
from edge_agent.link.verifier import Verifier
from edge_agent.link.verifiers import AnswerSessions, Verifiers
from edge_agent.metrics import EdgeMetrics
from gateway.drain import running_alongside
from gateway.errors import ApiError, Draining, EngineFault
from gateway.tracing import NO_SPAN
from speculation import wire
from speculation.judge import Judgement
from speculation.messages import (
    STREAM_HEARTBEAT_S,
    Commit,
    Draft,
    Fault,
    Finish,
    Heartbeat,
    Limits,
    ModelFacts,
    Multiplexed,
    Open,
    Opened,
    Sampling,
)
from speculation.verify_session import VerifyingSession
from tests import virtual_time
from tests.edge_agent.fake_verifier import target_at

RTT_S, PASS_S = 0.05, 0.05
TOKENS = 100
TEXT = [target_at(position) for position in range(TOKENS)]
PLAIN = Sampling()
LIMITS = Limits(max_verify=4, max_ahead=16)
FACTS = ModelFacts("m", 1000, "v", 512, [7], LIMITS, ["coupled"], [], identity="i")
T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run on a virtual clock, which `time.monotonic` shows too, and have even one session
    carried."""

    async def timed() -> T:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("time.monotonic", asyncio.get_running_loop().time)
            patch.setattr(uploads, "MIN_MULTIPLEXED", 1)
            return await main

    return virtual_time.run(timed())


class Pipe(asyncio.Queue[bytes | LinkDown]):
    """A stream down: b"" is its end, and an error its cut."""

    async def pieces(self) -> AsyncIterator[bytes]:
        while (piece := await self.get()) != b"":
            if isinstance(piece, LinkDown):
                raise piece
            yield piece


@dataclass(eq=False)
class FakeVerifier:
    """What befalls it is set from outside."""

    number: int
    client: object = field(default_factory=object)
    carries: bool = False
    """Its upload streams carry sessions; otherwise it has none."""

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
    acknowledged: int = 0
    run: int = 0
    opened: int = 0
    replaced: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    sessions: dict[str, asyncio.Event] = field(default_factory=dict)
    """Those that run, each with what is set when its stream is cut."""

    multiplexed: dict[str, Pipe] = field(default_factory=dict)
    uploads: set[Pipe] = field(default_factory=set)

    def kill(self) -> None:
        self.up, self.run = False, self.run + 1
        self.cut()

    def cut(self) -> None:
        for cut in self.sessions.values():
            cut.set()
        for upload in self.uploads:
            upload.put_nowait(LinkDown("cut", "broken"))

    def renew(self, silent: object) -> None:
        if silent in (None, self.client):
            self.client = object()

    async def ask(self, method: str, path: str, **_: object) -> VerifierResponse:
        """GET /ready."""
        await asyncio.sleep(RTT_S)
        if self.silent or not self.up:
            raise LinkDown("not ready")
        if self.draining:
            return VerifierResponse(503, b'{"error":{"message":"bye","code":"draining"}}')
        return VerifierResponse(200, b"{}")

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
        name, client = f"{self.number}{self.run:07d}-{self.opened}", self.client
        cut, own = asyncio.Event(), Pipe()
        self.sessions[name] = cut
        running = asyncio.create_task(self._run(name, request, cut, own))
        try:
            yield own.pieces()
        except TimeoutError as error:
            self.renew(client)
            raise LinkDown("nothing came", "silent") from error
        finally:
            running.cancel()
            self.sessions.pop(name, None)
            self.multiplexed.pop(name, None)

    async def _run(self, name: str, request: Open, cut: asyncio.Event, own: Pipe) -> None:
        """Send a session's frames down its own stream, until another one carries it."""
        down, multiplexed = own, False
        try:
            async for frame in self._stream(name, request, cut):
                if not multiplexed and name in self.multiplexed:
                    own.put_nowait(wire.encode(Multiplexed()))
                    down, multiplexed = self.multiplexed[name], True
                down.put_nowait(wire.encode_record(name, frame) if multiplexed else frame)
        except LinkDown as error:
            own.put_nowait(error)
            if multiplexed:
                down.put_nowait(wire.encode_record(name))
        else:
            down.put_nowait(wire.encode_record(name) if multiplexed else b"")

    @asynccontextmanager
    async def upload(
        self, records: AsyncIterator[bytes], headers: Mapping[str, str]
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        await self._answer(5.0)
        if not self.carries:
            raise EngineFault("no such route")
        down = Pipe()
        self.uploads.add(down)
        reading = asyncio.create_task(self._read(records, down))
        try:
            yield down.pieces()
        finally:
            reading.cancel()
            self.uploads.discard(down)

    async def _read(self, records: AsyncIterator[bytes], down: Pipe) -> None:
        down.put_nowait(f"{self.number}{self.run:07d}".encode())
        decoder = wire.RecordDecoder()
        async for piece in records:
            await asyncio.sleep(RTT_S)
            while self.silent:  # noqa: ASYNC110 - a virtual clock
                await asyncio.sleep(STREAM_HEARTBEAT_S)
            for record in decoder.feed(piece):
                if not record.session:
                    self.acknowledged += 1
                    down.put_nowait(wire.ASK)
                elif not record.frames:
                    self.multiplexed[record.session] = down

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
                await self._wait(cut, min(due_s, STREAM_HEARTBEAT_S))
                due_s -= STREAM_HEARTBEAT_S
                if due_s > 0.0:
                    yield wire.encode(Heartbeat())
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
                await asyncio.sleep(STREAM_HEARTBEAT_S)
            return
        raise LinkDown("cut", "broken")

    async def post(self, session: str, frames: bytes, headers: Mapping[str, str]) -> bool:
        await self._answer(5.0)
        return session in self.sessions


class World:
    """An edge's view of some verifiers, all of which are known and ready."""

    carries = False
    """The verifiers' upload streams carry sessions."""

    drafted = TOKENS
    """The edge drafts for so many positions."""

    def __init__(self, count: int = 2, deadline_s: float = 30.0) -> None:
        self.metrics = EdgeMetrics(CollectorRegistry())
        self.verifiers = [
            FakeVerifier(number, carries=self.carries, url=f"http://{number}")
            for number in range(count)
        ]
        known = [Verifier(fake, self.metrics) for fake in self.verifiers]  # type: ignore[arg-type]
        self.edge = Verifiers(known, self.metrics, deadline_s)
        self.deadline_s = deadline_s
        self._running = 0  # answers
        self._last_s = self.gap_s = 0.0
        """The longest time between two tokens."""

        for verifier in known:
            verifier.learn(FACTS)
            verifier.note(Event.IS_READY)

    async def took(self, text: list[int]) -> None:
        """Return when the client of an answer has read it as far as it has come."""

    async def answer(self, text: list[int], sampling: Sampling = PLAIN) -> None:
        """Generate an answer into `text`. Raises ApiError."""
        sessions = self.edge.answer("i", NO_SPAN)
        self._last_s = asyncio.get_running_loop().time()
        request = Open("m", "v", (1, 2), sampling, 5, TOKENS, (7,), identity="i")
        self._running += 1
        try:
            while not await self._follow(sessions, request, text):
                pass
        finally:
            self._running -= 1
            if not self._running:
                await self.edge.close()

    async def _follow(self, sessions: AnswerSessions, request: Open, text: list[int]) -> bool:
        session = sessions.open(replace(request, committed=tuple(text)))
        now = asyncio.get_running_loop().time
        posting = session.post() if self.carries else asyncio.sleep(0)
        try:
            async with running_alongside(posting), aclosing(session.events()) as events:
                async for message in events:
                    if isinstance(message, Commit):
                        assert message.start == len(text)
                        text += message.tokens
                        if len(text) <= self.drafted:
                            session.send(Draft(0, len(text), 0, (target_at(len(text)),)))
                        await self.took(text)
                        self.gap_s = max(self.gap_s, now() - self._last_s)
                        self._last_s = now()
                    if isinstance(message, Finish):
                        return True
        except ApiError as error:
            try:
                await sessions.again(session, error)
            finally:
                self.gap_s = max(self.gap_s, now() - self._last_s)
        return False
