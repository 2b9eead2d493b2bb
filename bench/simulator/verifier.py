"""Simulates the target's host: drives the VerifyMachine on virtual time."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Final

from bench.simulator.clock import Clock, Line
from bench.simulator.hosts import World
from bench.simulator.source import VOCABULARY, Source
from speculation.answer_cache import Owner
from speculation.judge import Judgement
from speculation.latency import measured
from speculation.messages import Open, Opened, Up
from speculation.verify_machine import Offer, PassPlan, PassRecord, Verdict, VerifyMachine
from speculation.verify_session import Pass

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
    """Serves sessions. colocated: draft models run on this host."""

    def __init__(self, clock: Clock, world: World, *, colocated: bool) -> None:
        self._clock, self._world, self._hosts = clock, world, world.hosts
        self._limits, self._colocated = world.limits, colocated
        self._machine = VerifyMachine(
            iter(()), measured(self._hosts.pass_s.of, world.limits.max_verify)
        )
        self._served: dict[str, Served] = {}
        self._running = False
        self._due_s = inf

    def receive(self, served: Served, up: Up) -> None:
        """Handle a message of the session that `served` names."""
        name, now_s = served.name, self._clock.now_s
        if isinstance(up, Open):
            self._served[name] = served
            self._machine.open(
                name, up, self._limits, vocabulary_size=VOCABULARY, now=now_s,
                owner=served.owner,
            )  # fmt: skip
            served.downlink.send(Opened("", self._limits))
        elif name in self._served:  # its answer may have ended
            self._machine.received(name, up, arrived=now_s)
        self._consider_soon()

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
            ready, now_s, rows=self._world.rows, without_drafts=new, others=self._world.others
        )
        if offer.start or self._world.others:
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
        if (pass_s := self._duration_s(plan)) > 0.0:
            self._clock.after(pass_s, lambda: self._end(plan))
        else:
            self._end(plan)

    def _duration_s(self, plan: PassPlan) -> float:
        hosts, rows = self._hosts, self._rows_of(plan)
        new = [self._served[n] for n in plan.passes if not self._served[n].prefilled]
        prompts_s = (len(served.source.prompt) * hosts.prefill_s for served in new)
        pass_s = hosts.pass_s.of(rows) if rows else 0.0
        return pass_s + sum(prompts_s)

    def _end(self, plan: PassPlan) -> None:
        self._running = False
        verdicts = {name: Verdict(self._judge(name, p)) for name, p in plan.passes.items()}
        whole = all(self._served[name].prefilled for name in plan.passes)
        record = PassRecord(self._rows_of(plan)) if whole else None
        down = self._machine.ran(plan, verdicts, self._clock.now_s, record)
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
        return self._world.others + sum(
            1 + len(judged.draft)
            for name, judged in plan.passes.items()
            if self._served[name].prefilled
        )

    def _judge(self, name: str, judged: Pass) -> Judgement:
        source, start = self._served[name].source, judged.start
        return judged.rule.judge(lambda i: source.distributions[start + i], judged.draft)
