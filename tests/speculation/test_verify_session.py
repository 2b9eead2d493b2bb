"""The verifier's session: what it takes, drops, proposes itself, and commits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from speculation.answer_cache import SHARED, Owner
from speculation.chain import ACCEPTANCE_PRIOR, ACCEPTANCE_WEIGHT, Chain
from speculation.distributions import Q_SCALE
from speculation.errors import LocalProtocolError, RemoteProtocolError
from speculation.judge import Judgement
from speculation.lookup import MATCH_PRIORS
from speculation.messages import Commit, Draft, Finish, Pushed, Recovered, Redraw, TokenLogprob
from speculation.model_facts import Limits
from speculation.ngram_drafts import MAX_ANSWER_CACHES, MAX_DROPPED, AnswerCaches
from speculation.verify_machine import VerifyMachine
from speculation.verify_session import VerifyingSession
from tests.speculation import verifiers
from tests.speculation.verifiers import V, begin, generate, rejecting, session, state


@pytest.mark.parametrize(
    ("changes", "most", "count"),
    [
        ({}, 16, 4),
        ({}, 3, 3),
        ({}, 0, 0),
        ({"fill": "always"}, 0, 0),
        ({"fill": "never"}, 0, 1),  # it has one, however dear the row is
        ({"max_tokens": 3}, 16, 2),  # the target's own token needs a position
    ],
)
def test_a_pass_takes_no_more_than_it_may(
    changes: dict[str, object], most: int, count: int
) -> None:
    verifier = session(**changes)
    verifier.receive(Draft(0, 0, 0, (1,) * 8))

    assert len(begin(verifier, most).draft) == count


@pytest.mark.parametrize(("before", "draft"), [(7, (2, 3)), (8, ())], ids=["it", "another"])
def test_drafts_are_judged_once_the_chain_before_them_is_known_to_be_the_text(
    before: int, draft: tuple[int, ...]
) -> None:
    verifier = session()
    verifier.receive(Draft(0, 1, 1, (2,)))
    generate(verifier, 7)
    assert verifier.pending == 0  # was 7 the draft token before it?

    verifier.receive(Draft(0, 0, 0, (before,)))
    verifier.receive(Draft(0, 2, 2, (3,)))

    assert begin(verifier).draft == draft


def test_what_the_edge_knows_to_be_right_need_not_arrive() -> None:
    verifier = session()
    generate(verifier, 7)
    verifier.receive(Draft(0, 2, 1, (3,)))
    assert verifier.pending == 0

    verifier.receive(Draft(0, 1, 0, (2,)))  # its chain begins at the text: 7 was right

    assert begin(verifier).draft == (2, 3)


def test_a_newer_epoch_replaces_what_is_pending_and_an_older_one_is_void() -> None:
    verifier = session()
    verifier.receive(Draft(0, 0, 0, (1, 2)))

    verifier.receive(Draft(1, 0, 0, (5,)))
    verifier.receive(Draft(0, 2, 2, (3,)))

    assert begin(verifier).draft == (5,)


def test_a_repeated_draft_changes_nothing() -> None:
    verifier = session()
    draft = Draft(0, 0, 0, (1, 2))
    verifier.receive(draft)
    generate(verifier, 1, 2, 3, accepted=2)
    before = state(verifier)

    assert verifier.receive(draft) == []

    assert state(verifier) == before


def test_drafts_arriving_during_a_pass_wait_for_the_next() -> None:
    verifier = session()
    verifier.receive(Draft(0, 0, 0, (1,)))
    begin(verifier)
    verifier.receive(Draft(0, 1, 1, (2, 3)))

    verifier.resolve(Judgement((1, 2), 1))

    assert begin(verifier).draft == (3,)


def test_one_pass_runs_at_a_time_and_judges_no_more_than_is_pending() -> None:
    verifier = session()
    verifier.receive(Draft(0, 0, 0, (0,)))
    with pytest.raises(LocalProtocolError, match="no pass has begun"):
        verifier.resolve(Judgement((1,), 0))
    with pytest.raises(LocalProtocolError, match="no pass can have 2 draft tokens"):
        verifier.begin(2)

    verifier.begin(1)

    with pytest.raises(LocalProtocolError, match="no pass may begin now"):
        verifier.begin(0)


def test_no_pass_begins_while_a_recovered_token_is_awaited_or_after_the_end() -> None:
    finished = session(max_tokens=1)
    generate(finished, 1)

    for verifier in (finished, rejecting()):
        with pytest.raises(LocalProtocolError):
            begin(verifier)


@pytest.mark.parametrize(
    ("tokens", "text", "reason"),
    [
        ((1, 99, 2), (1, 99), "stop"),
        ((1, 2, 3, 4), (1, 2, 3), "length"),
        ((99,), (99,), "stop"),
    ],
)
def test_the_answer_ends_at_a_stop_token_or_at_max_tokens(
    tokens: tuple[int, ...], text: tuple[int, ...], reason: str
) -> None:
    verifier = session(max_tokens=3)
    logprobs = [TokenLogprob(-float(i)) for i in range(len(tokens))]
    begin(verifier)

    commit, finish = verifier.resolve(Judgement(tokens, len(tokens) - 1), logprobs=logprobs)

    assert isinstance(commit, Commit)
    assert (commit.tokens, commit.logprobs) == (text, tuple(logprobs[: len(text)]))
    assert commit.accepted <= len(text)
    assert isinstance(finish, Finish)
    assert finish.reason == reason == verifier.finished
    assert verifier.receive(Draft(5, len(text), 0, (1,))) == []


def test_totals_show_what_the_drafts_were_worth() -> None:
    verifier = session()
    generate(verifier, 7)
    verifier.receive(Draft(0, 1, 0, (1, 2, 3)))
    generate(verifier, 1, 2, 9, accepted=2)

    totals = verifier.totals

    assert (totals.passes, totals.judged, totals.accepted, totals.filled) == (2, 3, 2, 1)


def test_acceptance_falls_with_a_rejection_and_ignores_its_recovered_token() -> None:
    verifier = rejecting()
    assert verifier.chain.acceptance == pytest.approx(ACCEPTANCE_PRIOR / 2)

    verifier.receive(Recovered(1, 0, 2))

    assert verifier.chain.acceptance == pytest.approx(ACCEPTANCE_PRIOR / 2)


@pytest.mark.parametrize(
    ("judge", "pending", "rows"),
    [("coupled", 2, 2), ("coupled", 6, 4), ("separate", 2, 4)],
    ids=["those-there-are", "those-a-pass-takes", "whichever-are-there"],
)
def test_rows_are_counted_for_what_a_pass_may_judge(
    judge: str, pending: int, rows: int
) -> None:
    verifier = session(judge)
    q = (1,) * pending if judge == "separate" else None
    verifier.receive(Draft(0, 0, 0, (1,) * pending, q))

    assert (verifier.pending, len(verifier.gains)) == (pending, rows)


# What no honest edge sends is rejected by name, and changes nothing.


DISHONEST: dict[str, tuple[VerifyingSession, Pushed, str]] = {
    "no tokens": (session(), Draft(0, 0, 0, ()), "Draft.tokens"),
    "not a token": (session(), Draft(0, 0, 0, (1, V)), "Draft.tokens"),
    "behind the prompt": (session(), Draft(0, 0, 1, (1,)), "Draft.offset"),
    "a gap to the text": (session(), Draft(0, 2, 1, (1,)), "Draft.offset"),
    "too far ahead": (session(), Draft(0, 0, 0, (1,) * 9), "Draft.start"),
    "weights in coupled": (session(), Draft(0, 0, 0, (1,), (5,)), "Draft.q"),
    "no weights in separate": (session("separate"), Draft(0, 0, 0, (1,)), "Draft.q"),
    "a weight too few": (session("separate"), Draft(0, 0, 0, (1, 2), (5,)), "Draft.q"),
    "a weight too many": (session("separate"), Draft(0, 0, 0, (1,), (5, 5)), "Draft.q"),
    "a weight of 0": (session("separate"), Draft(0, 0, 0, (1,), (0,)), "Draft.q"),
    "a weight over 1": (session("separate"), Draft(0, 0, 0, (1,), (Q_SCALE + 1,)), "Draft.q"),
    "nothing rejected": (session("separate"), Recovered(1, 0, 2), "Recovered.position"),
    "the rejected token again": (rejecting(), Recovered(1, 0, 1), "Recovered.token"),
    "impossible in p": (rejecting(), Recovered(1, 0, 4), "Recovered.token"),
    "beyond its place": (rejecting(), Recovered(1, 1, 2), "Recovered.position"),
    "over the text": (rejecting(7), Recovered(1, 0, 8), "Recovered.position"),
    "recovered in coupled": (session(), Recovered(1, 0, 2), "Recovered"),
    "a redraw in coupled": (session(), Redraw(0, 0, 1), "Redraw"),
    "drafts beyond the token owed": (rejecting(), Draft(1, 2, 0, (5,), (9,)), "Draft.offset"),
}


@pytest.mark.parametrize(("verifier", "lie", "field"), DISHONEST.values(), ids=DISHONEST)
def test_what_no_honest_edge_sends_is_rejected_by_field_and_changes_nothing(
    verifier: VerifyingSession, lie: Pushed, field: str
) -> None:
    before = state(verifier)

    with pytest.raises(RemoteProtocolError, match=f"^{field}: "):
        verifier.receive(lie)

    assert state(verifier) == before


# The chain: how far it goes, where it is wrong, and how often right.


def holding(*drafts: Draft, text: tuple[int, ...] = ()) -> Chain:
    chain = Chain()
    for draft in drafts:
        chain.begin(draft)
        chain.extend(draft, text)
    return chain


def test_it_reaches_to_the_first_gap() -> None:
    assert holding(Draft(0, 0, 0, (0, 0))).reach == 2
    assert holding(Draft(0, 1, 1, (5,))).reach == 0
    assert holding(Draft(0, 1, 1, (5,)), Draft(0, 0, 0, (0,))).reach == 2


def test_what_it_reaches_stays_when_the_text_overtakes_it() -> None:
    chain = holding(Draft(0, 0, 0, (0, 1)))

    chain.follow((0, 1, 2, 3))

    assert (chain.reach, chain.broken) == (2, False)
    assert not chain.is_void(0)


@pytest.mark.parametrize(
    ("tokens", "text", "wrong_at"),
    [((0, 0, 2), (0, 1), 1), ((0, 3, 2), (0, 1), 1), ((0,), (1,), 0)],
    ids=["lower", "higher", "first"],
)
def test_the_first_difference_breaks_it_there(
    tokens: tuple[int, ...], text: tuple[int, ...], wrong_at: int
) -> None:
    chain = holding(Draft(2, 0, 0, tokens))

    chain.follow(text)

    assert (chain.broken, chain.wrong_at, chain.reach) == (True, wrong_at, wrong_at)
    assert [chain.is_void(epoch) for epoch in (2, 3)] == [True, False]


def test_a_rejection_ends_it_after_the_tokens_accepted_before() -> None:
    chain = holding(Draft(0, 0, 0, (1, 2, 3)))

    chain.rejected((1, 2))

    assert [chain.is_void(epoch) for epoch in (0, 1)] == [True, False]
    assert (chain.wrong_at, chain.broken, chain.reach) == (2, True, 2)


def test_the_newest_draft_tokens_are_those_that_end_last_in_the_newest_epoch() -> None:
    chain = holding(Draft(0, 2, 2, (1,)), Draft(0, 0, 0, (1, 2)))
    assert chain.newest == (0, 3)

    chain.begin(Draft(1, 0, 0, (5,)))

    assert chain.newest == (1, 1)


@pytest.mark.parametrize("other", [0, 9])
def test_one_position_may_not_have_two_tokens_in_one_epoch(other: int) -> None:
    chain = holding(Draft(0, 0, 0, (1, 2)))

    with pytest.raises(RemoteProtocolError, match=r"^Draft\.tokens: position 1 has changed"):
        chain.begin(Draft(0, 1, 1, (other,)))

    chain.begin(Draft(1, 1, 1, (other,)))


def test_the_first_comparisons_weigh_more_and_the_prior_counts_as_one() -> None:
    chain = holding(Draft(0, 0, 0, (1, 1, 1)))

    chain.follow((1,))
    assert chain.acceptance == pytest.approx((ACCEPTANCE_PRIOR + 1) / 2)
    chain.follow((1, 0))

    assert chain.acceptance == pytest.approx((ACCEPTANCE_PRIOR + 1) / 3)


def test_in_the_end_the_latest_comparison_has_a_weight_of_its_own() -> None:
    chain = holding(Draft(0, 0, 0, (1,) * 100))
    chain.follow((1,) * 99)
    before = chain.acceptance

    chain.follow((*[1] * 99, 0))

    assert chain.acceptance == pytest.approx(before * (1 - ACCEPTANCE_WEIGHT))


def test_draft_tokens_that_the_text_overtook_are_compared_too() -> None:
    chain = holding(Draft(0, 0, 0, (1, 2, 3)), text=(1, 2))

    assert chain.acceptance == pytest.approx((ACCEPTANCE_PRIOR + 2) / 3)


def test_what_the_edge_knew_already_is_not_compared() -> None:
    chain = holding(Draft(0, 2, 0, (5,)), text=(1, 2))

    assert chain.acceptance == ACCEPTANCE_PRIOR


# The verifier's n-gram drafts follow the edge's in a pass.

LINE = [11, 12, 13, 14, 15, 16]


def with_ngrams(prompt: Sequence[int] = (1,), **changes: object) -> VerifyingSession:
    defaults = {"ngram_drafts": True, "limits": Limits(max_verify=8, max_ahead=32)}
    return verifiers.session(prompt=tuple(prompt), **{**defaults, **changes})  # type: ignore[arg-type]


def offered(verifier: VerifyingSession) -> tuple[int, ...]:
    return verifier.plan(32)


AGAIN = [*LINE, 2, *LINE[:3]]
REST = (14, 15, 16, 2, 11, 12, 13)

OFFERS: dict[str, tuple[list[int], dict[str, Any], tuple[int, ...], tuple[int, ...]]] = {
    "what followed in the prompt": (AGAIN, {}, (), REST),
    "nothing without leave of the edge": (AGAIN, {"ngram_drafts": False}, (), ()),
    "the edge's draft tokens first": (AGAIN, {}, (14, 15), (*REST, 14)),
    "as many after the edge's as a pass takes": (
        [*LINE, *LINE], {}, tuple(LINE), (*LINE, *LINE[:2]),
    ),
    "nothing after a token that would end the answer": (
        AGAIN, {"stop_tokens": (15,)}, (), (14, 15),
    ),
    "nothing after such a token of the edge": (
        AGAIN, {"stop_tokens": (15,)}, (14, 15), (14, 15),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("prompt", "changes", "drafts", "offer"), OFFERS.values(), ids=OFFERS)
def test_a_session_offers_the_edges_draft_tokens_and_then_its_own(
    prompt: list[int],
    changes: dict[str, Any],
    drafts: tuple[int, ...],
    offer: tuple[int, ...],
) -> None:
    verifier = with_ngrams(prompt, **changes)
    if drafts:
        verifier.receive(Draft(0, 0, 0, drafts))

    assert offered(verifier) == offer
    assert verifier.begin(len(offer)).ngrams == len(offer) - len(drafts)


def test_later_tokens_of_a_match_are_the_surer_the_more_of_it_agrees() -> None:
    verifier = with_ngrams([*LINE, 2, LINE[0]])

    first, second, third, fourth, *_ = verifier.gains

    assert second / first == pytest.approx(MATCH_PRIORS[2][0])
    assert third / second == fourth / third == pytest.approx(MATCH_PRIORS[3][0])


@pytest.mark.parametrize(
    ("accepted", "edges", "own"), [(0, 0, 0), (1, 1, 0), (2, 2, 0), (4, 2, 2)]
)
def test_a_commit_says_whose_draft_tokens_stood(accepted: int, edges: int, own: int) -> None:
    verifier = with_ngrams([*LINE, 2, *LINE[:2]])
    verifier.receive(Draft(0, 0, 0, (13, 14)))
    verifier.begin(4)

    (commit,) = verifier.resolve(Judgement((*range(50, 50 + accepted), 9), accepted))

    assert isinstance(commit, Commit)
    assert (commit.accepted, commit.verifier_accepted) == (edges, own)
    assert (verifier.totals.accepted, verifier.totals.verifier_accepted) == (accepted, own)


def test_an_end_within_its_own_draft_tokens_counts_those_before_it() -> None:
    verifier = with_ngrams([*LINE, 2, *LINE[:2]], stop_tokens=(14,))
    verifier.begin(2)

    commit, finish = verifier.resolve(Judgement((13, 14, 9), 2))

    assert isinstance(commit, Commit)
    assert isinstance(finish, Finish)
    assert (commit.tokens, commit.verifier_accepted, finish.totals.verifier_accepted) == (
        (13, 14),
        2,
        2,
    )


def test_pending_draft_tokens_that_fill_a_pass_leave_no_room_for_others() -> None:
    verifier = with_ngrams(predicted=tuple(LINE), limits=Limits(max_verify=1))

    verifier.receive(Draft(0, 0, 0, (11, 12, 13)))

    assert len(verifier.gains) == 1


def test_a_session_that_is_opened_again_looks_in_what_was_committed() -> None:
    verifier = with_ngrams([*LINE, 2], committed=(3, *LINE[:2]), max_tokens=40)
    assert offered(verifier)[:2] == (13, 14)

    generate_ngrams(verifier, 15)

    assert offered(verifier)[:1] == (16,)


def test_what_of_a_broken_chain_comes_late_is_resumed_too() -> None:
    verifier = with_ngrams()
    verifier.receive(Draft(0, 0, 0, (20, 21)))
    generate_ngrams(verifier, 30)
    verifier.receive(Draft(0, 2, 2, (22, 23)))

    generate_ngrams(verifier, 21)

    assert offered(verifier)[:2] == (22, 23)


def test_a_chain_that_was_often_resumed_in_vain_is_no_longer() -> None:
    verifier = with_ngrams(max_tokens=400)
    gains = []
    for epoch in range(12):
        start = len(verifier.committed)
        chain = (20, 21, 500 + epoch, 600 + epoch)
        verifier.receive(Draft(epoch, start, 0, chain))
        generate_ngrams(verifier, 1000 + epoch)
        generate_ngrams(verifier, 21)
        gains.append(max(verifier.gains, default=0.0))
        generate_ngrams(verifier, 2000 + epoch, judged=1)

    assert gains[-1] < gains[0] / 2


def test_a_long_broken_chain_is_kept_in_part() -> None:
    verifier = with_ngrams(max_tokens=400, limits=Limits(max_ahead=200))
    verifier.receive(Draft(0, 0, 0, tuple(range(200, 300))))
    generate_ngrams(verifier, 30)
    verifier.receive(Draft(0, 100, 100, tuple(range(300, 380))))

    generate_ngrams(verifier, 200 + MAX_DROPPED - 2)

    assert offered(verifier)[:1] == (200 + MAX_DROPPED - 1,)
    assert 300 not in offered(verifier)


def test_of_a_commit_that_is_known_in_part_the_rest_says_whose_it_is() -> None:
    commit = Commit(0, 0, (1, 2, 3, 4, 5), accepted=2, verifier_accepted=2)

    rest = [commit.after(known) for known in range(5)]

    assert [(each.accepted, each.verifier_accepted) for each in rest] == [
        (2, 2), (1, 2), (0, 2), (0, 1), (0, 0)
    ]  # fmt: skip


def generate_ngrams(verifier: VerifyingSession, token: int, *, judged: int = 0) -> None:
    """Run a pass that judges so many draft tokens, none of which is right."""
    verifier.begin(judged)
    verifier.resolve(Judgement((token,), 0))


def machine_after(owner: Owner | None) -> VerifyMachine:
    """A machine that has generated LINE for an owner."""
    machine = VerifyMachine(iter(()))
    open_at(machine, "a", owner)
    for token in LINE:
        machine.begin({"a": 0}, now=0.0)
        machine.session("a").resolve(Judgement((token,), 0))
    machine.close("a")
    return machine


def open_at(machine: VerifyMachine, name: str, owner: Owner | None) -> None:
    request = verifiers.opening(prompt=(1, 2, 3), ngram_drafts=True)
    machine.open(name, request, Limits(8), vocabulary_size=100, now=0.0, owner=owner)


def offered_to(machine: VerifyMachine, owner: Owner | None) -> tuple[int, ...]:
    open_at(machine, "b", owner)
    return machine.session("b").plan(32)


ALICE = Owner("edge", "alice")


def test_an_earlier_answer_is_proposed_to_its_owner_only() -> None:
    assert offered_to(machine_after(ALICE), ALICE) == tuple(LINE)
    for other in (Owner("edge", "bob"), Owner("edge"), Owner("other", "alice"), None):
        assert offered_to(machine_after(ALICE), other) == ()
    assert offered_to(machine_after(None), ALICE) == ()


@pytest.mark.parametrize(
    ("who", "left"),
    [(ALICE, 0), (Owner("edge"), 0), (Owner("edge", "bob"), 6), (Owner("other"), 6)],
)
def test_an_owners_answers_are_forgotten_on_demand(who: Owner, left: int) -> None:
    machine = machine_after(ALICE)

    machine.forget(who)

    assert len(offered_to(machine, ALICE)) == left


def test_answers_that_all_share_are_forgotten_on_anyones_demand() -> None:
    machine = machine_after(SHARED)

    machine.forget(ALICE)

    assert offered_to(machine, SHARED) == ()


def test_the_cache_that_was_used_longest_ago_is_dropped() -> None:
    answer_caches = AnswerCaches()
    first, *_ = [answer_caches.of(Owner(str(n))) for n in range(MAX_ANSWER_CACHES)]
    second = answer_caches.of(Owner("1"))
    assert answer_caches.of(Owner("0")) is first

    answer_caches.of(Owner("new"))

    assert answer_caches.of(Owner("0")) is first
    assert answer_caches.of(Owner("1")) is second
