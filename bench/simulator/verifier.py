"""The target's host: sessions share its passes; one pass runs at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Final

from bench.simulator.arms import Arm, Seat
from bench.simulator.clock import Clock, Line
from bench.simulator.hosts import Hosts
from bench.simulator.source import VOCABULARY, Source
from speculation.protocol.messages import Limits, Open, Opened, Up
from speculation.sampling.judging import Judgement, judge_coupled
from speculation.verifying.arrivals import Arrivals, receive
from speculation.verifying.pass_policy import starters
from speculation.verifying.row_allocation import timed
from speculation.verifying.session import Pass, VerifyingSession

NOISELESS: Final = 0  # the source's distributions have one token each: no noise is ever drawn

TICK_S: Final = 1e-6
"""Shorter holds are none: what is left of one when its time has come is a rounding error."""


@dataclass(slots=True, eq=False)
class Served(Seat):
    """A session, its answer, and the way down to its edge."""

    source: Source
    downlink: Line
    prefilled: bool = False


class Verifier:
    def __init__(self, clock: Clock, arm: Arm, limits: Limits, hosts: Hosts, rows: int) -> None:
        """rows: most that a pass may have."""
        self._clock = clock
        self._arm = arm
        self._limits = limits
        self._hosts = hosts
        self._rows = rows
        self._times = timed(hosts.pass_s.of, limits.max_verify)
        self._served: list[Served] = []
        self._running = False
        self._pass_rows = 0
        self._disturbed_s = 0.0
        self._drafting_until_s = 0.0
        self._due_s = inf

    def receive(self, up: Up, served: Served) -> None:
        """Take in a message of the session that `served` names."""
        if isinstance(up, Open):
            self._served.append(served)
            served.downlink.send(Opened("", self._limits))
        else:
            self._disturbed_s += self._hosts.message_s * self._running
            receive(served.session, served.arrivals, up, arrived=self._clock.now_s)
        self._soon()

    def beside(self, until_s: float) -> None:
        """Hear that a draft model works until then, on the same memory perhaps."""
        self._drafting_until_s = until_s
        if self._running:
            self._slow()

    def _slow(self) -> None:
        drafting_s = max(0.0, self._drafting_until_s - self._clock.now_s)
        self._disturbed_s += self._hosts.lost_s(self._pass_rows, drafting_s)

    def admit(self, request: Open, source: Source, downlink: Line) -> Served:
        """Return the session that `request` will open when it arrives."""
        session = VerifyingSession(request, self._limits, vocabulary_size=VOCABULARY)
        most = self._limits.max_verify
        return Served(session, Arrivals(), self._times, most, 0.0, source, downlink)

    def _soon(self) -> None:
        """Consider what to do; where drafts are part of the pass, when all have come."""
        if self._arm.beside:
            self._clock.after(TICK_S, self._consider)
        else:
            self._consider()

    def _consider(self) -> None:
        """Start a pass with every session that need not wait, or wake up when the first may."""
        if self._running:
            return
        now_s = self._clock.now_s
        holds_s = [self._hold_s(served) for served in self._served]
        if due := starters(holds_s):
            self._start([self._served[i] for i in due[: self._rows]])
        elif (wait_s := min(holds_s, default=inf)) < inf:
            self._due_s = now_s + wait_s
            self._clock.at(self._due_s, self._wake)

    def _hold_s(self, served: Served) -> float:
        if not served.prefilled:
            return 0.0
        hold_s = self._arm.hold_s(served, self._clock.now_s)
        return hold_s if hold_s > TICK_S else 0.0

    def _wake(self) -> None:
        if self._clock.now_s == self._due_s:
            self._consider()

    def _start(self, seats: Sequence[Served]) -> None:
        self._running, self._due_s = True, inf
        counts = self._arm.share(seats, self._times, self._rows)
        passes = [
            (seat, seat.session.begin(count if seat.prefilled else 0, exact=not seat.prefilled))
            for seat, count in zip(seats, counts, strict=True)
        ]
        began_s = self._clock.now_s
        self._disturbed_s = self._duration_s(passes)
        self._pass_rows = max(1, _rows(passes))
        self._slow()
        self._extend(passes, began_s)

    def _extend(self, passes: Sequence[tuple[Served, Pass]], began_s: float) -> None:
        """Let the pass run on for what came to disturb it; then end it."""
        left_s, self._disturbed_s = self._disturbed_s, 0.0
        if left_s > 0.0:
            self._clock.after(left_s, lambda: self._extend(passes, began_s))
        else:
            self._end(passes, began_s)

    def _duration_s(self, passes: Sequence[tuple[Served, Pass]]) -> float:
        new = [served for served, _ in passes if not served.prefilled]
        rows = _rows(passes)
        pass_s = self._hosts.pass_s.of(rows) if rows else 0.0
        prompts_s = (len(seat.source.prompt) * self._hosts.prefill_s for seat in new)
        return pass_s + sum(prompts_s) + self._hosts.first_s * len(new)

    def _end(self, passes: Sequence[tuple[Served, Pass]], began_s: float) -> None:
        self._running = False
        now_s = self._clock.now_s
        pass_s = now_s - began_s
        if all(served.prefilled for served, _ in passes):
            self._times.saw(_rows(passes), pass_s)
        for served, what in passes:
            queue_s = began_s - served.committed_s if served.prefilled else 0.0
            down = served.session.resolve(
                self._judge(served.source, what), queue_s=queue_s, pass_s=pass_s
            )
            served.committed_s, served.prefilled = now_s, True
            served.arrivals.committed(served.session, now_s)
            for message in down:
                served.downlink.send(message)
            if served.session.finished:
                self._served.remove(served)
        self._soon()

    def _judge(self, source: Source, what: Pass) -> Judgement:
        judgement = judge_coupled(
            lambda i: source.distribution(what.start + i), what.draft, NOISELESS, what.start
        )
        more = what.start + len(judgement.tokens) < len(source.tokens)
        if not self._arm.bonus and judgement.accepted == len(what.draft) > 0 and more:
            return Judgement(judgement.tokens[:-1], judgement.accepted)
        return judgement


def _rows(passes: Sequence[tuple[Served, Pass]]) -> int:
    return sum(1 + len(what.draft) for served, what in passes if served.prefilled)
