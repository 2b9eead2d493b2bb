"""The two machines, each with a driver, joined by a bad network.

The drivers do by chance what the machines leave open: a step takes any number of actions, the
round trip may be any, and the verifier's engine trims offers, preempts sessions and reads
prompts in passes. Up, any frame may arrive at any time and again later: this is also what a
lost message that is sent again looks like. Down is a stream of bytes: in order, but begun anew
after a cut. The verifier serves other sessions besides, which come and go, and a fresh one may
take its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from random import Random

from speculation import wire
from speculation.answer_cache import AnswerCache
from speculation.distributions import Distribution, quantise
from speculation.draft_machine import DraftMachine, DraftStep, Outcome
from speculation.draft_policy import StreamPolicy
from speculation.draft_token import DraftToken
from speculation.judges import JUDGES
from speculation.lookup import PromptLookup
from speculation.messages import Down, Draft, Finish, Open, Opened, Redraw
from speculation.model_facts import Limits
from speculation.noise import noise_index
from speculation.speedup import SpeedupEstimates
from speculation.verify_machine import Offer, PassPlan, PassRecord, Verdict, VerifyMachine
from speculation.verify_session import Pass, VerifyingSession
from tests.speculation.small_models import SIZE, Model, model, opening, plain


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
            PromptLookup(self.request.prompt, answer_cache=self._wrong())
            if self.looks_up
            else None
        )
        self.rtt_s = self.chance.choice([0.0, 0.1])
        self.speedups = SpeedupEstimates()
        self.speedups.draft.pause = self.chance.choice([0.0, 30.0])
        self.machine = DraftMachine(
            self.request,
            StreamPolicy(may_pause=self.request.fill != "never"),
            self.limits,
            JUDGES[self.request.judge].edge(self.request, uniforms(self.chance)),
            rtt_s=lambda: self.rtt_s,
            drafts=True,
            lookup=lookup,
            speedups=(lambda: self.speedups) if self.request.fill != "never" else None,
        )
        self.sent: list[bytes] = []
        """Frames on their way up."""

        self.finish: Finish | None = None
        self.redraws = 0
        self._step: DraftStep | None = None

    def _wrong(self) -> AnswerCache:
        """A cache that holds the text up to a place, and anything after it."""
        text, answer_cache = plain(self.target, self.request), AnswerCache(200)
        right = self.chance.randrange(len(text))
        anything = self.chance.choices(range(SIZE), k=20)
        answer_cache.add(self.request.prompt, [*text[:right], *anything])
        return answer_cache

    def next(self, now: float) -> None:
        busy = self._step is not None
        outcome = self.machine.next(now, busy=busy)
        assert not (busy and outcome.step)
        self._execute(outcome)

    def end_step(self, now: float) -> None:
        if self._step is not None:
            step, self._step = self._step, None
            self.machine.drafted(step, self._drafted(step), now)

    def receive(self, frame: Down) -> None:
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
        down = self.machine.ran(plan, verdicts, now, PassRecord(rows) if whole else None)
        for name, sent in down.items():
            self.served[name].was_read = self.served[name].is_read = True
            self.down[name] += map(wire.encode, sent)

    def _verdict(self, name: str, judged: Pass) -> Verdict:
        request = self.served[name].request
        context = (*request.prompt, *self.served[name].session.committed)

        def row(i: int) -> Distribution:
            return self.target((*context, *judged.draft[:i]))

        return Verdict(judged.rule.judge(row, judged.draft))


# Both drivers, joined.

NAME = "joined"


@dataclass
class Joined:
    request: Open
    target: Model
    drafter: Model
    chance: Random
    right: float = 0.5
    """How often the edge drafts like the target."""

    looks_up: bool = False
    may_fail: bool = False
    """The draft model may fail, with fill other than `never`."""

    replaced: bool = False
    """The verifier may be lost, and replaced by one that has never heard of the session."""

    others: int = 0
    """Sessions that the verifier serves besides, at most."""

    limits: Limits = field(default_factory=lambda: Limits(max_verify=4, max_ahead=6))

    def __post_init__(self) -> None:
        self.now = 0.0
        self.edge = EdgeDriver(
            self.request, self.target, self.drafter, self.chance, self.right,
            self.looks_up, self.limits,
        )  # fmt: skip
        self._arrived = 0.0
        self._opened = 0
        self._open()

    def _open(self) -> None:
        self.verifier = VerifyDriver(self.target, self.chance, self.limits)
        self.session = self.verifier.open(NAME, self.edge.machine.opening(), self.now)
        self.received = 0
        """Frames that the edge has received since the stream began."""

        self._decoder = wire.Decoder()
        self._rest = b""  # of the frame that is on its way down

    def wait(self, longest_s: float = 0.0) -> None:
        longest_s = longest_s or self.chance.choice([1e-5, 1e-3, 0.01, 0.1])
        self.now += longest_s * (1.0 - self.chance.random())

    def deliver(self, *, again: bool = False, first: bool = False) -> None:
        if not self.edge.sent:
            return
        index = 0 if first else self.chance.randrange(len(self.edge.sent))
        frame = self.edge.sent[index] if again else self.edge.sent.pop(index)
        self._arrived = self.chance.uniform(self._arrived, self.now)
        self.verifier.receive(NAME, frame, self._arrived)

    def receive(self, *, whole: bool = False) -> None:
        """Let some bytes of a frame come down."""
        down = self.verifier.down[NAME]
        if not self._rest and self.received < len(down):
            self._rest = down[self.received]
        count = len(self._rest) if whole else self.chance.randint(0, len(self._rest))
        came, self._rest = self._rest[:count], self._rest[count:]
        for message in self._decoder.feed(came):
            self.received += 1
            self.edge.receive(message)
        ours, theirs = self.edge.machine.session.committed, self.session.committed
        assert all(mine == its for mine, its in zip(ours, theirs, strict=False))

    def cut(self) -> None:
        """Break the stream down; it begins again at any frame before."""
        self.received = self.chance.randint(0, self.received)
        self._decoder, self._rest = wire.Decoder(), b""

    def replace(self) -> None:
        """Lose the verifier with all that is on its way, and go on with a fresh one."""
        if self.edge.finish:
            return
        self.edge.lost()
        if not self.edge.finish:
            self._open()

    def other(self) -> None:
        """Let another session come, draft or go."""
        names = [name for name in self.verifier.served if name != NAME]
        if len(names) < self.others and self.chance.random() < 0.3:
            self._opened += 1
            fill = self.chance.choice(["always", "auto", "never"])
            ngram_drafts = self.chance.random() < 0.5
            request = opening(
                seed=self._opened, max_tokens=30, fill=fill, ngram_drafts=ngram_drafts
            )
            self.verifier.open(str(self._opened), request, self.now)
        elif names:
            name = self.chance.choice(names)
            if self.chance.random() < 0.1:
                self.verifier.close(name)
            else:
                self._draft(name)

    def _draft(self, name: str) -> None:
        """Let an edge that knows all that is committed begin a chain."""
        served = self.verifier.served[name]
        committed = served.session.committed
        text = plain(self.target, served.request)
        assert committed == text[: len(committed)]
        tokens = text[len(committed) :][:3] if self.chance.random() < 0.5 else [0, 1]
        if tokens:
            epoch = served.session.chain.epoch + 1
            frame = wire.encode(Draft(epoch, len(committed), 0, tuple(tokens)))
            self.verifier.receive(name, frame, self._arrived)

    def _end_pass(self) -> None:
        self.wait(0.2)
        self.verifier.end(self.now)

    def _fail(self) -> None:
        if self.may_fail and self.request.fill != "never" and self.chance.random() < 0.02:
            self.edge.machine.stop_drafting()

    def _end_answer(self) -> None:
        """Let the engine forget a session whose answer has ended."""
        if self.session.finished and NAME in self.verifier.served:
            self.verifier.close(NAME)

    def disorder(self, actions: int) -> None:
        edge = self.edge
        choices = [
            lambda: edge.next(self.now), lambda: edge.next(self.now),
            lambda: edge.end_step(self.now), lambda: edge.end_step(self.now),
            self.deliver, self.deliver, lambda: self.deliver(again=True),
            self.receive, self.receive, self.receive, self.cut,
            lambda: self.verifier.begin_some(self.now), self._end_pass,
            lambda: self.verifier.read_again(), self.other, self._fail, self._end_answer,
            *([self.replace] if self.replaced else []),
        ]  # fmt: skip
        for _ in range(actions):
            if self.replaced and self.edge.finish:
                return  # what it knows may be more than its last verifier did
            self.wait()
            self.chance.choice(choices)()

    def turn(self) -> None:
        """Let everybody do their part, in order, over a good network."""
        edge, verifier = self.edge, self.verifier
        verifier.end(self.now)
        verifier.read_again()
        for _ in range(self.chance.randint(1, 4)):
            edge.next(self.now)
            self.now += 0.01
            edge.end_step(self.now)
            edge.next(self.now)
            while edge.sent:
                self.deliver(first=True)
            wait_s = verifier.begin_all(self.now)
        if wait_s < inf:
            self.now += wait_s
            verifier.begin_all(self.now)
        self.now += 0.1
        verifier.end(self.now)
        while self._rest or self.received < len(verifier.down[NAME]):
            self.receive(whole=True)

    def run(self, disorder: int) -> None:
        """Take random actions, then fair turns up to the Finish. Fails if none comes."""
        self.disorder(disorder)
        for _ in range(20 * self.request.max_tokens + 50):
            if self.edge.finish:
                return
            self.turn()
        raise AssertionError(f"deadlock after {len(self.session.committed)} tokens")


def joining(request: Open, number: int, right: float = 0.5, **more: object) -> Joined:
    """Join two ends whose models and chance have a number."""
    return Joined(request, model(number), model(number + 3), Random(number), right, **more)  # type: ignore[arg-type]
