"""A pass judges the edge's chain or the tokens of the target's own head: what earns more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picospec.speculation.judge import Judgement
from picospec.speculation.messages import Commit, Draft
from picospec.speculation.verify_machine import Head, Offer, Verdict, VerifyMachine
from tests.speculation.verifiers import FLAT, expecting, latency, machine, open_


def passed(verifier: VerifyMachine, tokens: int, accepted: int) -> Commit:
    """Run a pass over tokens of the head of session a."""
    plan = verifier.begin({"a": 0}, 0.0, {"a": tokens})
    judgement = Judgement(tuple(range(1, accepted + 2)), accepted)
    (commit, *_) = verifier.ran(plan, {"a": Verdict(judgement)}, 1.0, rows=None)["a"]
    assert isinstance(commit, Commit)
    return commit


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 4)), max_size=12),
    st.integers(1, 4),
    st.integers(0, 2),
)
def test_whichever_is_expected_to_have_more_accepted(
    passes: list[tuple[int, int]], proposed: int, drafted: int
) -> None:
    verifier = machine(latency(*FLAT), a="auto")
    head = Head(proposed)
    for tokens, right in passes:
        head.judged(tokens, min(tokens, right))
    verifier._sessions["a"].head = head
    if drafted:
        verifier.received("a", Draft(0, 0, 0, tuple(range(drafted))), arrived=0.0)
    session = verifier.session("a")

    offer = verifier.offer(["a"], 9.0, rows=9)

    gains = sum(session.gains[: len(session.plan(9))])
    uses_head = head.expected(session.head_room) >= gains
    assert bool(offer.heads) is uses_head
    assert offer.start == {"a": () if uses_head else session.plan(9)}


def test_a_head_that_is_mostly_wrong_lets_a_session_wait_for_its_edge() -> None:
    verifier = expecting("a")
    verifier.proposed("a", 3)

    assert verifier.wait_s(["a"], 1.5) == 0.0

    verifier._sessions["a"].head.judged(64, 0)
    for _ in range(64):
        verifier._sessions["a"].head.judged(1, 0)

    assert verifier.wait_s(["a"], 1.5) > 0.0


def test_accepted_tokens_of_the_head_are_the_verifiers_own() -> None:
    verifier = machine(latency(*FLAT), a="auto")
    verifier.proposed("a", 3)

    commit = passed(verifier, 3, 2)

    assert (commit.accepted, commit.own, commit.tokens) == (0, 2, (1, 2, 3))
    totals = verifier.session("a").totals
    assert (totals.judged, totals.accepted, totals.own, totals.filled) == (3, 2, 2, 0)
    assert verifier.offer(["a"], 9.0, rows=9) == Offer({"a": ()}, 0.0), "it proposed once"


@pytest.mark.parametrize(("judge", "fill"), [("separate", "auto"), ("coupled", "never")])
def test_who_judges_every_draft_token_takes_none_of_the_head(judge: str, fill: str) -> None:
    verifier = machine(latency(*FLAT))
    open_(verifier, "a", judge, fill=fill)
    verifier.proposed("a", 3)

    assert verifier.session("a").head_room == 0


def test_tokens_of_heads_are_rows_of_the_pass() -> None:
    verifier = machine(latency(*FLAT), a="auto", b="auto", c="auto")
    for name in ("a", "b", "c"):
        verifier.proposed(name, 5)

    offer = verifier.offer(["a", "b", "c"], 9.0, rows=10)

    assert offer.heads == {"a": 5, "b": 2}
    assert list(offer.start) == ["a", "b", "c"]
