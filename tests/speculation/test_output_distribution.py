"""`separate` draws from p: 200,000 tokens through both ends, and a wrong control.

The distribution of a token depends on the one before it, draft tokens come from a q that is
wrong on purpose, a pass takes any number of them, and the head is so small that the tail often
decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random

import pytest
from picospec.speculation.sampling.judging import Rejection, judge_separate

from picospec.speculation.drafting.session import DraftingSession
from picospec.speculation.protocol.messages import Commit, Down, Limits, Open, Reject, Sampling
from picospec.speculation.sampling import distributions as distributions
from picospec.speculation.verifying import session as verifying
from picospec.speculation.verifying.session import VerifyingSession
from tests.speculation.markov import SIZE, TARGET, draft, pvalue

TOKENS = 200_000
SESSION_TOKENS = 1000


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
