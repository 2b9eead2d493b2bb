"""The chain that a verifier keeps: how far it goes, where it is wrong, and how often right."""

from __future__ import annotations

import pytest

from picospec.speculation.chain import ACCEPTANCE_PRIOR, ACCEPTANCE_WEIGHT, Chain
from picospec.speculation.messages import Draft, RemoteProtocolError


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
