"""Both ends of the simulation drive the product's machines on virtual time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf
from typing import Final

from bench.simulator.hosts import Action, Clock, Curve, Hosts, Line
from bench.simulator.source import VOCABULARY, Source
from local_models.llama_cpp.prefix import common_prefix
from speculation.answer_cache import Owner
from speculation.draft_machine import DraftMachine, DraftStep
from speculation.draft_token import DraftToken
from speculation.judge import Judgement
from speculation.latency import measured
from speculation.messages import Down, Limits, Open, Opened, Pushed, TokenId, Up
from speculation.verify_machine import Offer, PassPlan, Verdict, VerifyMachine
from speculation.verify_session import Pass

# Simulates a user's device: drives the DraftMachine on virtual time.


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
        self,
        clock: Clock,
        source: Source,
        machine: DraftMachine,
        draft_s: Curve,
        *,
        drafting: Callable[[float], None],
        done: Action,
    ) -> None:
        """Set up. drafting: gets the end of each draft step. done: is called at the end."""
        self.answer = Answer(source, clock.now_s)
        self.machine = machine
        self._clock = clock
        self._source = source
        self._draft_s = draft_s
        self._drafting = drafting
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
            since_s = self._clock.now_s - self.answer.asked_s
            self.answer.arrivals.append((since_s, len(outcome.commit.tokens)))
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
        self._drafting(self._clock.now_s + step_s)
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


# Simulates the target's host: drives the VerifyMachine on virtual time.

TICK_S: Final = 1e-6
"""A colocated target waits this long, so that all drafts of the same instant have arrived."""


@dataclass(slots=True, eq=False)
class Served:
    """A Served has a session's source, and the downlink to its edge."""

    name: str
    source: Source
    downlink: Line
    owner: Owner | None = None
    """The verifier keeps answers for this client; None keeps nothing."""

    prefilled: bool = False


class Verifier:
    """Serves sessions. rows: the most of one pass. others: see World. colocated: draft models
    run on this host."""

    def __init__(
        self,
        clock: Clock,
        limits: Limits,
        hosts: Hosts,
        rows: int,
        *,
        others: int = 0,
        colocated: bool,
    ) -> None:
        self._clock = clock
        self._limits = limits
        self._hosts = hosts
        self._rows = rows
        self._others = others
        self._colocated = colocated
        self._machine = VerifyMachine(iter(()), measured(hosts.pass_s.of, limits.max_verify))
        self._served: dict[str, Served] = {}
        self._running = False
        self._pass_rows = 0
        self._disturbed_s = 0.0
        self._drafting_until_s = 0.0
        self._due_s = inf

    def receive(self, served: Served, up: Up) -> None:
        """Handle a message of the session that `served` names."""
        name, now_s = served.name, self._clock.now_s
        if isinstance(up, Open):
            self._served[name] = served
            self._machine.open(
                name,
                up,
                self._limits,
                vocabulary_size=VOCABULARY,
                now=now_s,
                owner=served.owner,
            )
            served.downlink.send(Opened("", self._limits))
        else:
            self._disturbed_s += self._hosts.message_s * self._running
            if name in self._served:  # its answer may have ended
                self._machine.received(name, up, arrived=now_s)
        self._consider_soon()

    def drafting(self, until_s: float) -> None:
        """Note that a draft model works until then. It may share the memory."""
        self._drafting_until_s = until_s
        if self._running:
            self._slow()

    def _slow(self) -> None:
        drafting_s = max(0.0, self._drafting_until_s - self._clock.now_s)
        self._disturbed_s += self._hosts.lost_s(self._pass_rows, drafting_s)

    def _consider_soon(self) -> None:
        if self._colocated:
            self._clock.after(TICK_S, self._consider)
        else:
            self._consider()

    def _consider(self) -> None:
        """Start the pass that the machine offers, or schedule the time when it may start."""
        if self._running or not self._served:
            return
        now_s = self._clock.now_s
        ready = [name for name, served in self._served.items() if served.prefilled]
        new = [name for name in self._served if name not in ready]
        offer = self._machine.offer(
            ready, now_s, rows=self._rows, without_drafts=new, others=self._others
        )
        if offer.start or self._others:
            self._start(offer, now_s)
        elif offer.wait_s < inf:
            self._due_s = now_s + offer.wait_s
            self._clock.at(self._due_s, self._wake)

    def _wake(self) -> None:
        if self._clock.now_s == self._due_s:
            self._consider()

    def _start(self, offer: Offer, now_s: float) -> None:
        self._running, self._due_s = True, inf
        taken = {name: len(offer.start[name]) for name in self._served if name in offer.start}
        plan = self._machine.begin(taken, now_s)
        self._disturbed_s = self._duration_s(plan)
        self._pass_rows = max(1, self._rows_of(plan))
        self._slow()
        self._extend(plan)

    def _extend(self, plan: PassPlan) -> None:
        """Extend the pass by disturbances since it began; then end it."""
        left_s, self._disturbed_s = self._disturbed_s, 0.0
        if left_s > 0.0:
            self._clock.after(left_s, lambda: self._extend(plan))
        else:
            self._end(plan)

    def _duration_s(self, plan: PassPlan) -> float:
        hosts, rows = self._hosts, self._rows_of(plan)
        new = [self._served[n] for n in plan.passes if not self._served[n].prefilled]
        prompts_s = (len(served.source.prompt) * hosts.prefill_s for served in new)
        own_s = hosts.step_s.of(len(plan.passes)) if hosts.step_s else 0.0
        pass_s = hosts.pass_s.of(rows) if rows else 0.0
        return pass_s + own_s + sum(prompts_s) + hosts.first_s * len(new)

    def _end(self, plan: PassPlan) -> None:
        self._running = False
        verdicts = {
            name: Verdict(self._judge(name, each)) for name, each in plan.passes.items()
        }
        whole = all(self._served[name].prefilled for name in plan.passes)
        rows = self._rows_of(plan) if whole else None
        down = self._machine.ran(plan, verdicts, self._clock.now_s, rows=rows)
        for name, messages in down.items():
            served = self._served[name]
            served.prefilled = True
            for message in messages:
                served.downlink.send(message)
            if self._machine.session(name).finished:
                del self._served[name]
                self._machine.close(name)
        self._consider_soon()

    def _rows_of(self, plan: PassPlan) -> int:
        """Return the rows of other requests, and of sessions whose prompt was read before."""
        return self._others + sum(
            1 + len(judged.draft)
            for name, judged in plan.passes.items()
            if self._served[name].prefilled
        )

    def _judge(self, name: str, judged: Pass) -> Judgement:
        source, start = self._served[name].source, judged.start
        return judged.rule.judge(lambda i: source.distributions[start + i], judged.draft)
