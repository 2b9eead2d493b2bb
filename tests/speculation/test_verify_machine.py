"""The verifier's machine: when passes start, what they judge, and what each session sends."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speculation.protocol.errors import LocalProtocolError, RemoteProtocolError
from speculation.protocol.messages import (
    Commit,
    Down,
    Draft,
    Finish,
    Redraw,
    Reject,
    TokenLogprob,
)
from speculation.sampling.distributions import Q_SCALE
from speculation.sampling.judging import TAIL_SAMPLES, Judgement, Rejection
from speculation.verifying.latency import PassLatency
from speculation.verifying.machine import MIN_HOLD_S, Offer, Verdict, VerifyMachine
from tests.speculation.latencies import latency
from tests.speculation.verify_sessions import LIMITS, P, V, opening, state

FLAT = [10.0] * 9
"""T(1) to T(9): passes are slow, and more rows cost nothing."""


def counting() -> Iterator[float]:
    """Uniforms that tell how many were taken before."""
    return (n / 1000 for n in count())


def machine(learned: PassLatency | None = None, **fills: str) -> VerifyMachine:
    """A machine with sessions of these fills, opened at 0 s."""
    verifier = VerifyMachine(counting(), learned)
    for name, fill in fills.items():
        open_(verifier, name, fill=fill)
    return verifier


def open_(
    verifier: VerifyMachine, name: str, judge: str = "coupled", **changes: object
) -> None:
    request = opening(judge, **changes)
    verifier.open(name, request, LIMITS, vocabulary_size=V, now=0.0)


def run(
    verifier: VerifyMachine, name: str, *tokens: int, now: float, rows: int | None = None
) -> list[Down]:
    """Run a pass of one second that generates these tokens; return what the session sends."""
    drafts = len(verifier.offer([name], now, rows=100, without_drafts=[name]).start[name])
    plan = verifier.begin({name: drafts}, now)
    return verifier.ran(plan, {name: Verdict(Judgement(tokens, 0))}, now + 1.0, rows=rows)[name]


def snapshot(verifier: VerifyMachine) -> str:
    sessions = [
        (name, state(held.session), held.arrivals, held.passed_at)
        for name, held in verifier._sessions.items()
    ]
    sizes = {rows: list(size._recent_s) for rows, size in verifier.latency._sizes.items()}
    return repr((sessions, sizes))


def expecting(*names: str, fill: str = "auto") -> VerifyMachine:
    """Sessions with two draft tokens each, that sent one at 0 s and one at 1 s; the next is due
    at 2 s, and worth waiting for up to 4 s."""
    verifier = machine(latency(*FLAT), **dict.fromkeys(names, fill))
    for name in names:
        verifier.received(name, Draft(0, 0, 0, (0,)), arrived=0.0)
        verifier.received(name, Draft(0, 1, 1, (1,)), arrived=1.0)
    return verifier


# --- when a pass starts


def test_nothing_is_offered_without_a_session_that_is_ready() -> None:
    assert machine().offer([], 0.0, rows=9) == Offer({}, inf, [])
    assert machine(a="always").offer([], 0.0, rows=9) == Offer({}, inf, [])


def test_a_pass_starts_at_once_where_no_draft_token_is_expected() -> None:
    assert machine(a="auto").offer(["a"], 0.0, rows=9) == Offer({"a": ()}, 0.0)


def test_a_session_is_held_for_draft_tokens_that_are_due() -> None:
    assert expecting("a").offer(["a"], 1.5, rows=9) == Offer({}, 2.5, ["a"])


@pytest.mark.parametrize(
    ("before_s", "held"), [(2 * MIN_HOLD_S, True), (MIN_HOLD_S / 2, False)]
)
def test_what_rounding_leaves_of_a_hold_is_none(before_s: float, held: bool) -> None:
    offer = expecting("a").offer(["a"], 4.0 - before_s, rows=9)

    assert (not offer.start) is held
    assert offer.wait_s == (pytest.approx(before_s) if held else 0.0)


def test_the_pass_starts_when_one_session_need_wait_no_longer_and_takes_the_others() -> None:
    verifier = expecting("held", "late")
    open_(verifier, "always", fill="always")
    open_(verifier, "never", fill="never")

    assert verifier.offer(["held", "never", "always"], 1.5, rows=20).start == {
        "held": (0, 1),
        "always": (),
    }
    assert verifier.offer(["held", "late", "never"], 1.5, rows=20) == Offer(
        {}, 2.5, ["held", "late"]
    )


def test_the_wait_is_the_shortest_hold() -> None:
    verifier = expecting("sooner", "later")
    verifier.received("later", Draft(0, 2, 2, (2,)), arrived=1.4)

    sooner, later = (verifier.wait_s([name], 1.5) for name in ("sooner", "later"))

    assert 0.0 < sooner != later > 0.0
    assert verifier.wait_s(["sooner", "later"], 1.5) == min(sooner, later)
    assert verifier.offer(["sooner", "later"], 1.5, rows=9).wait_s == min(sooner, later)


def test_a_session_that_must_have_a_draft_token_waits_for_a_message_however_long() -> None:
    verifier = machine(a="never")
    assert verifier.offer(["a"], 0.0, rows=9) == Offer({}, inf, [])

    verifier.received("a", Draft(0, 0, 0, (0,)), arrived=1.0)

    assert verifier.offer(["a"], 1.0, rows=9) == Offer({"a": (0,)}, 0.0)


def test_sessions_that_have_ended_or_await_a_recovered_token_are_not_taken() -> None:
    verifier = machine(a="auto")
    open_(verifier, "finished", max_tokens=1)
    open_(verifier, "rejecting", "separate")
    run(verifier, "finished", 5, now=0.0)
    verifier.session("rejecting").rejection = Rejection(1, P)

    assert verifier.offer(["finished", "rejecting"], 2.0, rows=9) == Offer({}, inf, [])
    assert verifier.offer(["finished", "rejecting", "a"], 2.0, rows=9).start == {"a": ()}


def test_sessions_without_drafts_start_now_and_take_the_held_ones_along() -> None:
    verifier = expecting("held")
    open_(verifier, "new", fill="never")

    offer = verifier.offer(["held"], 1.5, rows=9, without_drafts=["new"])

    assert offer == Offer({"new": (), "held": (0, 1)}, 0.0)


def test_an_offer_changes_nothing() -> None:
    verifier = expecting("a", "b")
    before = snapshot(verifier)

    for now in (1.5, 9.0):
        verifier.offer(["a", "b"], now, rows=9)
        verifier.wait_s(["a", "b"], now)

    assert snapshot(verifier) == before


# --- what it judges


@given(
    st.lists(
        st.tuples(st.sampled_from(["always", "auto", "never"]), st.integers(0, 6)), max_size=4
    ),
    st.integers(0, 2),
    st.integers(0, 20),
)
def test_an_offer_has_no_more_rows_than_it_may(
    sessions: list[tuple[str, int]], new: int, rows: int
) -> None:
    verifier = machine(latency(*FLAT))
    for name, (fill, drafts) in enumerate(sessions):
        open_(verifier, str(name), fill=fill)
        if drafts:
            verifier.received(str(name), Draft(0, 0, 0, (1,) * drafts), arrived=0.0)
    names = [str(name) for name in range(len(sessions))]

    offer = verifier.offer(
        names, 9.0, rows=rows, without_drafts=[f"new{n}" for n in range(new)]
    )

    needed = sum(1 + (fill == "never") for fill, _ in sessions) + new
    taken = sum(1 + len(draft) for draft in offer.start.values())
    assert taken <= max(rows, needed)
    for name, draft in offer.start.items():
        if not name.startswith("new"):
            fill, drafts = sessions[int(name)]
            assert len(draft) <= min(drafts, LIMITS.max_verify)
            assert draft or fill != "never"


def test_rows_are_kept_for_the_draft_token_that_fill_never_needs() -> None:
    verifier = machine(a="never", b="never")
    for name in ("a", "b"):
        verifier.received(name, Draft(0, 0, 0, (1, 2, 3)), arrived=0.0)

    drafts = {
        rows: [
            len(draft) for draft in verifier.offer(["a", "b"], 0.0, rows=rows).start.values()
        ]
        for rows in (4, 6, 7, 20)
    }

    assert drafts[4] == [1, 1]
    assert sum(drafts[6]) == 2
    assert sum(drafts[7]) == 3
    assert drafts[20] == [3, 3]


@pytest.mark.parametrize(
    ("fills", "judged"), [(["never"] * 2, [3, 3]), (["never", "always"], [1, 0])]
)
def test_fill_never_has_all_its_drafts_judged_unless_others_pay_for_them(
    fills: list[str], judged: list[int]
) -> None:
    dear = latency(*map(float, range(1, 10)))
    verifier = machine(dear, a=fills[0], b=fills[1])
    for name in ("a", "b"):
        verifier.received(name, Draft(0, 0, 0, (1, 2, 3)), arrived=0.0)

    offer = verifier.offer(["a", "b"], 0.0, rows=16)

    assert [len(draft) for draft in offer.start.values()] == judged


def test_rows_go_to_the_session_whose_draft_tokens_are_accepted() -> None:
    verifier = machine(latency(*FLAT), good="always", bad="always")
    verifier.session("good").chain.acceptance = 0.9
    verifier.session("bad").chain.acceptance = 0.2
    for name in ("good", "bad"):
        verifier.received(name, Draft(0, 0, 0, (1, 2, 3)), arrived=0.0)

    offer = verifier.offer(["bad", "good"], 0.0, rows=7)

    assert offer.start == {"bad": (), "good": (1, 2, 3)}


# --- the pass that runs


def test_a_pass_judges_what_the_driver_took_of_the_offer() -> None:
    verifier = machine(a="always", b="always")
    for name in ("a", "b"):
        verifier.received(name, Draft(0, 0, 0, (0, 1, 2)), arrived=0.0)

    plan = verifier.begin({"a": 2, "b": 0}, 3.0)

    assert plan.started == 3.0
    assert {name: judged.draft for name, judged in plan.passes.items()} == {
        "a": (0, 1),
        "b": (),
    }
    assert plan.passes["a"].u == ()


def test_no_more_is_judged_than_is_pending_and_one_pass_runs_at_a_time() -> None:
    verifier = machine(a="always")
    verifier.received("a", Draft(0, 0, 0, (0,)), arrived=0.0)
    with pytest.raises(LocalProtocolError, match="there are no 2 draft tokens"):
        verifier.begin({"a": 2}, 0.0)

    verifier.begin({"a": 1}, 0.0)

    with pytest.raises(LocalProtocolError, match="no pass may begin now"):
        verifier.begin({"a": 0}, 0.0)


@pytest.mark.parametrize("drafts", [0, 2])
def test_in_separate_a_pass_gets_a_uniform_for_each_draft_token_and_one_more(
    drafts: int,
) -> None:
    verifier = machine()
    open_(verifier, "a", "separate")
    verifier.received("a", Draft(0, 0, 0, (1, 2), (7, 8)), arrived=0.0)

    judged = verifier.begin({"a": drafts}, 0.0).passes["a"]

    assert judged.u == tuple(n / 1000 for n in range(drafts + 1))
    assert judged.q == (7, 8)[:drafts]


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


def test_an_answer_that_ends_is_finished() -> None:
    verifier = machine()
    open_(verifier, "a", max_tokens=1)

    _, finish = run(verifier, "a", 5, now=0.0)

    assert isinstance(finish, Finish)
    assert verifier.session("a").finished == "length"


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


def test_a_rejection_is_sent_with_samples_drawn_from_the_machines_uniforms() -> None:
    verifier = machine()
    open_(verifier, "a", "separate")
    verifier.received("a", Draft(0, 0, 0, (1,), (Q_SCALE,)), arrived=0.0)
    plan = verifier.begin({"a": 1}, 0.0)

    verdict = Verdict(Judgement((), 0, Rejection(1, P)))
    (reject,) = verifier.ran(plan, {"a": verdict}, 1.0, rows=2)["a"]

    assert isinstance(reject, Reject)
    assert next(verifier._u) == (2 + TAIL_SAMPLES) / 1000
    (again,) = verifier.received("a", Redraw(1, 0), arrived=2.0)
    assert isinstance(again, Reject)
    assert next(verifier._u) == (3 + 2 * TAIL_SAMPLES) / 1000


# --- what is received


def test_a_recovered_token_is_committed_at_once() -> None:
    verifier = machine()
    open_(verifier, "a", "separate")
    verifier.session("a").rejection = Rejection(1, P)

    assert verifier.received("a", Draft(1, 0, 0, (2,), (), True), arrived=0.0) == [
        Commit(1, 0, (2,))
    ]


def test_nothing_changes_when_a_message_is_rejected() -> None:
    verifier = expecting("a")
    before = snapshot(verifier)

    lies = [
        Draft(0, 0, 0, ()),
        Draft(0, 1, 1, (9,)),
        Draft(0, 0, 0, (1,) * 9),
        Draft(0, 3, 1, (V,)),
    ]
    for lie in lies:
        with pytest.raises(RemoteProtocolError):
            verifier.received("a", lie, arrived=1.2)

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
