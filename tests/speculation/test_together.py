"""No delivery order, no draft quality and no fault changes the text, or stops it."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speculation import separate as verifier
from speculation.distributions import Distribution
from speculation.draft_machine import Outcome
from speculation.draft_token import DraftToken
from speculation.errors import LocalProtocolError, RemoteProtocolError
from speculation.messages import Commit, Draft, Finish, Recovered, Redraw, Reject, Totals
from speculation.model_facts import Limits, TokenId
from speculation.verify_session import VerifyingSession
from tests.speculation.edges import LIMITS, ONLY_TAIL, Q, machine
from tests.speculation.edges import STOP as REOPENING_STOP
from tests.speculation.joined import Joined, joining
from tests.speculation.small_models import STOP, Model, model, opening, plain
from tests.speculation.verifiers import session

CASES: dict[str, st.SearchStrategy[Any]] = {
    "number": st.integers(0, 2**32),
    "right": st.sampled_from([0.0, 0.3, 0.7, 0.95, 1.0]),
    "disorder": st.integers(0, 300),
    "max_tokens": st.integers(1, 40),
    "fill": st.sampled_from(["always", "auto", "never"]),
    "others": st.sampled_from([0, 0, 1, 3]),
    "may_fail": st.booleans(),
}


@given(**CASES, seed=st.integers(0, 2**63 - 1), looks_up=st.booleans())
@settings(max_examples=150)
def test_coupled_generates_what_the_target_alone_generates(
    seed: int, disorder: int, max_tokens: int, fill: str, **ends: object
) -> None:
    request = opening(seed=seed, max_tokens=max_tokens, fill=fill)
    joined = joining(request, **ends)  # type: ignore[arg-type]

    joined.run(disorder)

    text = plain(joined.target, request)
    assert joined.edge.machine.session.committed == joined.session.committed == text
    assert joined.edge.finish
    assert joined.edge.finish.reason == ("stop" if text[-1] == STOP else "length")
    assert joined.edge.finish.totals == joined.session.totals


@given(**CASES)
@settings(max_examples=150)
def test_separate_ends_with_one_text_at_both_ends(
    disorder: int, max_tokens: int, fill: str, **ends: object
) -> None:
    request = opening(judge="separate", max_tokens=max_tokens, fill=fill)
    joined = joining(request, **ends)  # type: ignore[arg-type]

    joined.run(disorder)

    text = joined.edge.machine.session.committed
    assert text == joined.session.committed
    assert len(text) == max_tokens or text[-1] == STOP
    assert STOP not in text[:-1]
    assert joined.edge.finish
    assert joined.edge.finish.reason == ("stop" if text[-1] == STOP else "length")


def run_with_small_head(joined: Joined, disorder: int) -> None:
    """Let a Reject name the likeliest token only, and one sample of the others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verifier, "HEAD_TOKENS", 1)
        patch.setattr(verifier, "TAIL_SAMPLES", 1)
        patch.setattr(verifier, "MAX_REDRAWS", 10**6)
        joined.run(disorder)


@given(st.integers(0, 2**32), st.integers(0, 200))
@settings(max_examples=100)
def test_a_tail_that_runs_out_is_drawn_again_until_it_does_not(
    number: int, disorder: int
) -> None:
    request = opening(judge="separate", max_tokens=25, stop_tokens=(), fill="never")
    joined = joining(request, number, right=0.0)

    run_with_small_head(joined, disorder)

    assert joined.edge.machine.session.committed == joined.session.committed
    assert len(joined.session.committed) == 25


def test_redraws_do_happen_when_the_head_is_small() -> None:
    request = opening(judge="separate", max_tokens=300, stop_tokens=(), fill="never")
    joined = joining(request, 1, right=0.0)

    run_with_small_head(joined, 0)

    assert joined.edge.redraws > 3


@pytest.mark.parametrize("looks_up", [True, False])
def test_draft_tokens_that_are_always_right_save_passes(looks_up: bool) -> None:
    request = opening(max_tokens=60, stop_tokens=())
    limits = Limits(max_verify=6, max_ahead=20)
    joined = joining(request, 3, right=1.0, looks_up=looks_up, limits=limits)

    joined.run(0)

    totals = joined.session.totals
    assert totals.passes < 45
    assert joined.edge.finish
    assert joined.edge.finish.totals == totals
    if not looks_up:  # what is looked up may be wrong
        assert totals.passes + totals.accepted == 60
        assert totals.judged == totals.accepted


@given(st.integers(0, 2**32))
@settings(max_examples=50)
def test_a_session_without_any_draft_is_the_target_alone(number: int) -> None:
    request = opening(max_tokens=20)
    joined = joining(request, number)
    joined.edge.machine.stop_drafting()

    joined.run(0)

    assert joined.session.committed == plain(joined.target, request)
    assert joined.session.totals.passes == joined.session.totals.filled
    assert joined.session.totals.filled == len(joined.session.committed)


# Wherever its verifier is lost, an answer goes on at another one as if nothing had been.

POINTS = 120
"""Actions after which the verifier is lost; an answer of 14 tokens is over after fewer."""


def greedy(of: Model) -> Model:
    """The model at temperature 0."""

    def distribution(context: tuple[TokenId, ...]) -> Distribution:
        p = of(context)
        return Distribution(p.tokens[[np.argmax(p.p)]], np.ones(1))

    return distribution


@pytest.mark.parametrize("target", [model(4), greedy(model(4))], ids=["T=1", "T=0"])
@pytest.mark.parametrize("number", range(6))
def test_coupled_generates_the_same_text_wherever_the_verifier_is_lost(
    target: Model, number: int
) -> None:
    request = opening(seed=number, max_tokens=14, stop_tokens=())
    text = plain(target, request)

    for point in range(POINTS):
        joined = Joined(request, target, model(7), Random(number), 0.7, looks_up=number > 3)
        joined.disorder(point)
        joined.replace()
        joined.run(0)

        assert joined.edge.machine.session.committed == text


@given(
    number=st.integers(0, 2**32),
    right=st.sampled_from([0.0, 0.5, 0.95]),
    disorder=st.integers(0, 400),
    judge=st.sampled_from(["coupled", "separate"]),
    fill=st.sampled_from(["always", "auto", "never"]),
    max_tokens=st.integers(1, 40),
)
@settings(max_examples=150)
def test_verifiers_may_be_lost_again_and_again(
    number: int, right: float, disorder: int, judge: str, fill: str, max_tokens: int
) -> None:
    request = opening(seed=number, judge=judge, fill=fill, max_tokens=max_tokens)
    joined = joining(request, number, right, replaced=True, others=2)

    joined.run(disorder)

    text, finish = joined.edge.machine.session.committed, joined.edge.finish
    assert finish
    assert finish.reason == ("stop" if text[-1] in request.stop_tokens else "length")
    assert finish.totals.passes >= 1
    assert len(text) <= max_tokens
    if judge == "coupled":
        assert text == plain(joined.target, request)


def test_the_whole_chain_is_sent_again_after_the_committed_text() -> None:
    drafting = machine(drafts=False)
    drafting.received(Commit(0, 0, (7, 8)))
    for token in (3, 4, 5):
        drafting.session.extend(DraftToken(token, 0.9))
    drafting.next(0.0, busy=False)

    drafting.lost()

    assert drafting.opening().committed == (7, 8)
    assert drafting.next(0.0, busy=False).send == (Draft(0, 2, 0, (3, 4, 5), pauses=True),)


def test_a_rejection_that_awaits_samples_moves_with_its_draft_token() -> None:
    drafting = machine(judge="separate", drafts=False)
    for token in (2, 1):
        drafting.session.extend(DraftToken(token, 0.9, Q))
    (draft,) = drafting.next(0.0, busy=False).send
    only_tail = replace(ONLY_TAIL, position=1)

    outcome = drafting.received(only_tail)
    drafting.lost()
    verifier = VerifyingSession(
        drafting.opening(), LIMITS, vocabulary_size=7, u=iter([0.0] * 20)
    )

    assert outcome == Outcome(send=(Redraw(0, 1, 1),), commit=Commit(0, 0, (2,), 1))
    assert verifier.request.committed == (2,)
    assert not verifier.may_begin
    (draft,) = drafting.next(0.0, busy=False).send
    verifier.receive(draft)
    judged = verifier.begin(len(verifier.plan(0)))
    p = Distribution(np.array([1, 3]), np.array([0.9, 0.1]))
    (reject,) = verifier.resolve(judged.rule.judge(lambda _: p, judged.draft))
    assert reject == Reject(0, 1, 0, ((1, ANY), (3, ANY)), 0.0)
    fresh = replace(only_tail, tail=((3, 0.1),))
    assert drafting.received(fresh).send == (Recovered(1, 1, 3),)
    (commit,) = verifier.receive(Recovered(1, 1, 3))
    assert commit == Commit(0, 1, (3,))
    assert not drafting.opening().rejected


def test_no_pass_of_a_draft_token_that_was_rejected_elsewhere_begins_without_it() -> None:
    verifier = session("separate", rejected=True)

    with pytest.raises(LocalProtocolError):
        verifier.begin(0)


@pytest.mark.parametrize(
    ("tokens", "reason"), [((7, REOPENING_STOP), "stop"), ((1, 2, 3), "length"), ((1, 2), None)]
)
def test_a_complete_text_needs_no_other_verifier(
    tokens: tuple[TokenId, ...], reason: str | None
) -> None:
    drafting = machine(max_tokens=3)
    drafting.received(Commit(0, 0, tokens, accepted=1))

    finish = drafting.lost()

    expected = Finish(reason, Totals(1, 1, 1, 0)) if reason else None  # type: ignore[arg-type]
    assert finish == expected


def test_a_finish_counts_what_lost_sessions_have_committed() -> None:
    drafting = machine()
    drafting.received(Commit(0, 0, (1, 2), accepted=1))
    drafting.received(Commit(0, 2, (3,)))
    drafting.lost()
    drafting.opening()
    drafting.received(Commit(0, 3, (4,)))

    finish = drafting.received(Finish("length", Totals(5, 9, 4, 2))).finish

    assert finish == Finish("length", Totals(7, 10, 5, 3))


def test_a_verifier_that_goes_on_takes_no_token_before_its_text() -> None:
    verifier = session(committed=(3, 1), max_tokens=4)

    assert verifier.committed == [3, 1]
    assert verifier.chain.reach == 2
    verifier.receive(Draft(0, 1, 0, (1, 5)))
    assert verifier.plan(9) == (5,)
    with pytest.raises(RemoteProtocolError, match="gap"):
        verifier.receive(Draft(0, 3, 0, (1,)))
