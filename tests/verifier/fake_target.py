"""A target without a model: its text is a function of the prompt's first token.

The first token of a prompt chooses the behaviour too: STALLS never gets past its prefill, FAILS
breaks after three passes, HANGS keeps the engine from then on, and any other streams to its
end, one pass each PASS_S. `python fake_target.py PORT SETTINGS-JSON` serves it through the real
server.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import msgspec
import numpy as np
from fastapi import FastAPI

from gateway.hosting.server import serve
from gateway.ports import MAX_CHAT_BYTES, NONE, Json
from speculation.answer_cache import Owner
from speculation.distributions import Distribution
from speculation.messages import Finish, Open, Pushed, Sampling, TokenLogprob
from speculation.model_facts import Limits, ModelFacts
from speculation.request_names import PROMPT_LOGPROBS, SALT
from speculation.verify_session import VerifyingSession
from speculation.wire import Framed
from verifier.app import build
from verifier.metrics import VerifierMetrics
from verifier.settings import VerifierSettings, load
from verifier.target import Deliver, Reply, Target, TargetFailed, TargetFull, UnknownSession

V = 64
STALLS, FAILS, SLOW, STREAMS, HANGS = 1, 2, 3, 4, 5
STOP_TOKEN = 63
FACTS = ModelFacts(
    model="fake",
    vocabulary_size=V,
    vocabulary="f" * 32,
    context_tokens=256,
    stop_tokens=[STOP_TOKEN],
    limits=Limits(max_verify=4, max_ahead=8),
    judges=["coupled", "separate"],
    features=[SALT, PROMPT_LOGPROBS],
)


def said(prompt: Sequence[int], position: int) -> int:
    """The target's token at a position."""
    return 10 + (prompt[0] + 7 * position) % 50


def opening(**fields: object) -> Open:
    """An Open that the fake target serves, but for `fields`."""
    good: dict[str, object] = {
        "model": "fake",
        "vocabulary": FACTS.vocabulary,
        "prompt": (STREAMS, 5, 6),
        "sampling": Sampling(),
        "seed": 7,
        "max_tokens": 8,
        "stop_tokens": (STOP_TOKEN,),
        "fill": "always",
    }
    return Open(**{**good, **fields})  # type: ignore[arg-type]


class FakeTokenizer:
    template = ""
    named_tokens: Json = NONE
    takes_tools = True
    hides_unused_tools = False

    def chat(
        self,
        messages: Sequence[Json],
        *,
        tools: Sequence[Json] = (),
        options: Json = NONE,
        max_bytes: int = MAX_CHAT_BYTES,
    ) -> list[int]:
        first = SLOW if "slowly" in str(messages[-1]["content"]) else STREAMS
        return [first, *(len(str(message["content"])) % V for message in messages)]

    def encode(self, text: str, *, special: bool = True, begin: bool = True) -> list[int]:
        return [STREAMS, len(text) % V]

    def infill(self, prefix: str, suffix: str) -> list[int]:
        raise ValueError("the model has no form for a gap")

    def piece(self, token: int, special: bool = False) -> bytes:
        return bytes([token + 32])


class _Running:
    def __init__(self, request: Open, size: int) -> None:
        """size: of the vocabulary."""
        self.machine = VerifyingSession(
            request, FACTS.limits, vocabulary_size=size, u=itertools.repeat(0.5)
        )
        self.said: deque[Reply] = deque()
        self.news = asyncio.Event()


Hook = Callable[[Open, int], Awaitable[object]]
"""Gets what opened a session, and the number of its passes."""


PushHook = Callable[[str, Pushed], Awaitable[object]]
"""Gets the name of a session, and a message for it."""


async def _nothing(*_: object) -> None:
    """Let all go on."""


class FakeTarget(Target):
    alive = True

    def __init__(self, *, slots: int = 4, pass_s: float = 0.0, starts: bool = True) -> None:
        super().__init__(FACTS.limits)
        self._facts, self._tokenizer, self.packed_tokenizer = FACTS, FakeTokenizer(), b"packed"
        self._slots = slots
        self._pass_s = pass_s
        self._starts = starts
        self.running: dict[str, _Running] = {}
        self.opened: list[Open] = []
        self.pushed: list[Framed[Pushed]] = []
        self.stopped = False
        self.hangs = False
        self.forgotten: list[Owner] = []
        self.on_check: Hook = _nothing
        self.on_pass: Hook = _nothing
        """Awaited before a session is taken, and before each of its passes."""

        self.on_push: PushHook = _nothing
        """Awaited before a message is taken."""

    async def start(self) -> None:
        if not self._starts:
            await asyncio.Event().wait()

    async def heartbeat(self) -> None:
        await self._pass()

    async def forget(self, owner: Owner) -> None:
        self.forgotten.append(owner)

    async def check(self, request: Open, tenant: str | None = None) -> None:
        await self.on_check(request, 0)

    async def _pass(self) -> None:
        if self.hangs:
            await asyncio.Event().wait()

    async def stop(self) -> None:
        self.stopped = True
        await self._pass()

    async def serve(
        self, session: str, request: Open, deliver: Deliver, tenant: str | None = None
    ) -> None:
        if len(self.running) >= self._slots:
            raise TargetFull(f"all {self._slots} slots are taken")
        self.opened.append(request)
        running = self.running[session] = _Running(request, self.facts.vocabulary_size)
        try:
            while True:
                await self._step(running)
                while running.said:
                    message = running.said.popleft()
                    deliver(Framed(message))
                    if isinstance(message, Finish):
                        return
        finally:
            del self.running[session]

    async def score(
        self, session: str, request: Open, most: int, tenant: str | None = None
    ) -> list[TokenLogprob]:
        return [TokenLogprob(-float(token)) for token in request.prompt[1:]]

    async def push(self, session: str, message: Framed[Pushed]) -> None:
        await self.on_push(session, message.message)
        running = self.running.get(session)
        if running is None or running.machine.finished:
            raise UnknownSession(session)
        self.pushed.append(message)
        running.said.extend(running.machine.receive(message.message))  # type: ignore[arg-type]
        running.news.set()

    async def _step(self, running: _Running) -> None:
        machine, request = running.machine, running.machine.request
        kind = request.prompt[0]
        self.hangs = self.hangs or kind == HANGS
        if kind in (STALLS, HANGS):
            await asyncio.Event().wait()
        if kind == FAILS and machine.totals.passes == 3:
            raise TargetFailed("it broke")
        idle = request.fill == "never" and not machine.pending
        if idle or not machine.may_begin:
            running.news.clear()
            await running.news.wait()
            return
        await self.on_pass(request, machine.totals.passes)
        await asyncio.sleep(0.1 if kind == SLOW else self._pass_s)
        judged = machine.begin(len(machine.plan(4)))
        prompt = request.prompt

        def row(i: int) -> Distribution:
            return Distribution(np.array([said(prompt, judged.start + i)]), np.ones(1))

        judgement = judged.rule.judge(row, judged.draft)
        running.said.extend(machine.resolve(judgement))  # type: ignore[arg-type]


def make(slots: int, starts: bool, _: VerifierMetrics) -> FakeTarget:
    return FakeTarget(slots=slots, pass_s=0.001, starts=starts)


def app(settings: VerifierSettings) -> FastAPI:
    return build(settings, partial(make, settings.sessions.max_sessions, settings.model != ""))


if __name__ == "__main__":
    overrides = {"port": int(sys.argv[1]), **msgspec.json.decode(sys.argv[2])}
    settings = load(None, os.environ, overrides)
    serve(settings, partial(app, settings))
