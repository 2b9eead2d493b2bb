"""Times a step of the verifier's machine, as a driver calls it, on a virtual clock.

Passes take PASS_S and a little more for each row. Each edge makes a draft token every DRAFT_S,
of which RIGHT are right, and is no distance away: so every step has draft tokens to judge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from random import Random
from time import thread_time
from typing import Final, TypeVar

from speculation.judge import Judgement
from speculation.messages import Draft, Open, Sampling
from speculation.model_facts import Limits
from speculation.verify_machine import PassPlan, PassRecord, Verdict, VerifyMachine

PART: Final = "A step of the verifier's machine"

PASS_S: Final = 0.008
ROWS_TWICE_AT: Final = 1024
"""A pass of this many rows takes twice PASS_S."""

DRAFT_S: Final = 0.005
RIGHT: Final = 0.8
AHEAD: Final = 30
"""An edge drafts at most this many tokens beyond the committed text."""

WARM_UP: Final = 30
"""This many steps are made before those that are timed."""

ROWS: Final = 2048
"""A step of the engine has at most this many rows, as vLLM's on a GPU."""

SIZES: Final = (1, 2, 4, 8, 16, 33, 64, 128, 256, 512, 1024, ROWS)
"""The machine has measured passes of these numbers of rows before."""

TOKEN, WRONG = 7, 8
LIMITS: Final = Limits(max_verify=32, max_ahead=64)
T = TypeVar("T")


@dataclass(slots=True)
class Stopwatch:
    """Sums up the processor seconds of calls, by name. A busy host changes them little."""

    spent_s: dict[str, float] = field(default_factory=dict)

    def __call__(self, name: str, call: Callable[[], T]) -> T:
        began = thread_time()
        result = call()
        self.spent_s[name] = self.spent_s.get(name, 0.0) + thread_time() - began
        return result


def planned(
    machine: VerifyMachine, ready: Sequence[str], now: float, timed: Stopwatch
) -> PassPlan | float:
    """Ask the machine as vLLM's core does: `has_requests` once to learn whether it may sleep,
    and again as the step begins; then `schedule`. Return the pass, or the seconds to wait.

    Every call that decides over all sessions is in this function."""
    wait_s = timed("wait_s", lambda: machine.wait_s(ready, now))
    if wait_s > 0.0:
        return wait_s
    timed("wait_s", lambda: machine.wait_s(ready, now))
    offer = timed("offer", lambda: machine.offer(ready, now, rows=ROWS))
    if not offer.start:
        return offer.wait_s
    taken = {name: len(draft) for name, draft in offer.start.items()}
    return timed("begin", lambda: machine.begin(taken, now))


@dataclass(slots=True)
class _Edge:
    """epoch, position: those of its next draft token, which is made at `due_s`."""

    due_s: float
    epoch: int = 0
    position: int = 0


class Fleet:
    """Runs a machine with many sessions and their edges."""

    def __init__(self, sessions: int, seed: int = 7) -> None:
        self._chance = Random(seed)
        self._machine = VerifyMachine(iter(self._chance.random, 2.0))
        self._edges = {
            f"s{i}": _Edge(DRAFT_S * (1 + i / sessions)) for i in range(sessions)
        }  # they do not all draft at the same moment
        self.now = 0.0
        self.timed = Stopwatch()
        prompt, most = tuple(range(100, 300)), 1 << 20
        request = Open("m", "v", prompt, Sampling(0.0), 1, most, (), ngram_drafts=True)
        for name in self._edges:
            self._machine.open(name, request, LIMITS, vocabulary_size=1000, now=0.0)
        for rows in SIZES * 4:
            self._machine.latency.observe(rows, _pass_s(rows))

    def step(self) -> int:
        """Make a step, with the waits before it; return the number of committed tokens."""
        self._arrive()
        while not isinstance(
            plan := planned(self._machine, list(self._edges), self.now, self.timed), PassPlan
        ):
            arrival = min((self._due_s(name) for name in self._edges), default=inf)
            self.now = min(self.now + plan, max(self.now, arrival))
            self._arrive()
        return self._run(plan)

    def _run(self, plan: PassPlan) -> int:
        verdicts = {name: Verdict(_judged(p.draft)) for name, p in plan.passes.items()}
        rows = sum(1 + len(each.draft) for each in plan.passes.values())
        self.now += _pass_s(rows)
        record = PassRecord(rows)
        self.timed("ran", lambda: self._machine.ran(plan, verdicts, self.now, record))
        for name in plan.passes:
            session, edge = self._machine.session(name), self._edges[name]
            if session.chain.broken:
                edge.epoch, edge.position = edge.epoch + 1, len(session.committed)
                edge.due_s = max(edge.due_s, self.now + DRAFT_S)
        return sum(len(verdict.judgement.tokens) for verdict in verdicts.values())

    def _due_s(self, name: str) -> float:
        """Return when an edge's next draft token arrives; inf if not before a commit."""
        ahead = self._edges[name].position - len(self._machine.session(name).committed)
        return inf if ahead >= AHEAD else self._edges[name].due_s

    def _arrive(self) -> None:
        """Hand the machine all draft tokens that were made by now."""
        for name, edge in self._edges.items():
            done = len(self._machine.session(name).committed)
            while (due_s := self._due_s(name)) <= self.now:
                start = edge.position = max(edge.position, done)
                token = TOKEN if self._chance.random() < RIGHT else WRONG
                draft = Draft(edge.epoch, start, start - done, (token,))
                self._receive(name, draft, due_s)
                edge.position, edge.due_s = start + 1, due_s + DRAFT_S
            if due_s == inf:  # it begins again when there is room
                edge.due_s = max(edge.due_s, self.now)

    def _receive(self, name: str, draft: Draft, arrived: float) -> None:
        self.timed("received", lambda: self._machine.received(name, draft, arrived=arrived))


def _pass_s(rows: int) -> float:
    return PASS_S * (1 + rows / ROWS_TWICE_AT)


def _judged(draft: Sequence[int]) -> Judgement:
    right = next((i for i, token in enumerate(draft) if token != TOKEN), len(draft))
    return Judgement((TOKEN,) * (right + 1), right)


def measured(sessions: Iterable[int], steps: int) -> Iterator[tuple[int, dict[str, float]]]:
    """Time this many steps at each number of sessions; yield the number and its figures."""
    for count in sessions:
        fleet = Fleet(count)
        for _ in range(WARM_UP):
            fleet.step()
        fleet.timed = Stopwatch()
        began_s = fleet.now
        tokens = sum(fleet.step() for _ in range(steps))
        yield count, _figures(fleet, began_s, tokens, steps)


def _figures(fleet: Fleet, began_s: float, tokens: int, steps: int) -> dict[str, float]:
    spent_s = fleet.timed.spent_s
    all_s = sum(spent_s.values())
    return {
        "ms a step": 1000 * all_s / steps,
        **{f"of it {name}, ms": 1000 * s / steps for name, s in spent_s.items()},
        "us a token": 1e6 * all_s / tokens,
        "ms of the virtual clock a step": 1000 * (fleet.now - began_s) / steps,
        "tokens a step": tokens / steps,
    }
