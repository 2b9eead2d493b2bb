"""Simulates a user's device: drives the DraftMachine on virtual time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from bench.simulator.clock import Action, Clock, Line
from bench.simulator.hosts import Curve
from bench.simulator.source import Source
from local_models.llama_cpp.prefix import common_prefix
from speculation.draft_machine import DraftMachine, DraftStep
from speculation.draft_token import DraftToken
from speculation.messages import Down, Opened, Pushed
from speculation.model_facts import TokenId


@dataclass(slots=True)
class Answer:
    """An Answer has the times and counts of one answer, as the user saw it."""

    source: Source
    asked_s: float
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    """Tokens came at these times (seconds from asking), in these numbers."""

    drafted: int = 0
    edge_cpu_s: float = 0.0
    judged: int = 0
    accepted: int = 0
    target_passes: int = 0
    bytes_up: int = 0
    bytes_down: int = 0

    def add(self, now_s: float, tokens: int) -> None:
        self.arrivals.append((now_s - self.asked_s, tokens))

    @property
    def tokens(self) -> int:
        return sum(count for _, count in self.arrivals)

    @property
    def ttft_s(self) -> float:
        """Return the time from asking to the first tokens."""
        return self.arrivals[0][0]

    @property
    def ttft_ms(self) -> float:
        return 1000 * self.ttft_s

    @property
    def seconds(self) -> float:
        """Return the time from asking to the last token."""
        return self.arrivals[-1][0]

    @property
    def after_first(self) -> tuple[int, float]:
        """Return the tokens after the first ones, and the time from those to the end."""
        return self.tokens - self.arrivals[0][1], self.seconds - self.ttft_s

    @property
    def tokens_per_s(self) -> float:
        tokens, seconds = self.after_first
        return tokens / seconds if tokens else 0.0

    @property
    def gaps_ms(self) -> list[float]:
        """Return the times between two arrivals of tokens."""
        return [1000 * (later[0] - sooner[0]) for sooner, later in pairwise(self.arrivals)]


class Edge:
    """Generates one answer. `uplink` must be set before `start`."""

    uplink: Line

    def __init__(
        self, clock: Clock, source: Source, machine: DraftMachine, draft_s: Curve, done: Action
    ) -> None:
        """Set up. done: is called at the end."""
        self.answer = Answer(source, clock.now_s)
        self.machine = machine
        self._clock = clock
        self._source = source
        self._draft_s = draft_s
        self._done = done
        self._cache: list[TokenId] = []  # output tokens that the draft model has read
        self._opened = False
        self._waiting: list[Pushed] = []
        self._busy = True

    def start(self, prefill_s: float) -> None:
        """Read the prompt, then draft."""
        self._clock.after(prefill_s, self._ready)

    def receive(self, message: Down) -> None:
        outcome = self.machine.received(message)
        self._opened = self._opened or isinstance(message, Opened)
        self._send(outcome.send)
        if outcome.commit is not None:
            self.answer.add(self._clock.now_s, len(outcome.commit.tokens))
        if outcome.finish is not None:
            totals, answer = outcome.finish.totals, self.answer
            answer.judged, answer.accepted = totals.judged, totals.accepted
            answer.target_passes = totals.passes
            answer.drafted += self.machine.counts.looked_up
            self._done()
        else:
            self._act()

    def _ready(self) -> None:
        self._busy = False
        self._act()

    def _act(self) -> None:
        outcome = self.machine.next(self._clock.now_s, busy=self._busy)
        self._send(outcome.send)
        if outcome.step is not None:
            self._step(outcome.step)

    def _send(self, messages: Sequence[Pushed]) -> None:
        """Queue messages, and send the queue once the session is open."""
        self._waiting.extend(messages)
        while self._opened and self._waiting:
            self.uplink.send(self._waiting.pop(0))

    def _step(self, step: DraftStep) -> None:
        """Begin a step, which also reads all tokens that the draft model has not read yet."""
        tokens = self._source.drafts(step.context, step.ahead)
        unread = max(0, len(step.context) - common_prefix(self._cache, step.context) - 1)
        step_s = self._step_s(step, unread)
        self._busy = True
        self._cache = [*step.context, *(drafted.token for drafted in tokens[:-1])]
        self.answer.drafted += len(tokens)
        self.answer.edge_cpu_s += step_s
        self._clock.after(step_s, lambda: self._drafted(step, tokens))

    def _step_s(self, step: DraftStep, unread: int) -> float:
        """Return the seconds of a step. unread: tokens of its context that it reads first."""
        return self._draft_s.of(1 + unread + len(step.ahead))

    def _drafted(self, step: DraftStep, tokens: Sequence[DraftToken]) -> None:
        self._busy = False
        self.machine.drafted(step, tokens, self._clock.now_s)
        self._act()
