"""One session in the embedded target: its machine, its place in the KV, what it has to say.

What is said waits in `_said` until the session's generator takes it. It is bounded by the
answer: every message but a Reject commits a token, and a Reject is sent only when asked for.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from math import inf

from speculation.protocol.messages import Down, Limits, Open, Pushed, TokenId
from speculation.verifying.arrivals import Arrivals, receive
from speculation.verifying.pass_policy import hold_s
from speculation.verifying.row_allocation import PassLatency
from speculation.verifying.session import VerifyingSession
from verifier.llama_target.judging import Outcome, Part
from verifier.target import Reply, TargetFailed


class Slot:
    def __init__(
        self,
        request: Open,
        limits: Limits,
        *,
        vocabulary_size: int,
        u: Iterator[float],
        now: float,
    ) -> None:
        self.sequence: int
        """Its place in the KV; set before the scheduler has it."""

        self.request = request
        self.machine = VerifyingSession(request, limits, vocabulary_size=vocabulary_size)
        self.prefilled = 0
        """Prompt tokens in the KV."""

        self.closed = False
        """Nobody listens: what a pass still says to it is dropped."""

        self.held_since: float | None = None
        self._most = limits.max_verify
        self._arrivals = Arrivals()
        self._u = u
        self._said: deque[Reply] = deque()
        self._said_at = now
        self._failure: TargetFailed | None = None
        self._news = asyncio.Event()

    # --- what is left to do

    @property
    def held(self) -> tuple[TokenId, ...]:
        """What its sequence holds for sure: all but the last token, which opens a pass."""
        if self._failure:
            return ()
        if not self.machine.committed:
            return self.request.prompt[: self.prefilled]
        return (*self.request.prompt, *self.machine.committed[:-1])

    @property
    def unread(self) -> int:
        """Prompt tokens to prefill: all but the last, which opens the first pass."""
        return 0 if self._failure else len(self.request.prompt) - 1 - self.prefilled

    @property
    def may_pass(self) -> bool:
        """Whether a pass could start now."""
        machine = self.machine
        return not (self.unread or self._failure or machine.finished or machine.rejection)

    def hold_s(self, now: float, times: PassLatency) -> float:
        """Return how long its next pass should wait; inf: for a draft. See passes.hold."""
        if not self.may_pass:
            return inf
        return hold_s(self.machine, self._arrivals, times, self._most, now)

    # --- up

    def receive(self, message: Pushed, now: float) -> None:
        """Take in a message. Raises RemoteProtocolError."""
        down = receive(self.machine, self._arrivals, message, self._u, arrived=now)
        self._say(down, now)

    # --- passes

    def begin(self, most: int) -> Part:
        """Start a pass over at most `most` drafts; `take` or `fail` must follow."""
        self.held_since = None
        judged = self.machine.begin(most)
        said = (*self.request.prompt[-1:], *self.machine.committed)
        held = len(self.request.prompt) + judged.start - 1
        return Part(self.sequence, held, said[-1], judged, self.request, self._u)

    def take(self, outcome: Outcome, *, began: float, now: float) -> None:
        """Take the outcome of the pass that began at `began`."""
        down = self.machine.resolve(
            outcome.judgement,
            queue_s=began - self._said_at,
            pass_s=now - began,
            logprobs=outcome.logprobs,
            u=self._u,
        )
        self._say(down, now)
        self._arrivals.committed(self.machine, now)

    def fail(self, failure: TargetFailed) -> None:
        """End the session: what was said is still heard, then the failure."""
        self._failure = failure
        self._news.set()

    # --- down

    def _say(self, down: Sequence[Down], now: float) -> None:
        said = [message for message in down if isinstance(message, Reply)]
        if said:
            self._said.extend(said)
            self._said_at = now
            self._news.set()

    async def next(self) -> Reply:
        """Return the next message, once there is one. Raises TargetFailed."""
        while not self._said:
            if self._failure:
                raise self._failure
            self._news.clear()
            await self._news.wait()
        return self._said.popleft()
