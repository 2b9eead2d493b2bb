"""Drivers of both machines for tests: they do by chance what the machines leave open.

A step takes any number of actions, and the round trip may be any. The verifier's engine trims
offers, preempts sessions and reads prompts in passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf
from random import Random

from picospec.speculation import wire
from picospec.speculation.distributions import Distribution, DraftToken, quantise
from picospec.speculation.draft_machine import DraftMachine, DraftStep, Outcome
from picospec.speculation.drafting import StreamPolicy
from picospec.speculation.gain import Gains
from picospec.speculation.judges import JUDGES
from picospec.speculation.lookup import PromptLookup
from picospec.speculation.messages import Finish, Limits, Open, Opened, Redraw
from picospec.speculation.ngrams import Pool
from picospec.speculation.noise import noise_index
from picospec.speculation.verify_machine import Offer, PassPlan, Verdict, VerifyMachine
from picospec.speculation.verify_session import Pass, VerifyingSession
from tests.speculation.small_models import SIZE, Model, plain


def uniforms(chance: Random) -> Iterator[float]:
    return iter(chance.random, 2.0)


@dataclass
class EdgeDriver:
    """Runs the edge's machine with a draft model that is like the target with rate `right`."""

    request: Open
    target: Model
    drafter: Model
    chance: Random
    right: float
    looks_up: bool
    limits: Limits

    def __post_init__(self) -> None:
        lookup = (
            PromptLookup(self.request.prompt, pool=self._wrong()) if self.looks_up else None
        )
        self.rtt_s = self.chance.choice([0.0, 0.1])
        self.gains = Gains()
        self.gains.draft.rest = self.chance.choice([0.0, 30.0])
        self.machine = DraftMachine(
            self.request,
            StreamPolicy(may_rest=self.request.fill != "never"),
            self.limits,
            JUDGES[self.request.judge].edge(self.request, uniforms(self.chance)),
            rtt_s=lambda: self.rtt_s,
            drafts=True,
            lookup=lookup,
            gains=(lambda: self.gains) if self.request.fill != "never" else None,
        )
        self.sent: list[bytes] = []
        """Frames on their way up."""

        self.finish: Finish | None = None
        self.redraws = 0
        self._step: DraftStep | None = None

    def _wrong(self) -> Pool:
        """A pool that holds the text up to a place, and anything after it."""
        text, pool = plain(self.target, self.request), Pool(200)
        right = self.chance.randrange(len(text))
        anything = self.chance.choices(range(SIZE), k=20)
        pool.add(self.request.prompt, [*text[:right], *anything])
        return pool

    def next(self, now: float) -> None:
        busy = self._step is not None
        outcome = self.machine.next(now, busy=busy)
        assert not (busy and outcome.step)
        self._execute(outcome)

    def end_step(self, now: float) -> None:
        if self._step is not None:
            step, self._step = self._step, None
            self.machine.drafted(step, self._drafted(step), now)

    def receive(self, frame: wire.Message) -> None:
        self._execute(self.machine.received(frame))

    def lost(self) -> None:
        """Lose the session, and all that is on its way."""
        self.sent.clear()
        self.finish = self.machine.lost()

    def _execute(self, outcome: Outcome) -> None:
        self.redraws += sum(isinstance(message, Redraw) for message in outcome.send)
        self.sent += map(wire.encode, outcome.send)
        self._step = outcome.step or self._step
        self.finish = outcome.finish or self.finish

    def _drafted(self, step: DraftStep) -> list[DraftToken]:
        """One draft token, and one more for each token of `ahead` that agrees."""
        drafted = [self._sample(step.context)]
        for count, token in enumerate(step.ahead, 1):
            if drafted[-1].token != token:
                break
            drafted.append(self._sample([*step.context, *step.ahead[:count]]))
        return drafted

    def _sample(self, context: list[int]) -> DraftToken:
        model = self.target if self.chance.random() < self.right else self.drafter
        distribution = model((*self.request.prompt, *context))
        if self.request.judge == "separate":
            q = quantise(distribution)
            return DraftToken(q.at(self.chance.random()), 0.8, q)
        at = noise_index(len(self.request.prompt), len(context))
        return DraftToken(distribution.picked(self.request.seed, at), 0.8)


@dataclass
class _Served:
    """A session as an engine sees it."""

    request: Open
    session: VerifyingSession
    was_read: bool = False
    """Its prompt was read once. The pass that reads it takes no draft token."""

    is_read: bool = False
    """Its text is in the KV cache; an engine that preempts a session drops it."""


@dataclass
class VerifyDriver:
    """Runs the verifier's machine with a target that executes passes."""

    target: Model
    chance: Random
    limits: Limits

    def __post_init__(self) -> None:
        self.machine = VerifyMachine(uniforms(self.chance))
        self.down: dict[str, list[bytes]] = {}
        self.served: dict[str, _Served] = {}
        self._plan: PassPlan | None = None

    def open(self, name: str, request: Open, now: float) -> VerifyingSession:
        self.machine.open(name, request, self.limits, vocabulary_size=SIZE, now=now)
        was_read = request.rejected  # a pass that reads the prompt would have no draft token
        self.served[name] = _Served(request, self.machine.session(name), was_read, was_read)
        self.down[name] = [wire.encode(Opened(name, self.limits))]
        return self.served[name].session

    def close(self, name: str) -> None:
        self.machine.close(name)
        del self.served[name]

    def receive(self, name: str, frame: bytes, arrived: float) -> None:
        (message,) = wire.Decoder().feed(frame)
        if name in self.served:  # else its answer has ended
            sent = self.machine.received(name, message, arrived=arrived)
            self.down[name] += map(wire.encode, sent)
            held = self.served[name].session.chain._drafts
            assert len(held) <= self.limits.max_ahead

    def offer(self, now: float, rows: int = 100) -> Offer:
        ready = [name for name, served in self.served.items() if served.is_read]
        new = [name for name, served in self.served.items() if not served.was_read]
        offer = self.machine.offer(ready, now, rows=rows, without_drafts=new)
        if not offer.start and offer.wait_s < inf:
            assert self.machine.wait_s(ready, now) == offer.wait_s
            assert self.machine.offer(ready, now + offer.wait_s, rows=rows).start
        return offer

    def read_again(self) -> None:
        """Put back into the KV cache what was dropped from it."""
        for served in self.served.values():
            served.is_read = served.was_read

    def begin_all(self, now: float) -> float:
        """Begin the pass that is offered, or return when to ask again."""
        if self._plan is not None:
            return inf
        offer = self.offer(now)
        self._begin(now, {name: len(draft) for name, draft in offer.start.items()})
        return inf if offer.start else offer.wait_s

    def begin_some(self, now: float) -> None:
        """Begin a pass with any part of what is offered."""
        if self._plan is not None:
            return
        taken = {}
        for name, draft in self.offer(now, self.chance.randint(1, 20)).start.items():
            if self.chance.random() < 0.1:
                self.served[name].is_read = False
                continue
            served = self.served[name]
            needs_one = served.request.fill == "never" or served.session.needs_draft
            least = int(needs_one and len(draft) > 0)
            taken[name] = self.chance.randint(least, len(draft))
        self._begin(now, taken)

    def _begin(self, now: float, taken: Mapping[str, int]) -> None:
        if taken:
            self._plan = self.machine.begin(taken, now)

    def end(self, now: float) -> None:
        """End the pass that runs, if one does."""
        if self._plan is None:
            return
        plan, self._plan = self._plan, None
        running = {n: p for n, p in plan.passes.items() if n in self.served}
        verdicts = {name: self._verdict(name, judged) for name, judged in running.items()}
        whole = all(self.served[name].was_read for name in running)
        rows = sum(1 + len(judged.draft) for judged in plan.passes.values())
        down = self.machine.ran(plan, verdicts, now, rows=rows if whole else None)
        for name, sent in down.items():
            self.served[name].was_read = self.served[name].is_read = True
            self.down[name] += map(wire.encode, sent)

    def _verdict(self, name: str, judged: Pass) -> Verdict:
        request = self.served[name].request
        context = (*request.prompt, *self.served[name].session.committed)

        def row(i: int) -> Distribution:
            return self.target((*context, *judged.draft[:i]))

        return Verdict(judged.rule.judge(row, judged.draft))
