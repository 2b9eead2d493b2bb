"""An engine that records its calls, and a scheduler over it with sessions."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

from prometheus_client import CollectorRegistry

from gateway.channel import Channel
from speculation.judge import Judgement
from speculation.messages import Commit, Draft, Finish, TokenLogprob
from speculation.model_facts import Limits
from speculation.verify_machine import Verdict, VerifyMachine
from speculation.verify_session import VerifyingSession
from speculation.wire import Framed
from tests.verifier.fake_target import opening
from tests.virtual_time import compute
from verifier.llama_target.pass_part import PassPart
from verifier.llama_target.scheduler import Scheduler
from verifier.llama_target.slot import PromptLogprobs, Slot
from verifier.metrics import VerifierMetrics
from verifier.settings import LlamaSettings
from verifier.target import Reply

S = TypeVar("S", bound=Slot)
V = 64
TOKEN = 20
"""The token that this engine always generates."""


class RecordingEngine:
    """Accepts draft tokens that are TOKEN; passes take pass_s."""

    def __init__(self, pass_s: float = 0.002) -> None:
        self.calls: list[list[tuple[int, int]] | tuple[int, int, int]] = []
        """A pass: (sequence, drafts) of each part. A prompt's piece: sequence, start, rows."""

        self.beginnings: list[tuple[int, int]] = []
        """Of each part of a pass: tokens before it in the KV cache, and its first token."""

        self.fails_at: int | None = None
        self._pass_s = pass_s
        self.extra_judging_s = 0.0
        """Seconds of a pass that single sessions took by what they ask."""

    head = None

    def prefill(self, sequence: int, start: int, tokens: Sequence[int], after: int) -> None:
        self.calls.append((sequence, start, len(tokens)))

    def score(
        self, sequence: int, start: int, tokens: Sequence[int], after: int, most: int
    ) -> list[TokenLogprob]:
        self.prefill(sequence, start, tokens, after)
        if len(self.calls) == self.fails_at:
            raise RuntimeError("it broke")
        return [TokenLogprob(-float(token)) for token in (*tokens[1:], after)]

    def run(self, parts: Sequence[PassPart]) -> tuple[list[Verdict], float]:
        self.calls.append([(part.sequence, len(part.judged.draft)) for part in parts])
        self.beginnings += [(part.held, part.last) for part in parts]
        if len(self.calls) == self.fails_at:
            raise RuntimeError("it broke")
        compute(self._pass_s)
        return [self._judge(part) for part in parts], self.extra_judging_s

    def _judge(self, part: PassPart) -> Verdict:
        accepted = list(itertools.takewhile(lambda token: token == TOKEN, part.judged.draft))
        return Verdict(Judgement((*accepted, TOKEN), len(accepted)))

    @property
    def passes(self) -> list[list[tuple[int, int]]]:
        return [call for call in self.calls if isinstance(call, list)]


class ReadSlot(Slot):
    """A slot whose replies a test reads."""

    def __init__(self, name: str, session: VerifyingSession) -> None:
        self._replies = Channel[Framed[Reply]](1000)
        super().__init__(name, session, self._replies.put)
        self.over.add_done_callback(lambda over: self._replies.close(error=over.exception()))

    async def next(self) -> Reply:
        return (await anext(self._replies)).message


class Sessions:
    """A scheduler over its machine, and the sessions of both."""

    def __init__(self, engine: RecordingEngine, thread: Executor, max_rows: int) -> None:
        self.registry = registry = CollectorRegistry()
        self.machine = VerifyMachine(iter(()))
        self._names = itertools.count()
        self.slots: dict[str, Slot] = {}
        self.scheduler = Scheduler(
            engine,  # type: ignore[arg-type]
            self.machine,
            thread,
            VerifierMetrics(registry),
            LlamaSettings(slots=4, max_rows=max_rows, prefill_rows=4),
            self.slots,
        )

    def open(self, **fields: object) -> ReadSlot:
        """Open a session that has no place in the KV cache yet."""
        return self._opened(ReadSlot, **fields)

    def score(self, *prompt: int) -> PromptLogprobs:
        """Open one that only scores its prompt."""
        return self._opened(partial(PromptLogprobs, owner=None, most=0), prompt=prompt)

    def _opened(self, make: Callable[[str, VerifyingSession], S], **fields: object) -> S:
        name = str(next(self._names))
        self.machine.open(
            name,
            opening(**fields),
            Limits(max_verify=16, max_ahead=32),
            vocabulary_size=V,
            now=time.monotonic(),
        )
        return make(name, self.machine.session(name))

    def assign(self, slot: Slot, sequence: int) -> None:
        slot.assign(sequence, cached_tokens=0)
        self.slots[slot.name] = slot
        self.scheduler.wake()

    def receive(self, slot: Slot, *tokens: int) -> None:
        """Let draft tokens arrive at the beginning of a session."""
        now = time.monotonic()
        slot.send(self.machine.received(slot.name, Draft(0, 0, 0, tokens), arrived=now))
        self.scheduler.wake()

    def close(self, slot: Slot) -> None:
        self.machine.close(slot.name)
        del self.slots[slot.name]
        self.scheduler.wake()


@asynccontextmanager
async def scheduling(engine: RecordingEngine, max_rows: int = 64) -> AsyncIterator[Sessions]:
    with ThreadPoolExecutor(1) as thread:
        sessions = Sessions(engine, thread, max_rows)
        running = asyncio.create_task(sessions.scheduler.run())
        yield sessions
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()


async def text_of(slot: ReadSlot) -> list[int]:
    tokens: list[int] = []
    async with asyncio.timeout(5):
        while not isinstance(message := await slot.next(), Finish):
            assert isinstance(message, Commit)
            tokens.extend(message.tokens)
    return tokens
