"""The verifier's machine: the pass that runs, what each session sends, what is received."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speculation.errors import RemoteProtocolError
from speculation.head import Head
from speculation.judge import Judgement, Rejection
from speculation.messages import Commit, Draft, TokenLogprob
from speculation.separate import Separate
from speculation.verify_machine import (
    MIN_DRAFT_WAIT_S,
    Offer,
    PassRecord,
    Verdict,
    VerifyMachine,
)
from tests.speculation.verifiers import (
    FLAT,
    LIMITS,
    P,
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
    verifier.latency.observe(1, 0.01)
    verifier.received("b", Draft(0, 0, 0, (0,)), arrived=0.0)
    both = {"a", "b"}  # the pass under way makes that draft token useless
    assert (
        verifier.asynchronous_sessions(both, 0.0, others=0)
        == verifier.asynchronous_sessions(both, 0.0, others=1)
        == both
    )

    verifier.begin({"b": 1}, 0.0)

    assert verifier.asynchronous_sessions(both, 0.0, others=1) == {"a"}


@pytest.mark.parametrize(
    ("drafts", "host_s", "waits"),
    [(1, 0.001, False), (2, 0.001, True), (2, 0.009, False), (8, 0.009, True)],
)
def test_sessions_wait_for_an_outcome_if_their_draft_tokens_are_worth_the_hosts_part(
    drafts: int, host_s: float, waits: bool
) -> None:
    verifier = machine(a="auto", b="auto")
    verifier.latency.observe(2, 0.01)
    verifier.outcome.observe(0.01, 0.01, ahead=True)
    verifier.outcome.observe(0.01 + host_s, 0.01, ahead=False)
    for name in ("a", "b"):
        verifier.received(name, Draft(0, 0, 0, (0,) * drafts), arrived=0.0)

    assert (verifier.asynchronous_sessions({"a", "b"}, 9.0, others=0) is None) == waits
    beside = verifier.asynchronous_sessions({"a", "b"}, 9.0, others=1)  # which never wait
    assert beside == (set() if drafts == 8 else {"a", "b"})


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
        PassRecord(2),
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
        verifier.ran(plan, {"a": Verdict(Judgement((5,), 0))}, now, PassRecord(1))

    assert verifier.latency.of(1) == 5.0


def test_the_outcome_of_a_session_that_was_closed_is_dropped() -> None:
    verifier = machine(a="always", b="always")
    plan = verifier.begin({"a": 0, "b": 0}, 0.0)
    verifier.close("a")
    verifier.close("a")

    verdict = Verdict(Judgement((5,), 0))
    down = verifier.ran(plan, {"a": verdict, "b": verdict}, 1.0, PassRecord(2))

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


# The verifier's machine: when passes start, and what they judge.


def test_a_pass_starts_at_once_where_no_draft_token_is_expected() -> None:
    assert machine(a="auto").offer(["a"], 0.0, rows=9) == Offer({"a": ()}, 0.0)


def test_a_session_is_held_for_draft_tokens_that_are_due() -> None:
    assert expecting("a").offer(["a"], 1.5, rows=9) == Offer({}, 2.5, ["a"])


@pytest.mark.parametrize(
    ("before_s", "held"), [(2 * MIN_DRAFT_WAIT_S, True), (MIN_DRAFT_WAIT_S / 2, False)]
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
        verifier.received(name, Draft(start, start, 0, (6, 6)), arrived=0.0)

    offers = [
        verifier.allot(["likely", "unlikely"], rows=9, ahead=ahead) for ahead in (False, True)
    ]

    assert [offer.start["likely"] for offer in offers] == [(6, 6), (6, 6)]
    assert [offer.start["unlikely"] for offer in offers] == [(6, 6), ()]


def test_sessions_that_have_ended_or_await_a_recovered_token_are_not_taken() -> None:
    verifier = machine(a="auto")
    open_(verifier, "finished", max_tokens=1)
    open_(verifier, "rejecting", "separate")
    run(verifier, "finished", 5, now=0.0)
    plan = verifier.begin({"rejecting": 0}, 0.0)
    rejected = Verdict(Judgement((), 0, Rejection(1, P)))
    verifier.ran(plan, {"rejecting": rejected}, 1.0, None)

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


# A pass judges the edge's chain or the tokens of the target's own head: what earns more.


def passed(verifier: VerifyMachine, tokens: int, accepted: int) -> Commit:
    """Run a pass over tokens of the head of session a."""
    plan = verifier.begin({"a": 0}, 0.0, {"a": tokens})
    judgement = Judgement(tuple(range(1, accepted + 2)), accepted)
    (commit, *_) = verifier.ran(plan, {"a": Verdict(judgement)}, 1.0, None)["a"]
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

    assert (commit.accepted, commit.verifier_accepted, commit.tokens) == (0, 2, (1, 2, 3))
    totals = verifier.session("a").totals
    assert (totals.judged, totals.accepted, totals.verifier_accepted, totals.filled) == (
        3,
        2,
        2,
        0,
    )
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


@pytest.mark.parametrize(("step_s", "most", "count"), [(0.0, 9, 4), (1.0, 3, 3), (9.0, 9, 0)])
def test_a_head_drafts_as_many_tokens_as_pay_unless_the_edge_drafts_better(
    step_s: float, most: int, count: int
) -> None:
    verifier = machine(latency(*FLAT), a="auto", b="auto", c="never")
    verifier.received("b", Draft(0, 0, 0, (1, 2, 3)), arrived=0.0)
    verifier._sessions["b"].head.judged(64, 0)
    for _ in range(64):
        verifier._sessions["b"].head.judged(1, 0)

    names, tokens = verifier.heads_to_draft(["a", "b", "c"], 1.0, step_s, most)

    assert ([*names], tokens) == (["a"], count)
