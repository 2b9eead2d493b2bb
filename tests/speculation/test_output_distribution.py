"""`separate` draws from p: 200,000 tokens through both ends, and a wrong control.

The distribution of a token depends on the one before it, draft tokens come from a q that is
wrong on purpose, a pass takes any number of them, and the head is so small that the tail often
decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from scipy import stats

from speculation.drafting.session import DraftingSession
from speculation.protocol.messages import Commit, Down, Limits, Open, Reject, Sampling
from speculation.sampling import distributions as distributions
from speculation.sampling.distributions import Distribution, quantise
from speculation.sampling.draft_token import DraftToken
from speculation.sampling.judging import Rejection, judge_separate
from speculation.verifying import session as verifying
from speculation.verifying.session import VerifyingSession

SIZE = 14
TOKENS = 200_000
SESSION_TOKENS = 1000


def table(number: int, evenness: float) -> list[Distribution]:
    """The distribution after each token."""
    rows = np.random.default_rng(number).dirichlet([evenness] * SIZE, SIZE)
    return [Distribution(np.arange(SIZE), row) for row in rows]


TARGET = table(1, 2.0)
DRAFTER = [quantise(distribution) for distribution in table(2, 1.0)]


def session(chance: Random) -> list[int]:
    """Run both ends over SESSION_TOKENS tokens; up to three draft tokens a pass."""
    request = Open("", "", (0,), Sampling(), 0, SESSION_TOKENS, (), judge="separate")
    verifier = VerifyingSession(request, Limits(), vocabulary_size=SIZE)
    edge = DraftingSession(max_tokens=SESSION_TOKENS, stop_tokens=())
    u = iter(chance.random, 2.0)
    while not verifier.finished:
        draft(edge, chance)
        if sent := edge.flush():
            receive(edge, verifier, verifier.receive(sent, u), u)
        judged = verifier.begin(len(verifier.plan(3).draft))
        before = [verifier.committed[-1] if verifier.committed else 0, *judged.draft]
        judgement = judge_separate(
            lambda i, before=before: TARGET[before[i]], judged.draft, judged.q, u
        )
        receive(edge, verifier, verifier.resolve(judgement, u=u), u)
    return edge.committed


def draft(edge: DraftingSession, chance: Random) -> None:
    last = edge.context[-1] if edge.chain or edge.committed else 0
    for _ in range(chance.randrange(4)):
        if edge.may_extend:
            q = DRAFTER[last]
            last = q.at(chance.random())
            edge.extend(DraftToken(last, 0.5, q))


def receive(
    edge: DraftingSession, verifier: VerifyingSession, down: Sequence[Down], u: Iterator[float]
) -> None:
    """Let the edge receive, and the verifier what the edge answers, until all is answered."""
    for message in down:
        match message:
            case Commit():
                edge.receive(message)
            case Reject():
                answer = edge.rejected(message, u) or edge.flush()
                assert answer
                receive(edge, verifier, verifier.receive(answer, u), u)


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


@pytest.fixture
def head_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributions, "HEAD_TOKENS", 3)
    monkeypatch.setattr(verifying, "TAIL_SAMPLES", 1)


@pytest.mark.usefixtures("head_of_three")
def test_what_two_ends_generate_has_the_targets_distribution() -> None:
    texts = [session(Random(i)) for i in range(TOKENS // SESSION_TOKENS)]

    found = pvalue(texts)

    assert found > 1e-3, found


def test_it_has_not_when_p_is_cut_to_its_top_ten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = Rejection.message

    def top_ten(self: Rejection, epoch: int, position: int, u: Sequence[float]) -> Reject:
        reject = whole(self, epoch, position, ())
        return replace(reject, head=reject.head[:10], tail_mass=0.0)

    monkeypatch.setattr(Rejection, "message", top_ten)
    texts = [session(Random(i)) for i in range(30)]

    found = pvalue(texts)

    assert found < 1e-9, found
