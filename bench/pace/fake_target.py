"""A target without a model, whose text is the script's: it shows what the service alone costs.

    python -m bench.pace.fake_target --target vllm --model fake --host 127.0.0.1 --port N \
        --pass-ms 8 --sessions.max-sessions 64

Each pass takes the same time, and has all sessions that may begin. The service runs as it
ships, in its own process.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from time import thread_time
from typing import Annotated, Final

import numpy as np
import typer
from fastapi import FastAPI
from prometheus_client import Gauge

from bench.options import VERIFIER_OPTIONS
from bench.pace.script import VOCABULARY, key, said
from gateway.hosting.server import serve
from speculation.answer_cache import Owner
from speculation.distributions import Distribution
from speculation.messages import Open, Pushed
from speculation.model_facts import Limits, ModelFacts
from speculation.verify_session import Pass, VerifyingSession
from speculation.wire import Framed
from verifier.__main__ import nested
from verifier.app import build
from verifier.metrics import VerifierMetrics
from verifier.settings import VerifierSettings, load
from verifier.target import Deliver, Reply, Target, TargetFull, UnknownSession

FAKE_S: Final = "fake_target_processor_seconds"
"""This metric has the processor time of the fake target itself: a real target takes it in other
processes, or for its passes."""


class _Running:
    """Keeps a session. deliver: gets its replies. over: set once it has ended."""

    def __init__(self, request: Open, limits: Limits, deliver: Deliver) -> None:
        halves = itertools.repeat(0.5)
        self.session = VerifyingSession(request, limits, vocabulary_size=VOCABULARY, u=halves)
        self._key, self._prompt_tokens = key(request.prompt), len(request.prompt)
        self._deliver = deliver
        self.over = asyncio.Event()

    def send(self, messages: list[Reply]) -> None:
        for message in messages:
            self._deliver(Framed(message))
        if self.session.finished:
            self.over.set()

    def row(self, judged: Pass, i: int) -> Distribution:
        token = said(self._key, self._prompt_tokens + judged.start + i)
        return Distribution(np.array([token]), np.ones(1))


class FakeTarget(Target):
    """pass_s: the time of a pass. slots: this many sessions run at once."""

    alive = True

    def __init__(
        self, pass_s: float, slots: int, limits: Limits, metrics: VerifierMetrics
    ) -> None:
        super().__init__(limits)
        self._facts = ModelFacts(
            model="fake", vocabulary_size=VOCABULARY, vocabulary="f" * 32,
            context_tokens=1 << 20, stop_tokens=[], limits=limits,
            judges=["coupled", "separate"], features=[],
        )  # fmt: skip
        self._pass_s, self._slots, self._metrics = pass_s, slots, metrics
        self._running: dict[str, _Running] = {}
        self._passing: asyncio.Task[None] | None = None
        gauge = Gauge(FAKE_S, "Of the fake target itself.", registry=metrics._registry)
        self._own_s = 0.0
        gauge.set_function(lambda: self._own_s)

    async def start(self) -> None:
        self._passing = asyncio.create_task(self._pass_for_ever())

    async def heartbeat(self) -> None:
        """Return at once, because no pass hangs."""

    async def stop(self) -> None:
        if self._passing is not None:
            self._passing.cancel()
            await asyncio.wait([self._passing])

    async def serve(
        self, session: str, request: Open, deliver: Deliver, tenant: str | None = None
    ) -> None:
        if len(self._running) >= self._slots:
            raise TargetFull(f"all {self._slots} slots are taken")
        running = self._running[session] = _Running(request, self._limits, deliver)
        try:
            await running.over.wait()
        finally:
            del self._running[session]

    async def push(self, session: str, message: Framed[Pushed]) -> None:
        if (running := self._running.get(session)) is None:
            raise UnknownSession(session)
        with self._own():
            running.send(running.session.receive(message.message))  # type: ignore[arg-type]

    @contextmanager
    def _own(self) -> Iterator[None]:
        began = thread_time()
        try:
            yield
        finally:
            self._own_s += thread_time() - began

    async def _pass_for_ever(self) -> None:
        while True:
            with self._own():
                passes = self._begin()
            await asyncio.sleep(self._pass_s)
            with self._own():
                for running, judged in passes:
                    judgement = judged.rule.judge(partial(running.row, judged), judged.draft)
                    down = running.session.resolve(judgement, pass_s=self._pass_s)
                    running.send(down)  # type: ignore[arg-type]
            rows = sum(1 + len(judged.draft) for _, judged in passes)
            if passes:
                self._metrics.passed(rows, self._pass_s)

    async def forget(self, owner: Owner) -> None:
        """Do nothing: no answers are kept."""

    def _begin(self) -> list[tuple[_Running, Pass]]:
        return [
            (each, each.session.begin(len(each.session.plan(self._limits.max_verify))))
            for each in self._running.values()
            if each.session.may_begin
        ]


def _app(settings: VerifierSettings, pass_s: float) -> FastAPI:
    slots, limits = settings.sessions.max_sessions, settings.limits
    return build(settings, partial(FakeTarget, pass_s, slots, limits))


def main(context: typer.Context, pass_ms: Annotated[float, typer.Option()]) -> None:
    """Serve sessions whose draft tokens are judged by the script. It has the verifier's
    options, and the limits of a GPU with --target vllm."""
    settings = load(None, os.environ, nested(context.args))
    serve(settings, partial(_app, settings, pass_ms / 1000))


if __name__ == "__main__":
    app = typer.Typer()
    app.command(context_settings=VERIFIER_OPTIONS)(main)
    app()
