"""The planner decides when a step of vLLM's core starts and which draft tokens it has, and
takes its verdicts. It imports nothing of vLLM.

The scheduler names the requests that run, and executes:

    wait_s    how long the core may sleep before a step
    decide    whether the next step is planned while one is under way
    plan      which sessions the step has, and the draft tokens of each
    begin     starts the passes of the step that vLLM has really planned
    ran       takes their outcomes, and returns what each session sends

An engine that schedules asynchronously plans a step while the last one runs, as vLLM does. A
session without draft tokens has a row in each step, like a request without a session. One with
draft tokens is left out of the next step, because its next ones must follow a text that is
known; if that step would have no other rows, it is not planned asynchronously. While some
session or grammar needs each result, all steps wait for the last one.

The results of steps come in the order of their plans. All times are in seconds on one monotonic
clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from speculation.messages import Down
from speculation.model_facts import TokenId
from speculation.verify_machine import PassPlan, PassRecord, Verdict, VerifyMachine


class Running(NamedTuple):
    """The requests that run, before a step is planned."""

    under_way: Sequence[str]
    """These sessions have read their text, and have a row in the step under way."""

    free: Sequence[str]
    """These have read their text, and have none there."""

    others: int
    """The step has this many other requests."""

    admits: bool
    """True if a request waits, and a seat is free for it."""


@dataclass(frozen=True, slots=True)
class NextStep:
    """What is decided of a step before vLLM plans it. Nothing changes `running` until then."""

    running: Running
    waits: bool = False
    """True if it is planned only after the one under way has ended."""

    without_drafts: Collection[str] = ()
    """These sessions have a row in it, and in the one under way."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What a step has of the sessions."""

    drafts: Mapping[str, tuple[TokenId, ...]]
    """The draft tokens of each session that takes part."""

    heads: Mapping[str, int]
    """Maps sessions that judge the target's head instead to its number of tokens."""

    left_out: Sequence[str]
    """These sessions have read their text, and wait for drafts or for their last outcome."""


NO_STEP = StepPlan({}, {}, ())


class _Step(NamedTuple):
    """A step under way. passes: those with draft tokens."""

    passes: PassPlan
    is_ahead: bool | None


class StepPlanner:
    """machine: decides for all sessions; the scheduler opens and closes them there, and hands
    it their messages."""

    def __init__(self, machine: VerifyMachine) -> None:
        self._machine = machine
        self.needing_results: set[str] = set()
        """Each step waits for the last one while there are such requests."""

        self.is_due = False
        """True if no session need wait longer, until a message comes or the step is planned."""

        self._is_full = False
        """True if the last step admitted no request that waits, for want of KV cache, and
        nothing has changed since."""

        self._has_slept = False
        """True if there was nothing to do since the last step was planned."""

        self._is_ahead: bool | None = False
        """True if the step that is planned was not the only one; None if it ends a sleep."""

        self._under_way: deque[_Step] = deque()
        self._ended_at = self._last_ended_at = 0.0

    def observe_message(self) -> None:
        """Note that a session has got a message, or has ended."""
        self.is_due = False

    def observe_change(self) -> None:
        """Note that a request has come, or has given back KV cache."""
        self._is_full = False

    def observe_admission(self, failed: bool) -> None:
        """Note whether the last step had no KV cache for a request that waits."""
        self._is_full = failed

    def observe_sleep(self) -> None:
        self._has_slept = True

    def wait_s(self, sessions: Collection[str], now: float) -> float:
        """Return how long no step should start: 0 for at once, inf until a message arrives."""
        wait_s = self._machine.wait_s(sessions, now)
        self.is_due = wait_s <= 0.0
        return wait_s

    def decide(self, running: Running, now: float) -> NextStep:
        """Decide whether the next step is planned before the one under way has ended: for
        requests without a session, for prompts, or for sessions that run on, if that commits
        more than if all of them wait."""
        if self.needing_results:
            return NextStep(running, waits=True)
        sessions = self._machine.asynchronous_sessions(
            running.under_way, now, others=self._others(running)
        )
        return NextStep(running, sessions is None, sessions or ())

    def _others(self, running: Running) -> int:
        return running.others + (running.admits and not self._is_full)

    def start(self, *, ahead: bool) -> None:
        """Begin to plan a step. ahead: True if another one is under way."""
        self._is_ahead = None if self._has_slept else ahead
        self._has_slept = False

    def plan(self, step: NextStep, now: float, *, rows: int, ahead: bool) -> StepPlan:
        """Return what the step has of the sessions. No session waits for drafts while a prompt
        is read, because such a step is long. rows: the most that the step may have."""
        is_due, self.is_due = self.is_due, False
        (under_way, free, _, _), others = step.running, self._others(step.running)
        starts = is_due or step.without_drafts or others
        if not starts and self._machine.wait_s(free, now) > 0.0:
            return StepPlan({}, {}, (*under_way, *free))
        offer = self._machine.allot(
            free, rows=rows, without_drafts=step.without_drafts, others=others, ahead=ahead
        )
        left_out = [name for name in (*under_way, *free) if name not in offer.start]
        return StepPlan(offer.start, offer.heads, left_out)

    def begin(self, taken: Mapping[str, int], now: float, heads: Mapping[str, int]) -> PassPlan:
        """Begin the passes with draft tokens of the step that vLLM has planned; see
        VerifyMachine.begin."""
        plan = self._machine.begin(taken, now, heads)
        self._under_way.append(_Step(plan, self._is_ahead))
        return plan

    def ended(self, now: float) -> None:
        """Note that the result of a step has come, whether it has sessions or not."""
        self._last_ended_at, self._ended_at = self._ended_at, now

    def ran(
        self,
        verdicts: Mapping[str, Verdict],
        *,
        decoded: int,
        with_prompt: bool,
        with_drafts: bool,
        says_nothing: bool,
    ) -> tuple[PassPlan, dict[str, list[Down]]]:
        """Return the passes of the oldest step, which has ended, and what sessions send now.

        decoded: its rows that belong to no part of a prompt. with_prompt, with_drafts: see
        PassRecord. says_nothing: True if its duration must not be learned.
        """
        step, now = self._under_way.popleft(), self._ended_at
        plan = self._with_fill_ins(step.passes, verdicts)
        record = None
        if decoded > 0 and not says_nothing:
            record = PassRecord(
                decoded,
                with_prompt=with_prompt,
                with_drafts=with_drafts,
                after_s=None if step.is_ahead is None else now - self._last_ended_at,
                ahead=bool(step.is_ahead),
            )
        return plan, self._machine.ran(plan, verdicts, now, record)

    def _with_fill_ins(self, plan: PassPlan, verdicts: Mapping[str, Verdict]) -> PassPlan:
        """Return a step's passes with those without draft tokens, which begin now: while they
        were under way the session may have had another one. A step starts when it is planned,
        but not before the last one has ended."""
        started = max(plan.started, self._last_ended_at)
        filled = {name: 0 for name in verdicts if name not in plan.passes}
        passes = {**plan.passes, **self._machine.begin(filled, started).passes}
        return PassPlan(passes, started)
