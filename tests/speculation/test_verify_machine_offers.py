"""The verifier's machine: when passes start, and what they judge."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picospec.speculation.judge import Judgement, Rejection
from picospec.speculation.messages import Draft
from picospec.speculation.verify_machine import MIN_HOLD_S, Offer, Verdict
from tests.speculation.verifiers import (
    FLAT,
    LIMITS,
    P,
    expecting,
    latency,
    machine,
    open_,
    run,
    snapshot,
)


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


def test_where_sessions_may_run_on_a_few_unlikely_draft_tokens_are_not_judged() -> None:
    verifier = machine(latency(*FLAT), likely="auto", unlikely="auto")
    verifier.received("unlikely", Draft(0, 0, 0, (0, 1)), arrived=0.0)
    run(verifier, "unlikely", 5, now=0.0)
    for name, start in (("likely", 0), ("unlikely", 1)):
        verifier.received(name, Draft(start, start, 0, (6,)), arrived=0.0)

    offers = [
        verifier.offer(["likely", "unlikely"], 9.0, rows=9, ahead=ahead)
        for ahead in (False, True)
    ]

    assert [offer.start["likely"] for offer in offers] == [(6,), (6,)]
    assert [offer.start["unlikely"] for offer in offers] == [(6,), ()]


def test_sessions_that_have_ended_or_await_a_recovered_token_are_not_taken() -> None:
    verifier = machine(a="auto")
    open_(verifier, "finished", max_tokens=1)
    open_(verifier, "rejecting", "separate")
    run(verifier, "finished", 5, now=0.0)
    plan = verifier.begin({"rejecting": 0}, 0.0)
    rejected = Verdict(Judgement((), 0, Rejection(1, P)))
    verifier.ran(plan, {"rejecting": rejected}, 1.0, rows=None)

    assert verifier.offer(["finished", "rejecting"], 2.0, rows=9) == Offer({}, inf, [])
    assert verifier.offer(["finished", "rejecting", "a"], 2.0, rows=9).start == {"a": ()}


def test_sessions_without_drafts_start_now_and_take_the_held_ones_along() -> None:
    verifier = expecting("held")
    open_(verifier, "new", fill="never")

    offer = verifier.offer(["held"], 1.5, rows=9, without_drafts=["new"])

    assert offer == Offer({"new": (), "held": (0, 1)}, 0.0)


def test_a_pass_that_runs_for_others_takes_the_held_sessions_along_and_leaves_them_room() -> (
    None
):
    verifier = expecting("held")

    assert verifier.offer(["held"], 1.5, rows=9).start == {}
    assert verifier.offer(["held"], 1.5, rows=9, others=2) == Offer({"held": (0, 1)}, 0.0)
    assert verifier.offer(["held"], 1.5, rows=5, others=2) == Offer({"held": (0,)}, 0.0)


def test_an_offer_changes_nothing() -> None:
    verifier = expecting("a", "b")
    before = snapshot(verifier)

    for now in (1.5, 9.0):
        verifier.offer(["a", "b"], now, rows=9)
        verifier.wait_s(["a", "b"], now)

    assert snapshot(verifier) == before


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
    costly = latency(*map(float, range(1, 10)))
    verifier = machine(costly, a=fills[0], b=fills[1])
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
