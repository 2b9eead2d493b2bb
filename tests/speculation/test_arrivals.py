"""What the verifier learns from the times at which drafts come."""

from __future__ import annotations

from math import inf
from types import SimpleNamespace

import pytest

from picospec.speculation.pass_policy import MAX_COMMITS, MIN_INTERVAL_S, Arrivals


class Text:
    """What Arrivals look at of a session."""

    def __init__(self, reach: int = 0) -> None:
        self.committed: list[int] = []
        self.chain = SimpleNamespace(broken=False, wrong_at=None, reach=reach)

    def into(self, seen: Arrivals, now: float, wrong_at: int | None = None) -> None:
        """Grow by a token that is sent now."""
        self.committed.append(0)
        self.chain.broken, self.chain.wrong_at = wrong_at is not None, wrong_at
        seen.committed(self, now)  # type: ignore[arg-type]

    def behind(self, seen: Arrivals) -> int:
        return seen.behind(self)  # type: ignore[arg-type]


def test_arrivals_learn_how_soon_drafts_follow_a_broken_chain() -> None:
    seen, text = Arrivals(), Text()

    seen.drafts_arrived(0.5, 2)
    text.into(seen, 1.0, wrong_at=0)
    seen.drafts_arrived(1.4, 1)
    assert seen.restart_s == pytest.approx(0.4)
    seen.drafts_arrived(1.6, 2)

    assert seen.first_s == pytest.approx(0.4)
    assert seen.interval_s == pytest.approx(0.1)
    assert seen.restart_s == pytest.approx(0.5)


def test_arrivals_move_slowly_and_pauses_hardly_count() -> None:
    seen, text = Arrivals(), Text()
    for broke, came in ((0.0, 0.4), (10.0, 90.0)):  # the edge rested
        text.into(seen, broke, wrong_at=len(text.committed))
        seen.drafts_arrived(came, 1)
    seen.drafts_arrived(90.1, 1)
    seen.drafts_arrived(160.0, 1)

    assert seen.first_s == pytest.approx(0.5)
    assert seen.interval_s == pytest.approx(0.1 * (1 + 3 / 4))


def test_an_edge_that_pauses_is_not_waited_for() -> None:
    seen, text = Arrivals(first_s=0.4, interval_s=0.1), Text()
    seen.drafts_arrived(0.5, 1)
    seen.paused(known=0)
    assert seen.due_s(0.5) == inf

    text.into(seen, 0.6)
    assert seen.due_s(0.6) == pytest.approx(0.4)  # this Commit wakes it
    seen.drafts_arrived(1.0, 1)
    assert seen.interval_s == pytest.approx(0.1)  # the pause is no interval
    assert seen.due_s(1.0) == pytest.approx(0.1)


def test_an_edge_that_wakes_goes_on_where_its_chain_ends() -> None:
    seen, text = Arrivals(first_s=0.4, interval_s=0.1), Text(reach=3)
    seen.drafts_arrived(0.5, 3)
    seen.paused(known=0)
    for sent_at in (0.6, 0.8, 1.0, 1.2):
        text.into(seen, sent_at)

    assert text.behind(seen) == 1  # it knows of one token, and has drafted two after it


def test_a_chain_found_wrong_late_was_given_up_with_the_commit_that_says_so() -> None:
    seen, text = Arrivals(first_s=0.3, interval_s=0.01), Text()
    for sent_at in (1.0, 1.1, 1.2):
        text.into(seen, sent_at)
    seen.drafts_arrived(1.25, 1)

    seen.chain_broke(position=1)

    assert seen.due_s(1.25) == pytest.approx(1.1 + 0.3 - 1.25)
    assert text.behind(seen) == 1  # it begins after two tokens, and there are three


def test_drafts_that_the_text_overtook_are_behind_it() -> None:
    seen, text = Arrivals(first_s=0.3, interval_s=0.1), Text(reach=2)
    seen.drafts_arrived(0.0, 2)
    text.into(seen, 0.1)
    text.into(seen, 0.15)
    assert text.behind(seen) == 0
    text.into(seen, 0.2)
    assert text.behind(seen) == 1

    text.into(seen, 0.25, wrong_at=3)
    assert text.behind(seen) == 0
    text.into(seen, 0.3)
    assert text.behind(seen) == 1


def test_a_commit_wakes_an_edge_that_has_paused() -> None:
    seen, text = Arrivals(first_s=0.4, interval_s=0.1), Text()
    seen.drafts_arrived(0.5, 1)
    text.into(seen, 0.6)  # drafts still come: none is awaited
    assert seen.due_s(0.6) == pytest.approx(0.0)
    text.into(seen, 1.0)  # none has come for five intervals
    assert seen.due_s(1.1) == pytest.approx(0.3)
    text.into(seen, 1.2)  # the edge was awake already
    assert seen.due_s(1.3) == pytest.approx(0.1)
    seen.drafts_arrived(1.3, 2)

    assert seen.first_s == pytest.approx(0.4)  # it may have been on its way before
    assert seen.due_s(1.35) == pytest.approx(0.05)


def test_who_never_woke_an_edge_learns_from_the_first_time() -> None:
    seen, text = Arrivals(interval_s=0.1), Text()
    seen.drafts_arrived(0.2, 1)
    text.into(seen, 1.0)
    assert seen.due_s(1.1) == inf
    seen.drafts_arrived(1.3, 1)

    assert seen.first_s == pytest.approx(0.3)


def test_drafts_that_were_there_before_a_commit_do_not_answer_it() -> None:
    seen, text = Arrivals(first_s=0.4, interval_s=0.1), Text()
    seen.drafts_arrived(0.5, 1)
    text.into(seen, 1.0)

    seen.drafts_arrived(0.7, 1)  # taken in after the pass that was running

    assert seen.first_s == pytest.approx(0.4)
    assert seen.due_s(0.75) == pytest.approx(0.7 + seen.interval_s - 0.75)


def test_the_next_draft_is_due_when_the_last_ones_say_so() -> None:
    seen, text = Arrivals(), Text()
    assert seen.due_s(0.0) == inf

    text.into(seen, 0.0, wrong_at=0)
    assert seen.due_s(0.1) == inf
    seen.drafts_arrived(0.4, 1)
    assert seen.due_s(0.5) == inf
    seen.drafts_arrived(0.6, 2)

    assert seen.due_s(0.65) == pytest.approx(0.05)
    assert seen.due_s(0.75) == pytest.approx(-0.05)
    assert seen.due_s(0.9) == inf  # so late that none is coming
    text.into(seen, 1.0, wrong_at=1)
    assert seen.due_s(1.1) == pytest.approx(0.3)


def test_the_oldest_commits_are_forgotten() -> None:
    seen, text = Arrivals(first_s=0.3, interval_s=0.01), Text()
    for number in range(MAX_COMMITS + 1):
        text.into(seen, float(number))

    seen.chain_broke(position=0)

    assert seen.due_s(1.0) == pytest.approx(0.3)


def test_only_draft_tokens_further_apart_than_the_least_interval_tell_a_pace() -> None:
    seen = Arrivals()
    seen.drafts_arrived(0.0, 1)
    seen.drafts_arrived(MIN_INTERVAL_S, 1)
    assert seen.interval_s == 0.0

    seen.drafts_arrived(3 * MIN_INTERVAL_S, 1)

    assert seen.interval_s == pytest.approx(2 * MIN_INTERVAL_S)


def test_a_draft_token_that_comes_with_the_commit_is_the_first_to_answer_it() -> None:
    seen, text = Arrivals(first_s=0.4, interval_s=0.1), Text()
    text.into(seen, 1.0, wrong_at=0)

    seen.drafts_arrived(1.0, 1)

    assert seen.first_s == pytest.approx(0.3)


def test_a_draft_token_is_expected_until_two_intervals_after_its_time() -> None:
    seen = Arrivals(interval_s=1.0)
    seen.drafts_arrived(0.0, 1)

    assert seen.due_s(3.0) == -2.0
    assert seen.due_s(3.001) == inf


def test_a_chain_found_wrong_before_any_commit_awaits_none() -> None:
    seen = Arrivals(first_s=0.4, interval_s=0.1)

    seen.chain_broke(position=0)

    assert seen.due_s(0.0) == inf
