"""Models whose distributions depend on the last token, two ends with these, and a test of their
texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random

import numpy as np
from scipy import stats

from picospec.speculation.distributions import Distribution, DraftToken, quantise
from picospec.speculation.draft_machine import DraftMachine
from picospec.speculation.drafting import DraftingSession, StreamPolicy
from picospec.speculation.messages import Down, Limits, Open, Sampling, TokenId
from picospec.speculation.separate import SeparateEdge
from picospec.speculation.verify_session import VerifyingSession

SIZE = 14


def table(number: int, evenness: float) -> list[Distribution]:
    """The distribution after each token."""
    rows = np.random.default_rng(number).dirichlet([evenness] * SIZE, SIZE)
    return [Distribution(np.arange(SIZE), row) for row in rows]


TARGET = table(1, 2.0)
DRAFTER = [quantise(distribution) for distribution in table(2, 1.0)]


def draft(edge: DraftingSession, chance: Random) -> None:
    """Extend the chain by up to three draft tokens."""
    last = edge.context[-1] if edge.chain or edge.committed else 0
    for _ in range(chance.randrange(4)):
        if edge.may_extend:
            q = DRAFTER[last]
            last = q.at(chance.random())
            edge.extend(DraftToken(last, 0.5, q))


@dataclass
class Ends:
    """The edge, and one verifier after another, each of which is lost after a few messages. A
    pass takes up to three draft tokens, and `separate` judges them."""

    chance: Random
    loses: float = 0.0
    """How often a verifier is lost after a message."""

    rejudges: bool = False
    """A draft token that was rejected elsewhere is judged anew, as if it had not been."""

    tokens: int = 1000
    lost: int = field(default=0, init=False)
    pending: int = field(default=0, init=False)
    """Verifiers that were lost after a rejection that the edge had yet to answer."""

    def __post_init__(self) -> None:
        request = Open("", "", (0,), Sampling(), 0, self.tokens, (), judge="separate")
        self.u: Iterator[float] = iter(self.chance.random, 2.0)
        self.half = SeparateEdge(request, self.u)
        self.machine = DraftMachine(
            request, StreamPolicy(), Limits(), self.half, rtt_s=lambda: 0.0
        )
        self._open()

    def _open(self) -> None:
        opening = self.machine.opening()
        self.pending += opening.rejected
        if self.rejudges:
            opening = replace(opening, rejected=False)
            self.half._in_tail = False
        self.verifier = VerifyingSession(opening, Limits(), vocabulary_size=SIZE, u=self.u)

    def run(self) -> list[TokenId]:
        edge = self.machine.session
        while not edge.finished:
            draft(edge, self.chance)
            if sent := edge.flush():
                self._deliver(self.verifier.receive(sent))
            if self.verifier.may_begin:
                self._deliver(self._pass())
        return edge.committed

    def _pass(self) -> list[Down]:
        judged = self.verifier.begin(len(self.verifier.plan(3)))
        before = [(0, *self.verifier.committed)[-1], *judged.draft]
        return self.verifier.resolve(
            judged.rule.judge(lambda i: TARGET[before[i]], judged.draft)
        )

    def _deliver(self, down: list[Down]) -> None:
        """Let the edge receive, and the verifier what the edge answers; or lose the rest."""
        for message in down:
            for answer in self.machine.received(message).send:
                if self._lose():
                    return
                self._deliver(self.verifier.receive(answer))
            if self._lose():
                return

    def _lose(self) -> bool:
        if self.chance.random() >= self.loses:
            return False
        self.lost += 1
        self.machine.lost()
        self._open()
        return True


def pvalue(texts: Sequence[list[int]]) -> float:
    """Test the counts of each token after each other token against the target."""
    counts = np.zeros((SIZE, SIZE))
    for text in texts:
        np.add.at(counts, ([0, *text[:-1]], text), 1)
    expected = counts.sum(1, keepdims=True) * np.array(
        [distribution.p for distribution in TARGET]
    )
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float(stats.chi2.sf(statistic, SIZE * (SIZE - 1)))
