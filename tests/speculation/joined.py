"""The two machines joined by a bad network.

Up, any frame may arrive at any time and again later: this is also what a lost message that is
sent again looks like. Down is a stream of bytes: in order, but begun anew after a cut. The
verifier serves other sessions besides, which come and go, and a fresh one may take its place.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from random import Random

from picospec.speculation import wire
from picospec.speculation.messages import Draft, Limits, Open
from tests.speculation.drivers import EdgeDriver, VerifyDriver
from tests.speculation.small_models import Model, model, opening, plain

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
            own_drafts = self.chance.random() < 0.5
            request = opening(
                seed=self._opened, max_tokens=30, fill=fill, own_drafts=own_drafts
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
