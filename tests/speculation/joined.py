"""Two session machines joined by a bad network: late, twice, out of order, cut and resumed.

Up, any message may be delivered at any time and again later: this is also what a lost message
that is sent again looks like. Down is a stream: in order, but begun anew after a cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

import numpy as np

from speculation.drafting.session import DraftingSession
from speculation.protocol import wire
from speculation.protocol.messages import (
    Commit,
    Down,
    Finish,
    Limits,
    Open,
    Pushed,
    Reject,
    Sampling,
    TokenId,
)
from speculation.sampling.distributions import Distribution, quantise
from speculation.sampling.draft_token import DraftToken
from speculation.sampling.judging import Judgement, judge_coupled, judge_separate
from speculation.sampling.noise import place
from speculation.verifying.session import VerifyingSession

Model = Callable[[tuple[TokenId, ...]], Distribution]
"""Context to distribution."""

PROMPT = (3, 1, 2)


def model(number: int, size: int = 7) -> Model:
    """A model whose distribution depends on the last two tokens."""
    table = np.random.default_rng(number).dirichlet([0.5] * size, (size, size))

    def distribution(context: tuple[TokenId, ...]) -> Distribution:
        p = table[context[-2], context[-1]]
        return Distribution(np.flatnonzero(p), p[p > 0.0])

    return distribution


def uniforms(chance: Random) -> Iterator[float]:
    return iter(chance.random, 2.0)


def plain(target: Model, request: Open) -> list[TokenId]:
    """The text that the target alone says for this seed."""
    said: list[TokenId] = []
    while len(said) < request.max_tokens and not (said and said[-1] in request.stop_tokens):
        at = place(len(request.prompt), len(said))
        said.append(target((*request.prompt, *said)).coupled(request.seed, at))
    return said


@dataclass
class Joined:
    request: Open
    target: Model
    drafter: Model
    chance: Random
    right: float = 0.5
    """How often the edge drafts like the target."""

    limits: Limits = field(default_factory=lambda: Limits(max_verify=4, max_ahead=6))
    vocabulary_size: int = 7

    def __post_init__(self) -> None:
        request = self.request
        self.edge = DraftingSession(
            max_tokens=request.max_tokens, stop_tokens=request.stop_tokens
        )
        self.verifier = VerifyingSession(
            request, self.limits, vocabulary_size=self.vocabulary_size
        )
        self.up: list[Pushed] = []
        self.said: list[Down] = []
        self.heard = 0
        self.finish: Finish | None = None
        self.redraws = 0

        self._judgement: Judgement | None = None
        self._u = uniforms(self.chance)

    # --- the edge

    def guess(self) -> None:
        if not self.edge.may_extend or len(self.edge.chain) >= self.limits.max_ahead:
            return
        context = (*self.request.prompt, *self.edge.guessed)
        distribution = (self.target if self.chance.random() < self.right else self.drafter)(
            context
        )
        if self.request.judge == "separate":
            q = quantise(distribution)
            self.edge.extend(DraftToken(q.at(self.chance.random()), 0.8, q))
            return
        at = place(len(PROMPT), len(self.edge.guessed))
        token = distribution.coupled(self.request.seed, at)
        self.edge.extend(DraftToken(token, 0.8))

    def flush(self) -> None:
        if draft := self.edge.flush():
            self.up.append(draft)

    def hear(self) -> None:
        if self.heard == len(self.said):
            return
        message, self.heard = self.said[self.heard], self.heard + 1
        match message:
            case Commit():
                self.edge.receive(message)
            case Reject():
                if redraw := self.edge.rejected(message, self._u):
                    self.redraws += 1
                    self.up.append(redraw)
                self.flush()
            case Finish():
                self.finish = message
        assert self.edge.committed == self.verifier.committed[: len(self.edge.committed)]

    def cut(self) -> None:
        """The stream breaks, and begins again where the edge likes."""
        self.heard = self.chance.randint(0, self.heard)

    # --- the network

    def deliver(self, *, again: bool = False, first: bool = False) -> None:
        if not self.up:
            return
        index = 0 if first else self.chance.randrange(len(self.up))
        message = self.up[index] if again else self.up.pop(index)
        (arrived,) = wire.Decoder().feed(wire.encode(message))
        self.said += self.verifier.receive(arrived, self._u)
        assert len(self.verifier.chain._drafts) <= self.limits.max_ahead

    # --- the verifier

    def begin(self) -> None:
        verifier = self.verifier
        if self._judgement or verifier.finished or verifier.rejection:
            return
        if self.request.fill == "never" and not verifier.pending:
            return
        judged = verifier.begin(self.chance.randint(0, 6))
        context = (*self.request.prompt, *verifier.committed)

        def row(i: int) -> Distribution:
            return self.target((*context, *judged.draft[:i]))

        if self.request.judge == "separate":
            self._judgement = judge_separate(row, judged.draft, judged.q, self._u)
        else:
            at = place(len(PROMPT), judged.start)
            self._judgement = judge_coupled(row, judged.draft, self.request.seed, at)

    def resolve(self) -> None:
        if self._judgement:
            judgement, self._judgement = self._judgement, None
            self.said += self.verifier.resolve(judgement, u=self._u)

    # --- all of it

    def turn(self) -> None:
        """Everybody does their part, in order, over a good network."""
        self.guess()
        self.flush()
        while self.up:
            self.deliver(first=True)
        self.begin()
        self.resolve()
        while self.heard < len(self.said):
            self.hear()

    def run(self, disorder: int) -> None:
        """Take random steps, then fair ones up to the Finish. Fails if none comes."""
        steps = [
            self.guess, self.guess, self.guess, self.flush, self.hear,
            self.hear, self.begin, self.resolve, self.resolve, self.deliver, self.deliver,
            self.cut, lambda: self.deliver(again=True),
        ]  # fmt: skip
        for _ in range(disorder):
            self.chance.choice(steps)()
        for _ in range(20 * self.request.max_tokens + len(self.up) + len(self.said) + 50):
            self.turn()
            if self.finish:
                return
        raise AssertionError(f"deadlock after {len(self.edge.committed)} tokens")


def opening(**changes: object) -> Open:
    defaults = {"seed": 5, "max_tokens": 12, "stop_tokens": (6,)}
    return Open("m", "v", PROMPT, Sampling(), **{**defaults, **changes})  # type: ignore[arg-type]
