"""`separate` draws from p: 200,000 tokens through both ends, and wrong controls.

The distribution of a token depends on the one before it, draft tokens come from a q that is
wrong on purpose, a pass takes any number of them, and the head is so small that the tail often
decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from random import Random

import pytest

from picospec.speculation import separate as verifier
from picospec.speculation.messages import Reject
from picospec.speculation.separate import PendingRejection
from tests.speculation.markov import Ends, pvalue


@pytest.fixture
def head_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifier, "HEAD_TOKENS", 3)
    monkeypatch.setattr(verifier, "TAIL_SAMPLES", 1)


@pytest.mark.usefixtures("head_of_three")
def test_what_two_ends_generate_has_the_targets_distribution() -> None:
    found = pvalue([Ends(Random(i)).run() for i in range(200)])

    assert found > 1e-3, found


def test_it_has_not_when_p_is_cut_to_its_top_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = PendingRejection.message

    def top_ten(self: PendingRejection, u: Iterator[float]) -> Reject:
        reject = whole(self, u)
        return replace(reject, head=reject.head[:10], tail_mass=0.0)

    monkeypatch.setattr(PendingRejection, "message", top_ten)

    found = pvalue([Ends(Random(i)).run() for i in range(30)])

    assert found < 1e-9, found


@pytest.mark.usefixtures("head_of_three")
def test_it_keeps_the_distribution_when_verifiers_are_lost() -> None:
    ends = [Ends(Random(i), loses=0.3) for i in range(60)]

    found = pvalue([each.run() for each in ends])

    assert sum(each.lost for each in ends) > 10_000
    assert sum(each.pending for each in ends) > 1_000
    assert found > 1e-3, found


@pytest.mark.usefixtures("head_of_three")
def test_it_would_not_if_a_rejected_draft_token_were_judged_anew() -> None:
    found = pvalue([Ends(Random(i), loses=0.3, rejudges=True).run() for i in range(60)])

    assert found < 1e-9, found
