"""The verifier's machine: the pass that runs, what each session sends, what is received."""

from __future__ import annotations

from math import inf

import pytest

from picospec.speculation.judge import Judgement
from picospec.speculation.messages import Commit, Draft, RemoteProtocolError, TokenLogprob
from picospec.speculation.separate import Separate
from picospec.speculation.verify_machine import Offer, Verdict
from tests.speculation.verifiers import (
    FLAT,
    LIMITS,
    V,
    expecting,
    latency,
    machine,
    open_,
    opening,
    run,
    snapshot,
)


def test_a_pass_judges_what_the_driver_took_of_the_offer() -> None:
    verifier = machine(a="always", b="always")
    for name in ("a", "b"):
        verifier.received(name, Draft(0, 0, 0, (0, 1, 2)), arrived=0.0)

    plan = verifier.begin({"a": 2, "b": 0}, 3.0)

    drafts = {name: judged.draft for name, judged in plan.passes.items()}
    assert (plan.started, drafts) == (3.0, {"a": (0, 1), "b": ()})


def test_of_two_passes_under_way_at_most_the_first_has_draft_tokens() -> None:
    verifier = machine(a="auto", b="auto")
    verifier.received("b", Draft(0, 0, 0, (0,)), arrived=0.0)
    assert verifier.runs_on("a", 0.0)
    assert verifier.runs_on("b", 0.0)  # the pass under way makes that draft token useless

    verifier.begin({"b": 1}, 0.0)

    assert not verifier.runs_on("b", 0.0)


@pytest.mark.parametrize("drafts", [0, 2])
def test_in_separate_a_pass_gets_a_uniform_for_each_draft_token_and_one_more(
    drafts: int,
) -> None:
    verifier = machine()
    open_(verifier, "a", "separate")
    verifier.received("a", Draft(0, 0, 0, (1, 2), (7, 8)), arrived=0.0)

    judged = verifier.begin({"a": drafts}, 0.0).passes["a"]

    uniforms = tuple(n / 1000 for n in range(drafts + 1))
    assert (judged.start, judged.draft) == (0, (1, 2)[:drafts])
    assert judged.rule == Separate((7, 8)[:drafts], uniforms)


def test_a_pass_commits_and_says_how_long_the_session_waited_and_it_took() -> None:
    verifier = machine(a="always", b="always")
    plan = verifier.begin({"a": 0, "b": 0}, 2.0)
    logprobs = [TokenLogprob(-1.0)]

    first = verifier.ran(
        plan,
        {"a": Verdict(Judgement((5,), 0), logprobs), "b": Verdict(Judgement((6,), 0))},
        2.5,
        rows=2,
    )
    (second,) = run(verifier, "a", 7, now=4.0)

    assert first == {
        "a": [Commit(0, 0, (5,), 0, 0, 2.0, 0.5, tuple(logprobs))],
        "b": [Commit(0, 0, (6,), 0, 0, 2.0, 0.5)],
    }
    assert second == Commit(0, 1, (7,), 0, 0, 1.5, 1.0)


def test_the_time_in_the_queue_is_never_negative() -> None:
    verifier = machine()
    verifier.open("a", opening(), LIMITS, vocabulary_size=V, now=5.0)

    (commit,) = run(verifier, "a", 7, now=4.0)

    assert commit.queue_s == 0.0


def test_latency_is_learned_only_where_the_rows_of_the_pass_are_told() -> None:
    verifier = machine(a="always")

    run(verifier, "a", 5, now=0.0)
    assert verifier.latency.of(3) == 0.0
    run(verifier, "a", 5, now=2.0, rows=3)

    assert verifier.latency.of(3) == 1.0


def test_no_latency_is_learned_where_the_clock_did_not_move() -> None:
    verifier = machine(a="always")
    for now in (0.0, 5.0):
        plan = verifier.begin({"a": 0}, 0.0)
        verifier.ran(plan, {"a": Verdict(Judgement((5,), 0))}, now, rows=1)

    assert verifier.latency.of(1) == 5.0


def test_the_outcome_of_a_session_that_was_closed_is_dropped() -> None:
    verifier = machine(a="always", b="always")
    plan = verifier.begin({"a": 0, "b": 0}, 0.0)
    verifier.close("a")
    verifier.close("a")

    verdict = Verdict(Judgement((5,), 0))
    down = verifier.ran(plan, {"a": verdict, "b": verdict}, 1.0, rows=2)

    assert list(down) == ["b"]
    with pytest.raises(KeyError):
        verifier.session("a")


def test_nothing_changes_when_a_message_is_rejected() -> None:
    verifier = expecting("a")
    before = snapshot(verifier)

    for at, tokens in ((0, ()), (1, (9,)), (0, (1,) * 9), (3, (V,))):
        with pytest.raises(RemoteProtocolError):
            verifier.received("a", Draft(0, at, at, tokens), arrived=1.2)

    assert snapshot(verifier) == before


def test_arrivals_are_noted_with_the_time_at_which_they_came() -> None:
    verifier = machine(latency(*FLAT), a="always")
    for at, token in enumerate((5, 6)):
        run(verifier, "a", token, now=float(at) - 1.0)
    arrivals = verifier._sessions["a"].arrivals

    verifier.received("a", Draft(0, 0, 0, (5,)), arrived=2.0)
    verifier.received("a", Draft(0, 0, 0, (5,)), arrived=2.5)  # it has come before
    verifier.received("a", Draft(0, 1, 1, (7,)), arrived=3.0)  # wrong: known from the second
    verifier.received("a", Draft(1, 2, 0, (8,)), arrived=4.0)

    assert arrivals.interval_s == pytest.approx(1.0)
    assert arrivals.first_s == pytest.approx(4.0 - 1.0)

    verifier.received("a", Draft(1, 3, 1, (9,), pauses=True), arrived=5.0)
    assert arrivals.due_s(5.0) == inf


def test_an_edge_that_pauses_knew_the_text_before_its_chain() -> None:
    verifier = machine(latency(*FLAT), a="always")
    for at in range(3):
        run(verifier, "a", 5, now=float(at) - 1.0)
    arrivals = verifier._sessions["a"].arrivals
    arrivals.first_s = 10.0

    verifier.received("a", Draft(0, 2, 1, (5,), pauses=True), arrived=2.5)  # it knew of one

    assert arrivals.due_s(2.5) == pytest.approx(1.0 + 10.0 - 2.5)


def test_a_chain_that_a_pass_finds_wrong_is_noted() -> None:
    verifier = expecting("a")

    run(verifier, "a", 5, now=3.0)

    assert verifier.session("a").chain.broken
    assert verifier.offer(["a"], 4.0, rows=9) == Offer({"a": ()}, 0.0)  # none is expected yet
    verifier.received("a", Draft(1, 1, 0, (7,)), arrived=4.7)
    assert verifier._sessions["a"].arrivals.first_s == pytest.approx(0.7)
